"""Learning-rate schedule and optimizer, made of optax parts.

AdamW (Loshchilov and Hutter, 2019) as optax and Keras 3 define it: the decay is multiplied by the learning rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

Schedule = Callable[[jax.Array | int], jax.Array]


@dataclass(frozen=True)
class OptimizerSettings:
    """What `make_optimizer` needs; lengths in steps, meanings as in the config keys of the same names."""

    schedule: str = "cosine"
    start_lr: float = 0.0
    peak_lr: float = 1e-3
    end_lr: float = 0.0
    warmup_steps: int = 0
    total_steps: int = 1
    weight_decay: float = 0.0
    decay_mask: str = "kernels"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 0.0


def make_schedule(settings: OptimizerSettings) -> Schedule:
    """Learning rate of a step.

    Linear from `start_lr` at step 0 to `peak_lr` at step `warmup_steps`; from there to `end_lr` at `total_steps` by
    half a cosine or a straight line; `end_lr` after it. 'constant' stays at `peak_lr` after the warm-up.
    """
    s = settings
    length = s.total_steps - s.warmup_steps
    if s.schedule == "constant" or length == 0:
        after = optax.constant_schedule(s.peak_lr if s.schedule == "constant" else s.end_lr)
    elif s.schedule == "linear":
        after = optax.linear_schedule(s.peak_lr, s.end_lr, length)
    else:
        floor = s.end_lr / s.peak_lr if s.peak_lr else 0.0
        after = optax.cosine_decay_schedule(s.peak_lr, length, alpha=floor)
    if not s.warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(s.start_lr, s.peak_lr, s.warmup_steps), after], [s.warmup_steps])


def decay_mask(params: Any, which: str, excluded: tuple[str, ...] = ()) -> Any:
    """True for each parameter that weight decay shrinks.

    Args:
      params: parameter tree.
      which: 'all', or 'kernels' = matrices and convolution kernels: whatever is named ``kernel``.
      excluded: path endings that never decay under 'kernels' (a model's ``no_weight_decay()``).
    """

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        if which == "all":
            return True
        name = "/".join(str(getattr(part, "key", part)) for part in path)
        return name.endswith("kernel") and not name.endswith(excluded or ("\0",))

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(settings: OptimizerSettings, no_decay: tuple[str, ...] = ()) -> optax.GradientTransformation:
    """Clipping by the global norm, Adam moments, decoupled weight decay, learning rate: in this order."""
    s = settings
    parts = []
    if s.clip_norm:
        parts.append(optax.clip_by_global_norm(s.clip_norm))
    parts.append(optax.scale_by_adam(b1=s.b1, b2=s.b2, eps=s.eps))
    if s.weight_decay:
        parts.append(
            optax.add_decayed_weights(s.weight_decay, mask=lambda params: decay_mask(params, s.decay_mask, no_decay))
        )
    parts.append(optax.scale_by_learning_rate(make_schedule(s)))
    return optax.chain(*parts)
