"""From parts of a recipe to data, models, objectives and settings."""
