"""Which words a classifier's decision rests on, and whether two models agree in them."""
