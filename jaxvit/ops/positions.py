"""Fixed position tables, and resizing a position table to another grid.

The two-dimensional table follows MoCo v3 (Chen et al. 2021, arXiv:2104.02057), as Beyer et al. 2022 (arXiv:2205.01580)
use it. The one-dimensional table follows Vaswani et al. 2017 (arXiv:1706.03762), as CCT uses it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxvit.ops.arguments import PAIR, POSITIVE, check, check_array, one_of, whole

# How each code base resizes position tables: (filter, which points of the two grids coincide, antialiasing). With
# 'corners' the centres of the corner cells coincide, with 'outlines' the outer borders do.
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
    """A two-dimensional sine-cosine position table.

    The four quarters of the channels hold sin(x), cos(x), sin(y) and cos(y), where x is the column and y the row, at
    frequencies from 1 down to 1 / temperature, both included.

    Args:
      grid: (rows, columns), each 1 or more.
      channels: a multiple of 4, 8 or more.
      temperature: ratio of the highest to the lowest frequency, above 0.

    Returns:
      (rows * columns, channels) float32, row by row. A NumPy array, so the table is a constant of the program.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> sincos_positions((14, 14), 192).shape
      (196, 192)
    """
    check("sincos_positions", "grid", grid, PAIR)
    check("sincos_positions", "temperature", temperature, POSITIVE)
    if not whole(8).allows(channels) or channels % 4:
        raise ValueError(f"sincos_positions: channels={channels} must be a multiple of 4, 8 or more")
    rows, columns = grid
    frequencies = temperature ** -np.linspace(0.0, 1.0, channels // 4)
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    x, y = x.reshape(-1, 1) * frequencies, y.reshape(-1, 1) * frequencies
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)


def sine_positions(length: int, channels: int, *, temperature: float = 10_000.0) -> np.ndarray:
    """A one-dimensional position table: sines in the even channels, cosines in the odd ones.

    Args:
      length: number of positions, 1 or more.
      channels: number of channels, 1 or more.
      temperature: ratio of the highest to the lowest frequency, above 0.

    Returns:
      (length, channels) float32. A NumPy array, so the table is a constant of the program.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> sine_positions(2, 2).round(2)
      array([[0.  , 1.  ],
             [0.84, 0.54]], dtype=float32)
    """
    check("sine_positions", "length", length, whole(1))
    check("sine_positions", "channels", channels, whole(1))
    check("sine_positions", "temperature", temperature, POSITIVE)
    channel = np.arange(channels)
    angle = np.arange(length)[:, None] / temperature ** (2 * (channel // 2) / channels)
    return np.where(channel % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


def resize_positions(
    table_NC: jax.Array, *, source: tuple[int, int], target: tuple[int, int], prefix: int = 0, method: str = "bicubic"
) -> jax.Array:
    """Resizes a position table to another grid, to use weights at another image or patch size.

    Pretrained weights lose least if the table is resized as in the code base that trained them:

    | method | filter | what coincides in the two grids | antialiasing |
    |---|---|---|---|
    | 'vision_transformer', 'big_vision', 'scenic' | linear | the centres of the corner cells | no |
    | 'cct' (Compact-Transformers) | linear | the outer borders | no |
    | 'timm' | cubic, a = -.5 | the outer borders | yes |

    The first equals `scipy.ndimage.zoom(grid, factors, order=1)`, except at sizes such as 32 to 16, where rounding
    makes SciPy fill the last row with zeros. The second equals PyTorch's `interpolate(mode='bilinear')`, the third
    PyTorch's `interpolate(mode='bicubic', antialias=True)`.

    Args:
      table_NC: table (prefix + rows * columns, C).
      source: (rows, columns) of the given table, which need not be square.
      target: (rows, columns) of the result.
      prefix: number of leading entries without a place in the grid, such as a class token's. They are kept.
      method: a code base from the table above, or a filter of `jax.image.resize` with antialiasing: 'nearest',
        'linear', 'bilinear', 'trilinear', 'triangle', 'cubic', 'bicubic', 'tricubic', 'lanczos3' or 'lanczos5'.

    Returns:
      (prefix + target rows * target columns, C), of the same dtype.

    Raises:
      ValueError: the table does not have the size of `source`, or the method is unknown.

    Example:
      >>> table = resize_positions(jnp.ones((1 + 49, 8)), source=(7, 7), target=(12, 12), prefix=1, method='big_vision')
      >>> table.shape
      (145, 8)
    """
    check("resize_positions", "source", source, PAIR)
    check("resize_positions", "target", target, PAIR)
    check("resize_positions", "prefix", prefix, whole(0))
    check("resize_positions", "method", method, one_of((*RESIZING, *_FILTERS)))
    check_array("resize_positions", "table_NC", table_NC, "N C")
    if table_NC.shape[0] != prefix + source[0] * source[1]:
        raise ValueError(
            f"resize_positions: a table of {table_NC.shape[0]} positions does not hold {prefix} + "
            f"{source[0]}x{source[1]} positions"
        )
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
    """Interpolates linearly along an axis to another size. The first and last entries keep their values."""
    last = x.shape[axis] - 1
    place = np.arange(size) * (last / (size - 1) if size > 1 else 0.0)
    below = np.minimum(place.astype(int), max(last - 1, 0))
    above = np.minimum(below + 1, last)
    share = jnp.expand_dims(jnp.asarray(place - below, x.dtype), [i for i in range(x.ndim) if i != axis])
    return jnp.take(x, below, axis=axis) * (1 - share) + jnp.take(x, above, axis=axis) * share
