"""Training engines: plain PyTorch with DDP, or DeepSpeed."""
