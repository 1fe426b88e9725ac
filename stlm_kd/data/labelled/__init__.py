"""Labelled examples: text classification and regression, token labels, question answering."""
