"""Labelled examples: texts with a class or a number, words with tags, questions with spans."""
