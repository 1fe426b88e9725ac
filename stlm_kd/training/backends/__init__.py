"""What moves the weights: plain PyTorch with DDP, or DeepSpeed."""
