"""Comparison of a student with its teachers under the same interventions."""
