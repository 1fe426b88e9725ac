"""Labelled examples: texts with a class or a number, words with tags, questions with spans."""

from stlm_kd.data.labelled.examples import Examples, LabelledSource, read_examples

__all__ = ["Examples", "LabelledSource", "read_examples"]
