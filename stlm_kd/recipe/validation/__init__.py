"""Validation across the parts of a recipe, as far as possible without loading a model."""
