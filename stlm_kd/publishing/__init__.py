"""What recipes and runs are for others: differences between them, in the words of a recipe."""
