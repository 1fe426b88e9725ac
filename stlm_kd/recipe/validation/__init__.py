"""What the parts of a recipe demand of one another, as far as it shows without loading a model."""
