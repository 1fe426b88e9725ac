"""Word attributions of a classifier's predictions, and their agreement between two models."""
