"""Learning-rate schedule, optimizer and EMA of the weights, built from optax; Muon is in `muon.py`.

There are two definitions of weight decay, and published results use both:

- `lr_scaled`: ``w -= lr(t) · decay · w`` (Loshchilov and Hutter 2019), as in optax, PyTorch and Keras 3;
- `independent`: ``w -= decay · w`` at every learning rate, as in tensorflow-addons' AdamW, which most of the tutorials
  use. At a learning rate of 1e-3, the same value decays a thousand times faster.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath

from jaxvit.errors import UsageError
from jaxvit.ops.trees import Params
from jaxvit.training.frozen import clip_active, groups_of, is_frozen, starts_at
from jaxvit.training.muon import scale_by_muon_and_adam
from jaxvit.training.own_optim import own_optimizer, own_schedule
from jaxvit.training.settings import OptimizerSettings

# Names that give a part its layer in `layer_factors`: numbered parts, and the parts before the first block.
_NUMBERED = re.compile(r"^(stages|merges|block|blocks|layers|token_learner|token_fuser)_(\d+)$")
_FIRST_LAYER = ("embed", "class_token", "position_embed", "register_tokens", "norm_stem")


def make_schedule(settings: OptimizerSettings) -> optax.Schedule:
    """Makes the learning-rate schedule, a function of the step.

    It rises linearly from `start_lr` at step 0 to `peak_lr` at step `warmup_steps`, then decays, by half a cosine or
    linearly, to `end_lr` at step `total_steps - cooldown_steps`, and stays there. 'constant' stays at `peak_lr` until
    the cooldown, and decays linearly to `end_lr` in it. 'package.module:function' is the user's own schedule, which
    ignores all of this; see `jaxvit.training.own_optim`.
    """
    s = settings
    if ":" in s.schedule:
        return own_schedule(s)
    length = s.total_steps - s.warmup_steps - s.cooldown_steps
    if s.schedule == "constant":
        parts = [optax.constant_schedule(s.peak_lr), optax.linear_schedule(s.peak_lr, s.end_lr, s.cooldown_steps)]
        after = optax.join_schedules(parts, [length]) if s.cooldown_steps else parts[0]
    elif length == 0:
        after = optax.constant_schedule(s.end_lr)
    elif s.schedule == "linear":
        after = optax.linear_schedule(s.peak_lr, s.end_lr, length)
    else:
        floor = s.end_lr / s.peak_lr if s.peak_lr else 0.0
        after = optax.cosine_decay_schedule(s.peak_lr, length, alpha=floor)
    if not s.warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(s.start_lr, s.peak_lr, s.warmup_steps), after], [s.warmup_steps])


def decay_mask(params: Params, which: str) -> Mapping[str, object]:
    """Returns a tree with True for each parameter that weight decay applies to.

    Args:
      params: parameter tree.
      which: 'all'; 'kernels' = parameters named ``kernel``: matrices and convolution kernels, but not biases, norms,
        position tables and learned tokens; or 'not_1d' = all arrays of two or more axes except biases: kernels,
        position tables, class tokens, registers and queries of poolings. Attention biases (heads, head_dim) are vectors
        in PyTorch, so they do not decay. 'not_1d' is the rule of timm's ``create_optimizer_v2`` for models without
        exceptions, and so of the Compact Transformers recipe.
    """

    def decays(path: KeyPath, value: jax.Array) -> bool:
        name = _names(path)[-1]
        if which == "not_1d":
            return jnp.ndim(value) > 1 and name != "bias"
        return which == "all" or name == "kernel"

    return jax.tree_util.tree_map_with_path(decays, params)


def layer_factors(params: optax.Params, decay: float) -> Mapping[str, object]:
    """Returns each parameter's learning-rate factor, ``decay ** (layers above it)`` (Clark et al., 2020; BEiT).

    Layer 0 is the patch embedding, the positions and the class token. The blocks follow in the order of the numbers in
    their names: a TokenLearner or TokenFuser belongs to its block, and ``merges_0`` follows the blocks of ``stages_0``.
    The last layer is the final norm, the pooling and the head, with factor 1.

    Raises:
      UsageError: no part of the model has a number in its name.
    """

    def place(names: tuple[str, ...]) -> tuple[float, ...]:
        if names[0] in _FIRST_LAYER:
            return (0,)
        found = [match for name in names[:2] if (match := _NUMBERED.match(name))]
        # A merge follows all blocks of its stage.
        numbers = [part for match in found for part in (int(match[2]), *[math.inf] * (match[1] == "merges"))]
        return (1, *numbers) if numbers else (2,)

    places = {names: place(names) for path, _ in jax.tree_util.tree_leaves_with_path(params) if (names := _names(path))}
    if not any(len(where) > 1 for where in places.values()):
        raise UsageError(
            f"config.optim.layer_decay={decay}: no part of this model has a number in its name, such as block_0 or "
            "layers_0, so there are no layers to tell apart; set it to 1.0"
        )
    order = {where: i for i, where in enumerate(sorted({*places.values(), (0,), (2,)}))}
    return jax.tree_util.tree_map_with_path(
        lambda path, _: decay ** (order[(2,)] - order[places[_names(path)]]), params
    )


def make_optimizer(settings: OptimizerSettings) -> optax.GradientTransformation:
    """Makes the optimizer: clipping by the global norm, moments, weight decay, layer-wise factors, learning rate.

    The user's own optimizer, 'package.module:function', replaces everything between clipping and layer-wise factors.
    Frozen parameters (`freeze`) have no moments and do not change, and the clipped norm is without them. With
    `head_first_steps`, the same holds for all parameters but the head's before that step; their moments begin there.
    """
    s = settings
    parts = [_clipping(s)] if s.clip_norm else []
    if ":" in s.name:
        parts.append(_by_group(s, lambda: own_optimizer(s, make_schedule(s))))
        return optax.chain(*parts, *([_scale_by_layer(s.layer_decay)] if s.layer_decay != 1.0 else []))

    if s.freeze or s.head_first_steps:
        parts.append(_by_group(s, lambda: optax.chain(*_moments_and_decay(s))))
    else:  # not nested: so checkpoints of older runs store it
        parts += _moments_and_decay(s)
    if s.layer_decay != 1.0:
        parts.append(_scale_by_layer(s.layer_decay))
    parts.append(optax.scale_by_learning_rate(make_schedule(s)))
    if s.weight_decay and s.decay == "independent":
        parts.append(_by_group(s, lambda: optax.add_decayed_weights(-s.weight_decay, mask=_mask(s))))
    return optax.chain(*parts)


def _moments_and_decay(s: OptimizerSettings) -> list[optax.GradientTransformation]:
    """The moments of the named optimizer, and the weight decay that the learning rate scales."""
    parts: list[optax.GradientTransformation] = []
    if s.name in ("adamw", "adam"):
        parts.append(optax.scale_by_adam(b1=s.b1, b2=s.b2, eps=s.eps))
    elif s.name == "muon":
        parts.append(scale_by_muon_and_adam(s))
    elif s.name == "lion":
        parts.append(optax.scale_by_lion(b1=s.b1, b2=s.b2))
    elif s.momentum:
        parts.append(optax.trace(decay=s.momentum))
    if s.weight_decay and s.decay == "lr_scaled":
        parts.append(optax.add_decayed_weights(s.weight_decay, mask=_mask(s)))
    return parts


def _mask(s: OptimizerSettings) -> Callable[[Params], Mapping[str, object]]:
    return lambda params: decay_mask(params, s.decay_mask)


def _clipping(s: OptimizerSettings) -> optax.GradientTransformation:
    plain = not (s.freeze or s.head_first_steps)
    return optax.clip_by_global_norm(s.clip_norm) if plain else clip_active(s.clip_norm, s.freeze, s.head_first_steps)


def _by_group(s: OptimizerSettings, make: Callable[[], optax.GradientTransformation]) -> optax.GradientTransformation:
    """Applies a transformation to the trained parameters only; with head first, to the others from that step on."""
    if not (s.freeze or s.head_first_steps):
        return make()
    parts: dict[Hashable, optax.GradientTransformation] = {"frozen": optax.set_to_zero(), "trained": make()}
    if s.head_first_steps:
        parts["later"] = starts_at(make(), s.head_first_steps)
    return optax.partition(parts, lambda params: groups_of(params, s.freeze, head_first=s.head_first_steps > 0))


def average_weights(ema: Params, params: Params, step: jax.Array, decay: float, ramp: bool, freeze: str = "") -> Params:
    """Updates the exponential moving average of the weights.

    Args:
      ema: average before the update; at step 0, the initial weights.
      params: weights after the update.
      step: number of updates before this one, int32.
      decay: decay rate of the average.
      ramp: use ``min(decay, (1 + step) / (10 + step))``, so that short runs forget their initial weights.
      freeze: patterns of frozen parameters, whose average is the parameter itself, without rounding.
    """
    rate = jnp.float32(decay)
    if ramp:
        count = step.astype(jnp.float32)
        rate = jnp.minimum(rate, (1.0 + count) / (10.0 + count))

    def one(path: KeyPath, old: jax.Array, new: jax.Array) -> jax.Array:
        return new if is_frozen(path, freeze) else rate * old + (1.0 - rate) * new

    return jax.tree_util.tree_map_with_path(one, ema, params)


def _scale_by_layer(decay: float) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, f: u * f, updates, layer_factors(updates, decay))
    )


def _names(path: KeyPath) -> tuple[str, ...]:
    return tuple(str(getattr(part, "key", part)) for part in path)
