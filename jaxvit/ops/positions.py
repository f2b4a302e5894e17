"""Fixed position tables, and resizing a table to another grid.

The two-dimensional table follows MoCo v3 (Chen et al. 2021, arXiv:2104.02057) as used by Beyer et al. 2022
(arXiv:2205.01580); the one-dimensional one Vaswani et al. 2017 (arXiv:1706.03762) as used by CCT.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Each code base's own way to resize a position table, by the name of the code base: (filter, what the two grids share,
# smoothed before shrinking). With 'corners' the centres of their corner cells lie on each other.
RESIZING: dict[str, tuple[str, str, bool]] = {
    "vision_transformer": ("linear", "corners", False),
    "big_vision": ("linear", "corners", False),
    "scenic": ("linear", "corners", False),
    "cct": ("linear", "outlines", False),
    "timm": ("bicubic", "outlines", True),
}
_FILTERS = (
    "nearest",
    "linear",
    "bilinear",
    "trilinear",
    "triangle",
    "cubic",
    "bicubic",
    "tricubic",
    "lanczos3",
    "lanczos5",
)


def sincos_positions(grid: tuple[int, int], channels: int, *, temperature: float = 10_000.0) -> np.ndarray:
    """A two-dimensional sine-cosine table.

    Quarter by quarter, the channels hold sin(x), cos(x), sin(y), cos(y) of the column x and the row y, at frequencies
    from 1 down to 1 / temperature, both included.

    Args:
      grid: (rows, columns).
      channels: a multiple of 4, at least 8 (one frequency has no range to span).
      temperature: ratio of the highest to the lowest frequency.

    Returns:
      (rows * columns, channels) float32, row by row. A numpy array: a constant of the program, not a parameter.
    """
    if channels % 4 or channels < 8:
        raise ValueError(
            f"sincos positions need a number of channels that is a multiple of 4 and at least 8, not {channels}"
        )
    rows, columns = grid
    frequencies = temperature ** -np.linspace(0.0, 1.0, channels // 4)
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    x, y = x.reshape(-1, 1) * frequencies, y.reshape(-1, 1) * frequencies
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)


def sine_positions(length: int, channels: int, *, temperature: float = 10_000.0) -> np.ndarray:
    """A one-dimensional table: sines in the even channels, cosines in the odd ones.

    Returns:
      (length, channels) float32, a constant of the program.
    """
    channel = np.arange(channels)
    angle = np.arange(length)[:, None] / temperature ** (2 * (channel // 2) / channels)
    return np.where(channel % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


def resize_positions(
    table_NC: jax.Array, *, source: tuple[int, int], target: tuple[int, int], prefix: int = 0, method: str = "bicubic"
) -> jax.Array:
    """Resizes a position table to another grid, so that weights can be used at another image or patch size.

    Weights go on best with the way of their own code base, which the name of the code base chooses:

    | method | filter | the two grids share | shrinking |
    |---|---|---|---|
    | 'vision_transformer', 'big_vision', 'scenic' | linear | the centres of their corner cells | takes samples |
    | 'cct' (Compact-Transformers) | linear | their outlines | takes samples |
    | 'timm' | cubic, a = -.5 | their outlines | smooths first |

    The first is `scipy.ndimage.zoom(grid, factors, order=1)`, but for the sizes at which that rounds the last row out
    of the grid and fills it with zeros (32 to 16, say); the second PyTorch's `interpolate(mode='bilinear')`, the third
    its `interpolate(mode='bicubic', antialias=True)`.

    Args:
      table_NC: prefix + rows * columns positions.
      source, target: (rows, columns) of the table given and wanted; neither has to be square.
      prefix: leading entries that belong to no place (class token); they pass through.
      method: a name from the table above, or a method of `jax.image.resize` ('linear', 'bicubic', 'lanczos3', …),
        smoothed before shrinking, with shared outlines. The default is timm's way.

    Returns:
      (prefix + target rows * target columns, C), of the dtype given.

    Raises:
      ValueError: the table does not have the size that is said, or there is no such method (the sentence lists all).

    Example:
      >>> table = resize_positions(jnp.ones((1 + 49, 8)), source=(7, 7), target=(12, 12), prefix=1, method='big_vision')
      >>> table.shape
      (145, 8)
    """
    if table_NC.ndim != 2 or table_NC.shape[0] != prefix + source[0] * source[1]:
        raise ValueError(
            f"a table of shape {table_NC.shape} does not hold {prefix} + {source[0]}x{source[1]} positions by channels"
        )
    if method not in RESIZING and method not in _FILTERS:
        raise ValueError(f"no way to resize positions {method!r}; known: {', '.join((*RESIZING, *_FILTERS))}")
    if tuple(source) == tuple(target):
        return table_NC
    channels = table_NC.shape[1]
    grid = table_NC[prefix:].reshape(*source, channels).astype(jnp.float32)
    kind, shared, antialias = RESIZING.get(method, (method, "outlines", True))
    if shared == "corners":
        grid = _between_corners(_between_corners(grid, target[0], axis=0), target[1], axis=1)
    else:
        grid = jax.image.resize(grid, (*target, channels), method=kind, antialias=antialias)
    return jnp.concatenate([table_NC[:prefix], grid.reshape(-1, channels).astype(table_NC.dtype)])


def _between_corners(x: jax.Array, size: int, *, axis: int) -> jax.Array:
    """Linear interpolation along an axis to another size; the first and the last entry stay what they are."""
    last = x.shape[axis] - 1
    place = np.arange(size) * (last / (size - 1) if size > 1 else 0.0)
    below = np.minimum(place.astype(int), max(last - 1, 0))
    above = np.minimum(below + 1, last)
    share = jnp.expand_dims(jnp.asarray(place - below, x.dtype), [i for i in range(x.ndim) if i != axis])
    return jnp.take(x, below, axis=axis) * (1 - share) + jnp.take(x, above, axis=axis) * share
