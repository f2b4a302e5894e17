"""Reproduces the documents' experiments: their reported numbers, our runs, and the comparison."""
