"""Vocabulary adaptation of a teacher: initialise a new vocabulary from the old one, then train it."""
