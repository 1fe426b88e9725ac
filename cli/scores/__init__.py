"""The commands that score models and compare what is scored."""
