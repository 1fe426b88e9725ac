"""Architectures missing in transformers, and conversions between architectures."""
