"""Outside names (models, tokenizers, data sets), pinned to commits, fetched and checked."""
