"""Statistics over stored results: which models differ, and what the numbers allow to be said."""
