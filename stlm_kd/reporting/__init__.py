"""Presentation of results: tables, figures, pages and model cards."""
