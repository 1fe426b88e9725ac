"""What a checkpoint brings along: weights and settings that are checked, mended or compared."""
