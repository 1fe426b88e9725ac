"""Recipes: the outside text, checked once and turned into typed values.

``load`` reads a recipe; ``schema`` holds its parts; ``source`` finds recipes without checking them.
"""

from stlm_kd.recipe.load import from_values, hash_of, load, plain, recipe_hash, resolved_yaml, term_names
from stlm_kd.recipe.schema.root import Recipe

__all__ = [
    "Recipe",
    "from_values",
    "hash_of",
    "load",
    "plain",
    "recipe_hash",
    "resolved_yaml",
    "term_names",
]
