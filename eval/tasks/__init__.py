"""Task files for lm-evaluation-harness."""
