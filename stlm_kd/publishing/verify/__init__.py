"""Verify what a recipe's folder claims: from its files alone, by scoring again, or by training again."""
