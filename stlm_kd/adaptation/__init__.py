"""A teacher's new vocabulary: initialised from the old one, then trained."""
