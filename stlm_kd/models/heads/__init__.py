"""Models with a fresh head: on a text, on every token, and the names of classes."""
