"""What the vocabulary of a recipe means for its teachers and its student."""
