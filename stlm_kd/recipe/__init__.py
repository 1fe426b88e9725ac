"""Recipes: YAML, validated once and converted to typed values.

``load`` reads a recipe; ``schema`` holds its parts; ``locate`` finds recipes without validating them.
"""

from stlm_kd.recipe.load import (
    from_values,
    hash_of,
    load,
    named_recipe,
    paths_of,
    plain,
    recipe_hash,
    resolved_yaml,
    term_names,
    values_of,
    without_engine,
)
from stlm_kd.recipe.schema.root import Recipe

__all__ = [
    "Recipe",
    "from_values",
    "hash_of",
    "load",
    "named_recipe",
    "paths_of",
    "plain",
    "recipe_hash",
    "resolved_yaml",
    "term_names",
    "values_of",
    "without_engine",
]
