"""A wrong argument of a public op is one ValueError that names the function, the argument and what is allowed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvit import ops
from jaxvit.ops import implementations
from jaxvit.ops.activations import activation
from jaxvit.ops.arguments import dtype_name
from jaxvit.ops.attention import AttentionKernels
from jaxvit.ops.labels import one_hot

KEY = np.zeros(2, np.uint32)
X, MAP, HEADS = np.ones((2, 16, 8), np.float32), np.ones((2, 4, 4, 8), np.float32), np.ones((2, 5, 3, 4), np.float32)
KERNELS = AttentionKernels(*[np.ones((8, 2, 4), np.float32)] * 3, np.ones((2, 4, 8)), np.zeros(8))
LOGITS = np.ones((2, 3, 16), np.float32)

WRONG = [
    (
        lambda: ops.attend(HEADS, HEADS, HEADS, dropout_rate=1.5),
        "attend: dropout_rate=1.5 must be a number from 0 to 1",
    ),
    (lambda: ops.attend(X, HEADS, HEADS), r"attend: q_BNMD must have shape \(B, N, M, D\), not \(2, 16, 8\)"),
    (lambda: ops.attend(HEADS, HEADS, HEADS[:, :4]), r"attend: queries .* must be"),
    (lambda: ops.attend_absorbed(X, X, KERNELS, dtype="int8"), "attend_absorbed: dtype='int8' must be 'float32', "),
    (lambda: ops.attend_absorbed(X, X[..., :4], KERNELS), "attend_absorbed: kernels for 8 and 8 channels do not fit"),
    (lambda: ops.attend_absorbed(X, X, KERNELS, dropout_rate=-0.1), "attend_absorbed: dropout_rate=-0.1 must be"),
    (lambda: ops.drop_path(X, 1.0, KEY), "drop_path: rate=1.0 must be a number that is at least 0 and below 1"),
    (lambda: ops.drop_path(X, 0.5, None), "drop_path: a positive rate needs a random key"),
    (lambda: ops.drop_path_rates(0.1, -1), "drop_path_rates: depth=-1 must be a whole number, 0 or more"),
    (lambda: ops.drop_path_rates(2.0, 3), "drop_path_rates: rate=2.0 must be"),
    (lambda: ops.dropout(X, 1.5, KEY), "dropout: rate=1.5 must be a number from 0 to 1"),
    (lambda: ops.dropout(X, float("nan"), KEY), "dropout: rate=nan must be a number from 0 to 1"),
    (lambda: ops.dropout(X, 0.5, None), "dropout: a positive rate needs a random key"),
    (lambda: ops.dropout(np.ones(3, np.int32), 0.5, KEY), "dropout: x must have a floating dtype, not int32"),
    (lambda: ops.fuse_tokens(X, X), r"fuse_tokens: tokens .* must be \(B, S, C\) and \(B, N, S\)"),
    (lambda: ops.gelu(np.ones(3, np.int32)), "gelu: x must have a floating dtype, not int32"),
    (lambda: ops.image_to_patches(MAP, patch=0), "patch=0 must be a whole number, 1 or more"),
    (lambda: ops.image_to_patches(X, patch=2), r"image_to_patches: x_BHWC must have shape \(B, H, W, C\)"),
    (lambda: ops.image_to_patches(MAP, patch=3), "patch=3 does not divide an image of 4x4 pixels"),
    (lambda: ops.mask_borders(MAP, groups=3), "mask_borders: groups=3 must be a whole number, 4 or more"),
    (lambda: ops.max_pool(MAP, window=0), "max_pool: window=0 must be a whole number, 1 or more"),
    (lambda: ops.max_pool(MAP, stride=0), "max_pool: stride=0 must be a whole number, 1 or more"),
    (lambda: ops.max_pool(MAP, padding="VALID"), "max_pool: padding='VALID' must be 'SAME' or"),
    (lambda: ops.max_pool(MAP, padding=((3, 0), (0, 0))), "max_pool: window=3 does not fit maps"),
    (lambda: ops.max_pool(X), "max_pool: x_BHWC must have shape"),
    (lambda: ops.compose_places(X, X[0]), r"compose_places: first_BN must have shape \(B, N\)"),
    (lambda: ops.merge_tokens(X, X[:, :4], 1), "merge_tokens: keys .* do not fit tokens"),
    (lambda: ops.merge_tokens(X, X, 9), "merge_tokens: r=9 "),
    (lambda: ops.most_merged(-1), "most_merged: tokens=-1 must be a whole number, 0 or more"),
    (lambda: ops.prune_tokens(X, X[..., 0], 17), "prune_tokens: keep=17 is more than the 16 tokens"),
    (lambda: ops.size_bias(X), r"size_bias: sizes_BN must have shape \(B, N\)"),
    (lambda: ops.token_scores("size", X), "token_scores: by='size' must be 'attention', "),
    (lambda: ops.unmerge_tokens(X, X), r"unmerge_tokens: places_BN must have shape \(B, N\)"),
    (lambda: ops.mimetic_attention(KEY, 8, 0, 4), "mimetic_attention: heads=0 must be a whole number, 1 or more"),
    (lambda: ops.patch_grid(8, 8, 9), "patch=9 does not fit an image of 8x8 pixels"),
    (lambda: ops.patch_grid(8, 8, 2.0), "patch_grid: patch=2.0 must be a whole number, 1 or more"),
    (lambda: ops.patches_to_image(MAP, patch=3), "patches_to_image: 8 values per patch are not 3x3 pixels"),
    (lambda: ops.patches_to_image(MAP, patch=0), "patches_to_image: patch=0 must be"),
    (
        lambda: ops.pool_tokens(X, LOGITS, weighting="max"),
        "token_weights: weighting='max' must be 'softmax' or 'sigmoid'",
    ),
    (
        lambda: ops.pool_tokens(X, LOGITS, weighting="softmax", reduce="max"),
        "pool_tokens: reduce='max' must be 'sum' or",
    ),
    (lambda: ops.pool_tokens(X, X, weighting="softmax"), r"pool_tokens: tokens .* must be \(B, N, C\) and \(B, S, N\)"),
    (
        lambda: ops.resize_positions(X[0], source=(4, 0), target=(2, 2)),
        r"resize_positions: source=\(4, 0\) must be a pair",
    ),
    (
        lambda: ops.resize_positions(X[0], source=(4, 4), target=(2, 2), method="area"),
        "resize_positions: method='area'",
    ),
    (lambda: ops.resize_positions(X[0], source=(3, 4), target=(2, 2)), "table of 16 positions does not hold 0 \\+ 3x4"),
    (lambda: ops.shift_channels(MAP, groups=9), "shift_channels: groups=9 must not exceed the 8 channels"),
    (
        lambda: ops.shift_channels(MAP, groups=4, pixels=-1),
        "shift_channels: pixels=-1 must be a whole number, 0 or more",
    ),
    (lambda: ops.sincos_positions((2, 2), 10), "sincos_positions: channels=10 must be a multiple of 4"),
    (lambda: ops.sincos_positions((2,), 8), r"sincos_positions: grid=\(2,\) must be a pair"),
    (lambda: ops.sine_positions(0, 8), "sine_positions: length=0 must be a whole number, 1 or more"),
    (lambda: ops.token_weights(LOGITS, weighting="Softmax"), "token_weights: weighting='Softmax' must be"),
    (lambda: ops.token_weights(LOGITS, weighting="softmax", mask_BN=X), r"token_weights: a mask of shape \(2, 16, 8\)"),
    (lambda: ops.whitening_filters(np.eye(3), eps=0.0), "whitening_filters: eps=0.0 must be a finite number above 0"),
    (lambda: ops.whitening_filters(np.ones((2, 3))), r"whitening_filters: moments_PP must have shape \(P, P\)"),
    (lambda: one_hot(np.array([1]), 4, smoothing=1.2), "one_hot: smoothing=1.2 must be a number from 0 to 1"),
    (lambda: one_hot(np.array([1]), 0), "one_hot: classes=0 must be a whole number, 1 or more"),
    (lambda: activation("swish"), "activation: name='swish' must be 'gelu', 'gelu_tanh', 'relu' or 'tanh'"),
    (lambda: activation(jax.nn.relu), "activation: name=<function relu> must be 'gelu', "),
]


@pytest.mark.parametrize(("call", "sentence"), WRONG, ids=[sentence[:40] for _, sentence in WRONG])
def test_wrong_argument(call, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        jax.eval_shape(call)
    assert "\n" not in str(raised.value)


def test_every_public_op_is_in_the_table():
    covered = {name for call, _ in WRONG for name in call.__code__.co_names}
    assert {name for name in ops.__all__ if not isinstance(getattr(ops, name), type)} <= covered


def test_a_dtype_may_be_a_name_or_a_type():
    for dtype in ("bfloat16", jnp.bfloat16, np.dtype("bfloat16")):
        assert dtype_name("Mlp", dtype) == "bfloat16"
    for dtype in ("float", "float33", jnp.int32, None, 3):
        with pytest.raises(ValueError, match=r"Mlp: dtype=.* must be 'float32', 'bfloat16' or 'float16'"):
            dtype_name("Mlp", dtype)


def test_max_pooling_has_all_derivatives():
    """Forward, reverse, forward over reverse and reverse over reverse, alone and under vmap, against reduce-window."""
    x, t = (np.random.default_rng(seed).normal(size=(2, 7, 6, 3)).astype(np.float32) for seed in (0, 1))

    def loss(x):
        return jnp.sum(jnp.sin(ops.max_pool(x)) ** 2)

    def derivatives(x, t):
        _, forward = jax.jvp(ops.max_pool, (x,), (t,))
        gradient, forward_of_reverse = jax.jvp(jax.grad(loss), (x,), (t,))
        reverse_of_reverse = jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), t))(x)
        by_image = jax.vmap(jax.grad(lambda x: loss(x[None])))(x)
        return forward, gradient, by_image, forward_of_reverse, reverse_of_reverse

    with implementations.use({"max_pool": "window"}):
        forward, gradient, _, second, _ = jax.jit(derivatives)(x, t)
    with implementations.use({"max_pool": "slices"}):
        got = jax.jit(derivatives)(x, t)
    for value, want in zip(got, (forward, gradient, gradient, second, second), strict=True):
        np.testing.assert_allclose(value, want, atol=1e-5)
