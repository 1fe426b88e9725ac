"""Losses as pure functions per token; the objective masks, weighs and reduces them."""
