"""Answers from the book: finds the passages that speak of a question."""
