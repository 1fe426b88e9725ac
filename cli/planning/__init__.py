"""Commands that run nothing: whether a machine is fit, and what a recipe takes."""
