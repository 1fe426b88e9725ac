"""What a run builds and finds again: each stage is built, kept and read here."""
