"""How far a student classifies as its teacher does."""
