"""Training and held-out data: tokenizers, token stores, packing, masking and batches."""
