"""Types of parameter trees."""

from collections.abc import Mapping
from typing import TypeAlias

import jax

# Nested dicts of arrays, as Flax makes them. Also the type of trees of shapes and of shardings.
Params: TypeAlias = "Mapping[str, jax.Array | Params]"
# {collection: tree}, such as {'params': …}: the first argument of a module's `apply`.
Variables: TypeAlias = Mapping[str, Params]
