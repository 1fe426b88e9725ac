"""Checks before training: validation, requirements, overlap and rehearsal."""
