"""Files on disk: stages, runs, records and results; written atomically and validated on reading."""
