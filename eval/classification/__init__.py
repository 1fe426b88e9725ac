"""How well a classifier, or a model of numbers, does on labelled examples."""
