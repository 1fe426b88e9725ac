"""Statistical comparison of stored results: which models differ, and how certain that is."""
