"""Efficient vision transformers in JAX and Flax linen."""

from jaxvit._version import __version__

__all__ = ["__version__"]
