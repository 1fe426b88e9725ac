"""Benchmarks that a copy of the model is fine-tuned on: GLUE, CoNLL-2003, SQuAD."""
