"""Figures, drawn headless."""
