"""The distillation objective on one micro-batch: loss terms, their reduction, and the step module."""
