"""Applies a stack of blocks with equal attributes: one by one, with rematerialisation, or as one `lax.scan`.

The parameters are always stored under the blocks' own names: the scan stacks them on entry, and gradients come back
unstacked. Each block gets its random key by its index. So all three give the same numbers in training too, and a
checkpoint of one can be used with another.

Flax's own transforms do not fit: `nn.scan` stores stacked parameters, and `nn.remat` renames modules and traces
`train`.
"""

from collections.abc import Callable, Sequence
from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn

# For each policy of rematerialisation, the values to keep besides a block's input: everything, nothing, the outputs of
# all matrix products, or of those without batch dimensions (dense layers, but not attention logits, which grow with
# N²).
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def plainly(model: nn.Module) -> nn.Module:
    """Returns the model without `remat` and `scan`, which hide inner modules from Flax. The outputs are the same."""
    if getattr(model, "remat", None) in REMAT:
        model = model.clone(remat="none")
    if getattr(model, "scan", False) is True:
        model = model.clone(scan=False)
    return model


def block_keys(parent: nn.Module, depth: int, train: bool) -> jax.Array | None:
    """One key per block from the module's 'dropout' stream; None without training or without that stream."""
    if not (train and parent.has_rng("dropout")):
        return None
    return jax.random.split(parent.make_rng("dropout"), depth)


def run_blocks(
    parent: nn.Module,
    block: Callable[..., nn.Module],
    names: Sequence[str],
    x: jax.Array,
    *,
    train: bool,
    keys: jax.Array | None,
    path_keys: jax.Array | None,
    rates: Sequence[float],
    remat: str,
    scan: bool,
) -> jax.Array:
    """Applies blocks with equal attributes.

    If the collection `intermediates` is mutable, the blocks run one by one, without remat and scan, because sown values
    need that.

    Args:
      parent: the module whose compact method calls this function. The blocks become its children.
      block: function that makes a block, given `name` or `parent`. A block is called as
        `block(x, train=…, key=…, path_key=…, drop_path=…)` and keeps the shape and dtype of x.
      names: name of each block.
      x: input of the first block.
      train: whether to apply dropout and drop path.
      keys: dropout key of each block; None = no dropout.
      path_keys: drop-path key of each block; None = derived from `keys`.
      rates: drop-path rate of each block.
      remat: what to keep for the backward pass besides the blocks' inputs, a key of `REMAT`.
      scan: compile one block and loop over it.
    """

    def at(values: jax.Array | None, i: int) -> jax.Array | None:
        return None if values is None else values[i]

    if not names:
        return x
    if not (remat != "none" or scan) or parent.is_initializing() or parent.is_mutable_collection("intermediates"):
        for i, name in enumerate(names):
            x = block(name=name)(x, train=train, key=at(keys, i), path_key=at(path_keys, i), drop_path=rates[i])
        return x

    template = block(parent=None)
    params = [parent.variables["params"][name] for name in names]

    def run(x, params, key, path_key, rate) -> jax.Array:
        y = template.apply({"params": params}, x, train=train, key=key, path_key=path_key, drop_path=rate)
        return cast(jax.Array, y)

    if not scan or len(names) == 1:
        for i in range(len(names)):
            # The closure keeps the rate a Python number, so a rate of 0 draws nothing.
            def step(x, params, key, path_key, rate=rates[i]):
                return run(x, params, key, path_key, rate)

            step = jax.checkpoint(step, policy=REMAT[remat]) if remat != "none" else step
            x = step(x, params[i], at(keys, i), at(path_keys, i))
        return x

    noisy = train and any(rates)

    def body(x, inputs):
        params, key, path_key, rate = inputs
        return run(x, params, key, path_key, rate if noisy else 0.0), None

    body = jax.checkpoint(body, prevent_cse=False, policy=REMAT[remat]) if remat != "none" else body
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    x, _ = jax.lax.scan(body, x, (stacked, keys, path_keys, jnp.asarray(rates, jnp.float32)))
    return x
