"""What is refused, measured or tried before anything is trained."""
