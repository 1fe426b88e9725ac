"""What one micro-batch computes: terms, their reduction, and the step behind one forward."""
