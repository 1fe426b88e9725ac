"""Teachers: live, precomputed or cached; their targets, and how several become one."""
