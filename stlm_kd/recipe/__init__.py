"""Recipes: the outside text, checked once and turned into typed values."""
