"""Fixed position tables, and resizing a table to another grid.

The two-dimensional table follows MoCo v3 (Chen et al. 2021, arXiv:2104.02057) as used by Beyer et al. 2022
(arXiv:2205.01580); the one-dimensional one Vaswani et al. 2017 (arXiv:1706.03762) as used by CCT.
"""

import jax
import jax.numpy as jnp
import numpy as np


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

    Args:
      table_NC: prefix + rows * columns positions.
      source, target: (rows, columns) of the table given and wanted; neither has to be square.
      prefix: leading entries that belong to no place (class token); they pass through.
      method: as `jax.image.resize`; smoothed before shrinking (antialias).

    Returns:
      (prefix + target rows * target columns, C), of the dtype given.
    """
    if table_NC.ndim != 2 or table_NC.shape[0] != prefix + source[0] * source[1]:
        raise ValueError(
            f"a table of shape {table_NC.shape} does not hold {prefix} + {source[0]}x{source[1]} positions by channels"
        )
    if source == tuple(target):
        return table_NC
    channels = table_NC.shape[1]
    grid = table_NC[prefix:].reshape(*source, channels)
    grid = jax.image.resize(grid.astype(jnp.float32), (*target, channels), method=method).astype(table_NC.dtype)
    return jnp.concatenate([table_NC[:prefix], grid.reshape(-1, channels)])
