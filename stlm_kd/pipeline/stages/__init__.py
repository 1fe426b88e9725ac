"""Stages: the cached intermediate results of runs."""
