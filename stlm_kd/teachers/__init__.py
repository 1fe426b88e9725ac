"""Teachers: live, precomputed or cached; their targets, and how several become one."""

COMBINED = "combined"
"""The name of the teachers' mixture among the teachers."""
