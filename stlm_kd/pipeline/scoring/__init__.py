"""What the commands eval, agreement and interchange do."""
