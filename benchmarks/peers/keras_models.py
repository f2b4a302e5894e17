"""The nine models in Keras 3, for its TensorFlow and its JAX backend.

Written for speed with standard Keras means: built-in layers where they exist, reshapes instead of patch extraction,
masks instead of crops and pads, matrix products for pooling. Layers are named by the path of the same weights in
jaxvit's parameter tree, with dots: `encoder.block_0.attention`.

The models map normalized float images (B, H, W, C) to float32 logits. The global dtype policy sets the precision of the
other layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers, ops

Tensor = Any  # a symbolic or real tensor of the backend

_exact_gelu = partial(keras.activations.gelu, approximate=False)
_tanh_gelu = partial(keras.activations.gelu, approximate=True)


class PositionTable(layers.Layer):
    """Adds learned position embeddings to tokens (B, N, C)."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        start = keras.initializers.RandomUniform(-0.05, 0.05)
        self.table = self.add_weight(name="table", shape=input_shape[1:], initializer=start)

    def call(self, tokens: Tensor) -> Tensor:
        return tokens + self.table


class PathDraw(layers.Layer):
    """One uniform random number per sample, of rank 4; zeros outside training."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.noise = keras.random.SeedGenerator(1337)

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        shape = (ops.shape(x)[0], 1, 1, 1)
        return keras.random.uniform(shape, seed=self.noise) if training else ops.zeros(shape)


class DropPath(layers.Layer):
    """Drop path for a branch (B, …), with random numbers from `PathDraw` or its own."""

    def __init__(self, rate: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.keep = 1.0 - rate
        self.noise = keras.random.SeedGenerator(1337)

    def call(self, x: Tensor, drawn: Tensor | None = None, training: bool = False) -> Tensor:
        if not training:
            return x
        if drawn is None:
            drawn = keras.random.uniform((ops.shape(x)[0],) + (1,) * (len(x.shape) - 1), seed=self.noise)
        kept = ops.floor(self.keep + ops.cast(drawn, "float32")) / self.keep
        return x * ops.cast(kept, x.dtype)


class BorderMask(layers.Layer):
    """Sets one border row or column to zero in each of the first four channel groups of a map."""

    def __init__(self, group: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.group = group

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        mask = np.ones(input_shape[1:], np.float32)
        g = self.group
        mask[:, -1, :g] = mask[:, 0, g : 2 * g] = mask[-1, :, 2 * g : 3 * g] = mask[0, :, 3 * g : 4 * g] = 0
        self.mask = mask

    def call(self, x: Tensor) -> Tensor:
        return x * ops.convert_to_tensor(self.mask, x.dtype)


def _norm(name: str, epsilon: float) -> layers.Layer:
    return layers.LayerNormalization(epsilon=epsilon, name=name)


def _patches(images: Tensor, patch: int) -> Tensor:
    """Cuts (B, H, W, C) into patches (B, N, patch² C), without incomplete ones."""
    _, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    x = images[:, : rows * patch, : columns * patch]
    x = ops.reshape(x, (-1, rows, patch, columns, patch, channels))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, rows * columns, patch * patch * channels))


def _mlp(x: Tensor, name: str, hidden: int, activation: Callable, *, twice: bool, dropout: float) -> Tensor:
    """MLP on the last axis: dense, activation, dense; `twice` = also an activation after the second dense layer."""
    out = x.shape[-1]
    x = layers.Dense(hidden, activation=activation, name=f"{name}.dense_0")(x)
    x = layers.Dropout(dropout)(x) if dropout else x
    x = layers.Dense(out, activation=activation if twice else None, name=f"{name}.dense_1")(x)
    return layers.Dropout(dropout)(x) if dropout else x


def _attention(x: Tensor, name: str, heads: int, head_dim: int, dropout: float = 0.0) -> Tensor:
    return layers.MultiHeadAttention(heads, head_dim, dropout=dropout, name=f"{name}.attention")(x, x)


def _pre_norm_block(
    x: Tensor,
    name: str,
    *,
    heads: int,
    head_dim: int,
    hidden: int,
    activation: Callable,
    epsilon: float,
    drop_path: float = 0.0,
) -> Tensor:
    """The block of the CIFAR models: all dropout rates .1, activation after both dense layers."""

    def dropped(branch: Tensor) -> Tensor:
        return DropPath(drop_path)(branch) if drop_path else branch

    y = _norm(f"{name}.norm_attention", epsilon)(x)
    x = x + dropped(_attention(y, name, heads, head_dim, dropout=0.1))
    y = _norm(f"{name}.norm_mlp", epsilon)(x)
    return x + dropped(_mlp(y, f"{name}.mlp", hidden, activation, twice=True, dropout=0.1))


def _learn_tokens(
    x: Tensor, name: str, tokens: int, *, convs: int, activation: Callable, epsilon: float | None
) -> Tensor:
    """TokenLearner on a square map: (B, N, C) to (B, tokens, C); with a norm if `epsilon` is given."""
    _, places, channels = x.shape
    side = round(places**0.5)
    maps = x if epsilon is None else _norm(f"{name}.norm", epsilon)(x)
    maps = ops.reshape(maps, (-1, side, side, channels))
    for i in range(convs):
        last = i == convs - 1
        maps = layers.Conv2D(
            tokens,
            3,
            padding="same",
            use_bias=False,
            activation="sigmoid" if last else activation,
            name=f"{name}.conv_{i}",
        )(maps)
    weights = ops.transpose(ops.reshape(maps, (-1, places, tokens)), (0, 2, 1)) / places
    return ops.matmul(weights, x)


def _logits(x: Tensor, classes: int) -> Tensor:
    return layers.Dense(classes, dtype="float32", name="head.logits")(x)


def _fashion(learned: bool) -> keras.Model:
    inputs = layers.Input((28, 28, 1))
    x = _norm("embed.norm", 1e-3)(_patches(inputs, 5))
    x = layers.Dense(128, name="embed.projection")(x)
    x = PositionTable(name="position_embed")(x)
    for i in range(4):
        if learned and i == 2:
            x = _learn_tokens(x, "encoder.token_learner_2", 4, convs=5, activation=_exact_gelu, epsilon=None)
        name = f"encoder.block_{i}"
        norm = _norm(f"{name}.norm_shared", 1e-3)
        x = norm(x + _attention(x, name, 3, 128))
        x = norm(x + _mlp(x, f"{name}.mlp", 100, ops.relu, twice=False, dropout=0.0))
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dense(150, activation="relu", name="head.hidden_0")(x)
    return keras.Model(inputs, _logits(x, 4))


def _mini(depth: int = 4, tokens: int = 0) -> keras.Model:
    inputs = layers.Input((48, 48, 3))
    x = layers.Conv2D(128, 6, strides=6, name="embed.projection")(inputs)
    x = PositionTable(name="position_embed")(ops.reshape(x, (-1, 64, 128)))
    x = layers.Dropout(0.1)(x)
    for i in range(depth):
        if tokens and i == 3:
            x = _learn_tokens(x, "encoder.token_learner_3", tokens, convs=4, activation=_tanh_gelu, epsilon=1e-6)
        x = _pre_norm_block(
            x, f"encoder.block_{i}", heads=4, head_dim=128, hidden=256, activation=_tanh_gelu, epsilon=1e-6
        )
    x = layers.GlobalAveragePooling1D()(_norm("norm", 1e-6)(x))
    return keras.Model(inputs, _logits(x, 10))


def _cifar100() -> keras.Model:
    inputs = layers.Input((72, 72, 3))
    x = layers.Dense(64, name="embed.projection")(_patches(inputs, 6))
    x = PositionTable(name="position_embed")(x)
    for i in range(8):
        x = _pre_norm_block(
            x, f"encoder.block_{i}", heads=4, head_dim=64, hidden=128, activation=_exact_gelu, epsilon=1e-6
        )
    x = layers.Dropout(0.5)(layers.Flatten()(_norm("norm", 1e-6)(x)))
    for i, size in enumerate((2048, 1024)):
        x = layers.Dense(size, activation=_exact_gelu, name=f"head.hidden_{i}")(x)
        x = layers.Dropout(0.5)(x)
    return keras.Model(inputs, _logits(x, 100))


def _shiftvit() -> keras.Model:
    inputs = layers.Input((48, 48, 3))
    x = layers.Conv2D(96, 4, strides=4, name="embed.projection")(inputs)
    drawn = PathDraw()(x)  # shared by the whole network
    for stage, depth in enumerate((2, 4, 8, 2)):
        if stage:
            x = _norm(f"merges_{stage - 1}.norm", 1e-5)(x)
            name = f"merges_{stage - 1}.merge"
            x = layers.Conv2D(2 * x.shape[-1], 2, strides=2, padding="same", use_bias=False, name=name)(x)
        for i, rate in enumerate(np.linspace(0.0, 0.2, depth)):
            name = f"stages_{stage}.block_{i}"
            x = BorderMask(12)(x)
            y = _norm(f"{name}.norm", 1e-5)(x)
            y = _mlp(y, f"{name}.mlp", 2 * x.shape[-1], _exact_gelu, twice=False, dropout=0.2)
            x = x + (DropPath(float(rate))(y, drawn) if rate else y)
    return keras.Model(inputs, _logits(layers.GlobalAveragePooling2D()(x), 10))


def _cct() -> keras.Model:
    inputs = x = layers.Input((32, 32, 3))
    for i, width in enumerate((64, 128)):
        x = layers.Conv2D(
            width, 3, use_bias=False, activation="relu", kernel_initializer="he_normal", name=f"embed.conv_{i}"
        )(x)
        x = layers.MaxPooling2D(3, 2, padding="same")(layers.ZeroPadding2D(1)(x))
    x = PositionTable(name="position_embed")(ops.reshape(x, (-1, 64, 128)))
    for i, rate in enumerate((0.0, 0.1)):
        x = _pre_norm_block(
            x,
            f"encoder.block_{i}",
            heads=2,
            head_dim=128,
            hidden=128,
            activation=_exact_gelu,
            epsilon=1e-5,
            drop_path=rate,
        )
    x = _norm("norm", 1e-5)(x)
    weights = layers.Dense(1, name="pooling.sequence_pool.score")(x)
    weights = layers.Softmax(axis=1, dtype="float32")(weights)
    x = ops.matmul(ops.cast(ops.transpose(weights, (0, 2, 1)), x.dtype), x)
    return keras.Model(inputs, _logits(layers.Flatten()(x), 10))


MODELS: dict[str, Callable[[], keras.Model]] = {
    "tutorial_fashion_vit": partial(_fashion, learned=False),
    "tutorial_fashion_fast_vit": partial(_fashion, learned=True),
    "tutorial_mini_vit": _mini,
    "tutorial_mini_vit_8l": partial(_mini, depth=8),
    "tutorial_mini_vit_tl4": partial(_mini, tokens=4),
    "tutorial_mini_vit_tl8": partial(_mini, tokens=8),
    "tutorial_vit_cifar100": _cifar100,
    "tutorial_shiftvit": _shiftvit,
    "tutorial_cct": _cct,
}


def make_model(name: str) -> keras.Model:
    """Creates a model by name, initialized by Keras."""
    return MODELS[name]()
