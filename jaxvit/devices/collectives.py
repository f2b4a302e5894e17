"""How many bytes the devices exchange in a training step, by formula: an estimate for any number of chips.

The formulas describe the exchange that the shardings ask for and nothing else. `jaxvit.devices.sharding` splits a batch
over all chips, and parameters and optimizer state over the axis `fsdp`. So a step needs:

- without fsdp, the sum of the gradients over all chips: one all-reduce of every parameter;
- with fsdp, each split weight in full for the forward pass and again for the backward pass: two all-gathers; the sum of
  its gradient over the axis `fsdp`, of which each chip keeps its part: a reduce-scatter; and the sum of that part over
  the axis `data`: an all-reduce. Arrays without an axis that `fsdp` divides are as without fsdp.

Metrics and the norm of the gradient add some hundred bytes, which are left out.

The bytes sent are those of ring algorithms, in which each chip sends (n - 1) / n of an array for an all-gather or a
reduce-scatter over n chips, and twice that for an all-reduce (R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of
Collective Communication Operations in MPICH", 2005). No algorithm with point-to-point links sends less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jax
from jax.sharding import AbstractMesh

from jaxvit.devices.sharding import shard_state


@dataclass(frozen=True)
class Exchange:
    """The arrays that a step exchanges by one kind of collective, summed up.

    Attributes:
      bytes: size of the whole arrays: the result of an all-gather, the operand of an all-reduce or reduce-scatter.
      sent: bytes that each chip sends, by a ring algorithm.
    """

    bytes: int = 0
    sent: int = 0


def exchanges(
    shapes: Iterable[Sequence[int]],
    chips: int,
    fsdp: int = 1,
    *,
    compute_bytes: int = 2,
    gradient_bytes: int = 4,
) -> dict[str, Exchange]:
    """Estimates what one training step exchanges between the chips.

    Args:
      shapes: shapes of all parameter arrays, such as of the leaves of `jaxvit.training.state.TrainState.params`.
      chips: number of chips, a multiple of `fsdp`.
      fsdp: number of chips over which the parameters are split; 1 = every chip has all of them.
      compute_bytes: bytes of a number in which weights are gathered: 2 for bfloat16, 4 for float32.
      gradient_bytes: bytes of a number in which gradients are summed.

    Returns:
      {'all_gather': Exchange, 'all_reduce': Exchange, 'reduce_scatter': Exchange}.

    Raises:
      ValueError: a number is not positive, or `fsdp` does not divide `chips`.

    Example:
      >>> exchanges([(768, 3072), (3072,)], chips=8)["all_reduce"]
      Exchange(bytes=9449472, sent=16536576)
      >>> exchanges([(768, 3072)], chips=8, fsdp=8)["all_gather"].bytes
      9437184
    """
    if min(chips, fsdp, compute_bytes, gradient_bytes) < 1 or chips % fsdp:
        raise ValueError(f"chips={chips}, fsdp={fsdp}: both must be positive, and fsdp must divide chips")
    arrays = [jax.ShapeDtypeStruct(tuple(shape), "float32") for shape in shapes]
    placed = shard_state(AbstractMesh((chips // fsdp, fsdp), ("data", "fsdp")), arrays)
    split = sum(math.prod(a.shape) for a, s in zip(arrays, placed, strict=True) if "fsdp" in s.spec)
    whole = sum(math.prod(array.shape) for array in arrays) - split
    data = chips // fsdp
    parts = split // fsdp * gradient_bytes  # bytes of one chip's parts of the gradients
    return {
        "all_gather": Exchange(2 * split * compute_bytes, _ring(2 * split * compute_bytes, fsdp)),
        "all_reduce": Exchange(
            (whole * gradient_bytes if chips > 1 else 0) + (parts if data > 1 else 0),
            2 * _ring(whole * gradient_bytes, chips) + 2 * _ring(parts, data),
        ),
        "reduce_scatter": Exchange(split * gradient_bytes, _ring(split * gradient_bytes, fsdp)),
    }


def _ring(size: int, chips: int) -> int:
    """Bytes that each chip sends for an all-gather or a reduce-scatter of an array of `size` bytes."""
    return size * (chips - 1) // chips
