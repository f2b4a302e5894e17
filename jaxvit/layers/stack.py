"""Running a stack of equal blocks: one after the other, recomputed in the backward pass, or as one `lax.scan`.

All three are ways to run. Parameters are always made and kept under the blocks' own names; the scan stacks them on the
way in, and gradients come back unstacked. So a checkpoint does not know how it was trained, and since each block gets
its key by number, neither does the noise: the three give the same numbers in training too.

Flax's own `nn.scan` keeps the parameters stacked, and `nn.remat` renames modules and traces `train`; hence this file.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

# Ways to recompute, and what each keeps: everything, nothing, the outputs of all matrix products, or of those without
# batch dimensions (dense layers, but not attention's scores, which grow with the square of the tokens).
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def plainly(model: nn.Module) -> nn.Module:
    """The same numbers, module by module: remat and scan hide modules from whoever wants to look into them."""
    off: dict[str, str | bool] = {}
    if getattr(model, "remat", None) in REMAT:
        off["remat"] = "none"
    if getattr(model, "scan", False) is True:
        off["scan"] = False
    return model.clone(**off) if off else model


def block_keys(parent: nn.Module, depth: int, train: bool) -> jax.Array | None:
    """One key per block from the module's 'dropout' stream, or None where there is no noise to make."""
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
    """Runs equal blocks.

    Args:
      parent: the module in whose compact method this is called; the blocks become its children.
      block: makes a block, given `name` or `parent`. A block is called as
        `block(x, train=…, key=…, path_key=…, drop_path=…)` and keeps the shape and dtype of x.
      names: one per block.
      x: what the first block takes.
      keys, path_keys: one key per block for dropout and for drop path; `path_keys` None = derived from `keys`.
      rates: drop-path rate of each block.
      remat: what is kept for the backward pass besides the blocks' inputs, a key of `REMAT`; the rest is computed
        again.
      scan: compile one block and loop over it.

    Recorded intermediates need the blocks one by one, so `remat` and `scan` wait when they are asked for.
    """

    def at(values, i):
        return None if values is None else values[i]

    if remat not in REMAT:
        raise ValueError(f"remat={remat!r} is not one of {', '.join(REMAT)}")
    if not names:
        return x
    if not (remat != "none" or scan) or parent.is_initializing() or parent.is_mutable_collection("intermediates"):
        for i, name in enumerate(names):
            x = block(name=name)(x, train=train, key=at(keys, i), path_key=at(path_keys, i), drop_path=rates[i])
        return x

    template = block(parent=None)
    params = [parent.variables["params"][name] for name in names]

    def run(x, params, key, path_key, rate):
        return template.apply({"params": params}, x, train=train, key=key, path_key=path_key, drop_path=rate)

    if not scan or len(names) == 1:
        for i in range(len(names)):
            # The rate is closed over: it must stay a Python number, which says "no noise" when it is 0.
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
