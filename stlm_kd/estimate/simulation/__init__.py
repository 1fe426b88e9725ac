"""A micro-batch of a recipe run on the meta device: its models without weights, its memory traced."""
