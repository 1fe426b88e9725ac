"""How well text is predicted: bits per byte, pseudo-perplexity, the masked loss."""
