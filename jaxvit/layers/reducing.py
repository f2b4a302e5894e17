"""Carries merged tokens through an encoder's blocks; see `jaxvit.layers.reduction`."""

from collections.abc import Callable, Sequence
from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvit.layers.reduction import ReductionStep, TokenReduction
from jaxvit.layers.stack import REMAT
from jaxvit.ops.reduction import Reduced, compose_places, size_bias, unmerge_tokens


class Reducing:
    """Earlier merging that one block has to respect, and the values that it chooses tokens by, while it is traced.

    Attributes:
      step: what the block does; None = it keeps all tokens.
      sizes_BN: how many merged tokens each token stands for; None = one each. `reduce` replaces it.
      places_BN: where `reduce` has put each token; None = it has done nothing.
      bias_BN: what attention adds to the logits of each key, or None.
    """

    def __init__(self, step: ReductionStep | None = None, sizes_BN: jax.Array | None = None):
        self.step, self.sizes_BN = step, sizes_BN
        self.places_BN: jax.Array | None = None
        self.bias_BN = None if sizes_BN is None else size_bias(sizes_BN)
        self._seen: tuple[jax.Array, jax.Array] | None = None

    def see(self, keys: Callable[[], jax.Array], weights_BMQN: Callable[[], jax.Array]) -> None:
        """Takes the keys averaged over heads, (B, N, D), and the attention weights, (B, M, Q, N); called if needed."""
        if self.step is not None:
            self._seen = keys(), weights_BMQN()

    def reduce(self, x_BNC: jax.Array) -> jax.Array:
        """Merges or removes tokens, after attention."""
        if self.step is None or self._seen is None:
            return x_BNC
        keys_BND, weights_BMQN = self._seen
        found = self.step(x_BNC, keys_BND=keys_BND, attention_BMQN=weights_BMQN, sizes_BN=self.sizes_BN)
        self.places_BN = found.places
        # Removing tokens leaves all sizes at 1, so attention stays as it is.
        self.sizes_BN = found.sizes if self.step.kind == "merge" or self.sizes_BN is not None else None
        return found.tokens


class ReducingBlocks:
    """Runs the blocks of an encoder that merges or removes tokens.

    Args:
      encoder: the encoder, whose compact method makes this object.
      reduce: which blocks merge or remove how many tokens.
      run: applies the blocks from `start` to `stop` - 1 without that: (x, start, stop) -> x.
      prefix: number of leading tokens that always stay.
      class_token: whether the first token is a class token.
      learner_at: the blocks that a TokenLearner precedes; `fuse` = a TokenFuser follows each of them.
      train, keys, rates, remat: as in `jaxvit.layers.stack.run_blocks`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        reduce: TokenReduction,
        run: Callable[[jax.Array, int, int], jax.Array],
        *,
        block: Callable[..., nn.Module],
        depth: int,
        prefix: int,
        class_token: bool,
        learner_at: Sequence[int],
        fuse: bool,
        train: bool,
        keys: jax.Array | None,
        rates: Sequence[float],
        remat: str,
    ):
        self._encoder, self._reduce, self._run, self._block = encoder, reduce, run, block
        self._prefix, self._class_token = prefix, class_token
        self._train, self._keys, self._rates, self._remat = train, keys, rates, remat
        self._at = reduce.blocks(depth, learner_at, fuse=fuse)
        self._sizes_BN: jax.Array | None = None
        self._places_BN: jax.Array | None = None  # None = every token is in its own place

    def __call__(self, x_BNC: jax.Array, start: int, stop: int) -> jax.Array:
        """Applies the blocks from `start` to `stop` - 1."""
        i = start
        while i < stop:
            if i not in self._at and self._sizes_BN is None:  # as without reduction
                end = min([stop, *(j for j in self._at if j > i)])
                x_BNC, i = self._run(x_BNC, i, end), end
            else:
                x_BNC, i = self._one(x_BNC, i), i + 1
        return x_BNC

    def whole_map(self, x_BNC: jax.Array) -> jax.Array:
        """Copies merged tokens back to all their places, for a layer that needs a map."""
        if self._places_BN is not None:
            x_BNC = unmerge_tokens(x_BNC, self._places_BN)
        self._sizes_BN = self._places_BN = None
        return x_BNC

    def result(self, x_BNC: jax.Array) -> Reduced:
        """The tokens after the last block, with sizes and places."""
        batch, tokens, _ = x_BNC.shape
        sizes_BN = jnp.ones((batch, tokens), jnp.float32) if self._sizes_BN is None else self._sizes_BN
        own_BN = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32)[None], (batch, tokens))
        return Reduced(x_BNC, sizes_BN, own_BN if self._places_BN is None else self._places_BN)

    def _one(self, x_BNC: jax.Array, i: int) -> jax.Array:
        """Applies one block; sows the places as `token_places_i` if it reduces."""
        step = None
        if i in self._at:
            left = self._reduce.left(i, x_BNC.shape[1] - self._prefix)
            step = ReductionStep(self._reduce.kind, left, self._prefix, self._reduce.by, self._class_token, seed=i)
        key = None if self._keys is None else self._keys[i]
        how = {"train": self._train, "path_key": None, "drop_path": self._rates[i]}
        encoder, name = self._encoder, f"block_{i}"
        plain = self._remat == "none" or encoder.is_initializing() or encoder.is_mutable_collection("intermediates")

        def run(x_BNC, params, key, sizes_BN):
            reducing = Reducing(step, sizes_BN)
            if plain:
                y_BNC = cast(jax.Array, self._block(name=name)(x_BNC, key=key, reducing=reducing, **how))
            else:
                template = self._block(parent=None)
                y_BNC = cast(jax.Array, template.apply({"params": params}, x_BNC, key=key, reducing=reducing, **how))
            return y_BNC, reducing.sizes_BN, reducing.places_BN

        if plain:
            x_BNC, self._sizes_BN, places_BN = run(x_BNC, None, key, self._sizes_BN)
        else:
            params = encoder.variables["params"][name]
            run = jax.checkpoint(run, policy=REMAT[self._remat])
            x_BNC, self._sizes_BN, places_BN = run(x_BNC, params, key, self._sizes_BN)
        if places_BN is not None:
            before_BN = self._places_BN
            self._places_BN = places_BN if before_BN is None else compose_places(before_BN, places_BN)
            encoder.sow("intermediates", f"token_places_{i}", self._places_BN)
        return x_BNC
