"""Scores of classifiers and regression models on labelled examples."""
