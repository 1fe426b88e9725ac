"""Sources of text and rows: files, the Hub, the built-in generator."""
