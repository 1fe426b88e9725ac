"""Teachers: live, precomputed or cached; their targets, and combinations of several teachers."""

COMBINED = "combined"
"""The name of the teachers' mixture, used like a teacher's name."""
