"""The commands ``eval``, ``agreement`` and ``interchange``."""
