"""What leaves the tool, and comes to it: recipes and their differences; models in other programs' formats."""
