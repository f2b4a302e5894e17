"""Strictness for every test: no silent broadcasting between ranks, no silent promotion between dtypes."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
