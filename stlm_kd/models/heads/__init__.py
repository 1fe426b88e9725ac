"""Models with a classification head, per text or per token, and class names."""
