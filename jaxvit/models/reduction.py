"""Gives a model that is already built, or trained, fewer tokens: `reduced`.

No parameter changes, so the weights of the model stay as they are.
"""

import math
from collections.abc import Callable

from flax import linen as nn

from jaxvit.layers.reduction import TokenReduction, parse_reduction
from jaxvit.models.cct import CCT
from jaxvit.models.count import count_macs
from jaxvit.models.shiftvit import ShiftViT
from jaxvit.models.vit import ViT

_STEPS = 1000  # shares of tokens that are tried for prune:macs


def reduced(model: nn.Module, text: str, input_shape: tuple[int, ...]) -> nn.Module:
    """Returns the model with merged or removed tokens.

    Args:
      model: a `jaxvit.models.ViT` or `jaxvit.models.CCT`, which includes ViT-Lite and CVT.
      text: how to reduce, as in 'merge:r=8'; see `jaxvit.layers.reduction`. 'merge:macs=.7' and 'prune:macs=.7' stand
        for the smallest reduction that needs at most 70 % of the multiply-adds of the model without it, counted with
        its own cost.
      input_shape: (H, W, C) of the model's images.

    Raises:
      ValueError: the text is wrong, the model has no tokens to reduce, there are too few of them, or the budget cannot
        be met.

    Example:
      >>> reduced(ViT(dim=32, heads=2, depth=4), "merge:macs=.7", (32, 32, 3)).reduce
      'merge:r=12'
    """
    if isinstance(model, ShiftViT):
        raise ValueError(
            "ShiftViT shifts channels between neighbours on a grid, and merged tokens have no neighbours; reduction is "
            "for ViT, ViT-Lite, CVT and CCT"
        )
    if not isinstance(model, ViT | CCT):
        raise ValueError(f"{type(model).__name__} has no attribute reduce; reduction is for ViT, ViT-Lite, CVT and CCT")
    whole = model.clone(reduce="none")
    reduction = parse_reduction(text)
    if not reduction.macs:
        fewer = whole.clone(reduce=str(reduction))
        count_macs(fewer, input_shape)  # traces it: a block may have too few tokens
        return fewer
    return _within(whole, reduction, input_shape)


def _within(whole: ViT | CCT, reduction: TokenReduction, input_shape: tuple[int, ...]) -> nn.Module:
    """Searches the smallest reduction that meets the budget; the more is removed, the fewer multiply-adds are left."""
    budget = reduction.macs * count_macs(whole, input_shape)["all"]

    def made(amount: int) -> ViT | CCT:
        if reduction.kind == "merge":
            chosen = TokenReduction("merge", r=amount, at=reduction.at)
        else:
            chosen = TokenReduction("prune", keep=1 - amount / _STEPS, at=reduction.at, by=reduction.by)
        return whole.clone(reduce=str(chosen))

    def macs(amount: int) -> float:
        """Multiply-adds; infinite if a block has too few tokens."""
        try:
            return count_macs(made(amount), input_shape)["all"]
        except ValueError:
            return math.inf

    made(1)  # raises ValueError if the blocks do not fit the model
    if reduction.kind == "merge":
        most = _last(lambda amount: macs(amount) < math.inf, 1 << 16)
    else:
        most = _STEPS - 1
    if not most or macs(most) > budget:
        least = macs(most) / (budget / reduction.macs) if most else 1.0
        raise ValueError(
            f"{reduction}: this budget cannot be met; the most reduction possible here leaves {least:.3f} of the "
            "multiply-adds"
        )
    return made(1 + _last(lambda amount: macs(amount) > budget, most))


def _last(holds: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` for which a condition holds that holds for all numbers below it; 0 = for none."""
    low, step = 0, 1
    while low + step <= most and holds(low + step):
        low, step = low + step, 2 * step
    high = min(low + step, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
