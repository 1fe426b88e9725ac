"""Data sets by name: where they are found, the files of their splits, and their tables."""
