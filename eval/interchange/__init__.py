"""A student beside its teachers after the same interventions."""
