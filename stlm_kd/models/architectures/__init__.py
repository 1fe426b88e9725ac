"""Architectures that transformers lacks, or that are made of another."""
