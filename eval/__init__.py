"""Suites that score models."""
