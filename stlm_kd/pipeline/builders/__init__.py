"""Build data, models, objectives and settings from parts of a recipe."""
