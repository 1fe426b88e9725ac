"""What is on disk: stages, runs, records and results; each written whole, and checked when read."""
