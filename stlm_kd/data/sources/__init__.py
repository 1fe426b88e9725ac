"""Where text and rows come from: files, the Hub, the built-in generator."""
