"""Language modelling scores on text: bits per byte, pseudo-perplexity, masked loss."""
