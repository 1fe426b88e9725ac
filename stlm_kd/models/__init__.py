"""Build, load, run and save models."""
