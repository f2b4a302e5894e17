"""Measuring speed and memory: of models, of exported files, of the input."""
