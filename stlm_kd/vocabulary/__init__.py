"""Mapping between the tokens of two vocabularies."""
