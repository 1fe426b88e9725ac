"""The schema of a recipe: one class for each mapping of the YAML file."""
