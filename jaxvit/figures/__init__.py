"""Figures, drawn with matplotlib and without a display."""
