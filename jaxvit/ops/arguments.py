"""Checks of arguments.

A wrong value raises one ValueError that names the function or layer, the argument, the value and the allowed values:
``TokenLearner: tokens=0 must be a whole number, 1 or more``.
"""

import numbers
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

# Layers and ops compute in one of these.
DTYPES = ("float32", "bfloat16", "float16")


class Rule(NamedTuple):
    """The allowed values of an argument.

    Attributes:
      allows: whether a value is allowed.
      text: the allowed values in words, to complete "must be …".
    """

    allows: Callable[[object], bool]
    text: str


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def whole(low: int) -> Rule:
    """Whole numbers of `low` or more."""
    return Rule(lambda value: _is_whole(value) and value >= low, f"a whole number, {low} or more")


def number(allows: Callable[[float], bool], text: str) -> Rule:
    """Real numbers for which `allows` is true."""
    return Rule(lambda value: _is_number(value) and allows(value), text)


def one_of(names: Iterable[str]) -> Rule:
    """One of several names."""
    allowed = tuple(names)
    quoted = [repr(name) for name in allowed]
    return Rule(lambda value: isinstance(value, str) and value in allowed, f"{', '.join(quoted[:-1])} or {quoted[-1]}")


def each(rule: Rule) -> Rule:
    """Tuples, or lists, whose elements all follow a rule."""
    return Rule(
        lambda value: isinstance(value, tuple | list) and all(map(rule.allows, value)),
        f"a tuple, each element {rule.text}",
    )


FLAG = Rule(lambda value: isinstance(value, bool), "True or False")
RATE = number(lambda value: 0.0 <= value <= 1.0, "a number from 0 to 1")
PATH_RATE = number(lambda value: 0.0 <= value < 1.0, "a number that is at least 0 and below 1")
POSITIVE = number(lambda value: 0.0 < value < float("inf"), "a finite number above 0")
NOT_NEGATIVE = number(lambda value: 0.0 <= value < float("inf"), "a finite number, 0 or more")
CALLABLE = Rule(callable, "a function or class that makes a layer")
PAIR = Rule(
    lambda value: isinstance(value, tuple | list) and len(value) == 2 and all(_is_whole(v) and v >= 1 for v in value),
    "a pair (rows, columns) of whole numbers, 1 or more",
)


def check(owner: str, name: str, value: object, rule: Rule) -> None:
    """Raises ValueError if a value of the argument `name` of `owner` is not allowed."""
    if not rule.allows(value):
        shown = f"<function {value.__name__}>" if callable(value) and hasattr(value, "__name__") else repr(value)
        raise ValueError(f"{owner}: {name}={shown[:100]} must be {rule.text}")


def check_array(owner: str, name: str, x: jax.Array, axes: str) -> None:
    """Raises ValueError if an array does not have the named axes, such as 'B N C'."""
    if len(x.shape) != len(axes.split()):
        raise ValueError(f"{owner}: {name} must have shape ({', '.join(axes.split())}), not {tuple(x.shape)}")


def check_floating(owner: str, name: str, x: jax.Array) -> None:
    """Raises ValueError if an array is not of a floating dtype."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{owner}: {name} must have a floating dtype, not {x.dtype}")


def dtype_name(owner: str, dtype: DTypeLike) -> str:
    """The name of a dtype to compute in, given as a name, a type or a numpy dtype.

    Raises:
      ValueError: the dtype is not one of `DTYPES`.

    Example:
      >>> dtype_name("Mlp", jnp.bfloat16)
      'bfloat16'
    """
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = ""
    if name not in DTYPES:
        raise ValueError(f"{owner}: dtype={dtype!r} must be {one_of(DTYPES).text}, as a name or a type")
    return name
