"""Two vocabularies and how the tokens of one are said in the other."""
