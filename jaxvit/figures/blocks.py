"""Diagrams of what is inside the layers that are particular to these models."""

from jaxvit.figures.shift_block import draw_shift_block
from jaxvit.figures.token_learner import draw_token_learner

__all__ = ["draw_shift_block", "draw_token_learner"]
