"""Which of several ways an operation is computed. All ways of one operation compute the same function.

| operation | plain | the other | fastest on |
|---|---|---|---|
| `attention` | `plain`: queries, keys and values are projected | `absorbed`: key and value kernels are multiplied into the query and output kernels, where heads are at least as wide as the tokens | CPU |
| `max_pool` | `window`: XLA's reduce-window, whose gradient is select-and-scatter | `slices`: comparisons of strided slices | CPU |
| `gelu` | `erfc`: as `jax.nn.gelu` | `erf`: one polynomial, and only the input is kept for the gradient; and `rational`, the same without XLA's erf, for export | all |
| `noise` | `threefry`: jax's own generator | `hash`: a hash of each element's place, in the same pass as what uses it | all |

Without noise all agree up to rounding. `hash` gives other, equally distributed, noise, and so does `absorbed` where the
attention's weights are dropped, since it lays them out otherwise.
docs/performance.md has what was measured.
"""  # noqa: E501

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import jax

WAYS = {
    "attention": ("plain", "absorbed"),
    "max_pool": ("window", "slices"),
    "gelu": ("erfc", "erf", "rational"),
    "noise": ("threefry", "hash"),
}
PLAIN = {operation: ways[0] for operation, ways in WAYS.items()}
_FAST = {"cpu": {operation: ways[1] for operation, ways in WAYS.items()}}
_FAST_ELSEWHERE = {**PLAIN, "gelu": "erf", "noise": "hash"}

# (operation, way), …; a part of what jax goes by when it asks whether a function was traced before.
_chosen = jax.make_user_context(())


@contextlib.contextmanager
def use(ways: str | Mapping[str, str]) -> Iterator[None]:
    """Computes in the ways named, within; inner choices win.

    It is what holds while a function is traced that counts; jax traces a jitted function anew where it is called with
    other ways.

    Args:
      ways: 'fast' = the fastest known for jax's default backend, which is what holds without this; 'plain'; or
        {operation: way}, the others staying as they are.

    Raises:
      ValueError: there is no such operation or way.
    """
    if isinstance(ways, str):
        if ways not in ("fast", "plain"):
            raise ValueError(f"ways={ways!r} is neither 'fast' nor 'plain'")
        chosen = PLAIN if ways == "plain" else {}  # what is not chosen is fast
    else:
        for operation, way in ways.items():
            if way not in WAYS.get(operation, ()):
                raise ValueError(f"there is no way {way!r} of {operation!r}; the ways are {WAYS}")
        chosen = {**dict(_chosen.value), **ways}
    with _chosen(tuple(sorted(chosen.items()))):
        yield


def way(operation: str) -> str:
    """How an operation is to be computed here."""
    chosen = dict(_chosen.value).get(operation)
    return chosen or _FAST.get(jax.default_backend(), _FAST_ELSEWHERE)[operation]
