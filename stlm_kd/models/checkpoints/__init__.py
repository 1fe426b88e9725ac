"""Checks and repairs of checkpoints: weights, generation settings, and reloading."""
