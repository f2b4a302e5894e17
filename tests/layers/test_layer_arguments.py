"""Layers refuse wrong attributes by name, take a dtype as a name or a type, and have forward-mode derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvit import layers
from jaxvit.layers import (
    Attention,
    AttentionPool,
    Classifier,
    ConvTokenizer,
    Downsample,
    Encoder,
    EncoderBlock,
    Mlp,
    Norm,
    PatchEmbed,
    Pool,
    PositionEmbed,
    PrefixTokens,
    SequencePool,
    ShiftBlock,
    ShiftStage,
    TokenFuser,
    TokenLearner,
)
from jaxvit.ops import implementations

TOKENS, MAP, IMAGE = jnp.ones((2, 16, 8)), jnp.ones((2, 4, 4, 8)), jnp.ones((2, 8, 8, 3))
TRAIN = {"train": True}

# A small layer of each kind, its inputs, and the keywords of a call.
CALLS = {
    "Attention": (partial(Attention, heads=2, dropout=0.1), (TOKENS,), TRAIN),
    "AttentionPool": (partial(AttentionPool, heads=2), (TOKENS,), TRAIN),
    "Classifier": (partial(Classifier, num_classes=3, hidden=(4,), dropout=0.1), (TOKENS[:, 0],), TRAIN),
    "ConvTokenizer": (partial(ConvTokenizer, dim=8), (IMAGE,), {}),
    "Downsample": (Downsample, (MAP,), {}),
    "Encoder": (
        partial(Encoder, block=partial(EncoderBlock, heads=2), depth=2, drop_path=0.1, remat="full", scan=True),
        (TOKENS,),
        TRAIN,
    ),
    "EncoderBlock": (partial(EncoderBlock, heads=2, mlp_dropout=0.1), (TOKENS,), {**TRAIN, "drop_path": 0.1}),
    "Mlp": (partial(Mlp, hidden=4, dropout=0.1), (TOKENS,), TRAIN),
    "Norm": (Norm, (TOKENS,), {}),
    "PatchEmbed": (partial(PatchEmbed, dim=8, patch=4), (IMAGE,), {}),
    "Pool": (partial(Pool, kind="attention"), (TOKENS,), TRAIN),
    "PositionEmbed": (PositionEmbed, (TOKENS,), {"grid": (4, 4)}),
    "PrefixTokens": (PrefixTokens, (TOKENS,), {}),
    "SequencePool": (SequencePool, (TOKENS,), {}),
    "ShiftBlock": (partial(ShiftBlock, divisions=4), (MAP,), {**TRAIN, "drop_path": 0.1}),
    "ShiftStage": (partial(ShiftStage, block=partial(ShiftBlock, divisions=4), drop_path=(0.0, 0.1)), (MAP,), TRAIN),
    "TokenFuser": (partial(TokenFuser, dropout=0.1), (TOKENS[:, :3], MAP), TRAIN),
    "TokenLearner": (partial(TokenLearner, tokens=3, kind="v1"), (MAP,), TRAIN),
}
ROOT = {"params": jax.random.key(0, impl="unsafe_rbg"), "dropout": jax.random.key(1, impl="unsafe_rbg")}

WHOLE, RATE = "must be a whole number, 1 or more", "must be a number from 0 to 1"
NAMED = {
    "activation": "must be 'gelu', 'gelu_tanh', 'relu' or 'tanh'",
    "dtype": "must be 'float32', 'bfloat16' or 'float16'",
    "initialiser": "must be 'vit', 'big_vision', ",
    "norm_eps": "must be a finite number, 0 or more",
}
# Attributes that many layers have; each layer is tried with those that it has.
COMMON = [
    ("activation", "swish", NAMED["activation"]),
    ("activation", jax.nn.relu, NAMED["activation"]),
    ("dtype", "int8", NAMED["dtype"]),
    ("dtype", jnp.int32, NAMED["dtype"]),
    ("initialiser", "he", NAMED["initialiser"]),
    ("norm_eps", -1e-6, NAMED["norm_eps"]),
    ("dropout", 1.5, RATE),
    ("mlp_dropout", -0.1, RATE),
    ("heads", 0, WHOLE),
    ("heads", 2.5, WHOLE),
    ("head_dim", -1, "must be a whole number, 0 or more"),
    ("mlp_dim", -4, "must be a whole number, 0 or more"),
    ("dim", 0, WHOLE),
    ("hidden", 0, "must be a "),
    ("tokens", 0, WHOLE),
    ("tokens", -1, WHOLE),
    ("remat", "some", "must be 'none', 'full', 'dots' or 'dots_no_batch'"),
    ("scan", "yes", "must be True or False"),
    ("block", 3, "must be a function or class that makes a layer"),
]
OWN = [
    ("Attention", {"qkv_bias": "no"}, "Attention: qkv_bias='no' must be True or False"),
    ("Attention", {"heads": 3}, "Attention: heads=3 does not divide 8 channels: change heads or set head_dim"),
    ("AttentionPool", {"heads": 3}, "heads=3 does not divide 8 channels"),
    ("Classifier", {"num_classes": 0}, "Classifier: num_classes=0 must be a whole number, 1 or more"),
    ("Classifier", {"hidden": (4, 0)}, r"Classifier: hidden=\(4, 0\) must be a tuple, each element a whole number"),
    ("Classifier", {"input_dropout": 2.0}, "Classifier: input_dropout=2.0 must be a number from 0 to 1"),
    ("ConvTokenizer", {"layers": 0}, "ConvTokenizer: layers=0 must be"),
    ("ConvTokenizer", {"width": -1}, "ConvTokenizer: width=-1 must be"),
    ("ConvTokenizer", {"kernel": 0}, "ConvTokenizer: kernel=0 must be"),
    ("ConvTokenizer", {"stride": -1}, "ConvTokenizer: stride=-1 must be a whole number, 0 or more"),
    ("Downsample", {"padding": "FULL"}, "Downsample: padding='FULL' must be 'VALID' or 'SAME'"),
    ("Downsample", {"norm": "batch"}, "Downsample: norm='batch' must be 'channels' or 'sample'"),
    ("Encoder", {"depth": -1}, "Encoder: depth=-1 must be a whole number, 0 or more"),
    ("Encoder", {"drop_path": 1.0}, "Encoder: drop_path=1.0 must be a number that is at least 0 and below 1"),
    ("Encoder", {"learner": TokenLearner, "learner_at": (2,)}, r"learner_at=\(2,\) must be a rising list of blocks"),
    ("Encoder", {"learner": TokenLearner, "learner_at": (0, 1)}, r"learner_at=\(0, 1\) has several blocks"),
    ("Encoder", {"learner": 8}, "Encoder: learner=8 must be a function or class"),
    ("EncoderBlock", {"norm_order": "last"}, "EncoderBlock: norm_order='last' must be 'pre', 'post', 'post_shared' or"),
    ("EncoderBlock", {"layer_scale": -1.0}, "EncoderBlock: layer_scale=-1.0 must be a finite number, 0 or more"),
    ("EncoderBlock", {"heads": 3}, "heads=3 does not divide 8 channels"),
    ("Mlp", {"out": -1}, "Mlp: out=-1 must be a whole number, 0 or more"),
    ("Norm", {"over": "batch"}, "Norm: over='batch' must be 'channels' or 'sample'"),
    ("Norm", {"epsilon": float("nan")}, "Norm: epsilon=nan must be a finite number, 0 or more"),
    ("PatchEmbed", {"patch": 0}, "PatchEmbed: patch=0 must be"),
    ("PatchEmbed", {"patch": 3}, "patch=3 does not divide an image of 8x8 pixels"),
    ("PatchEmbed", {"kind": "linear"}, "PatchEmbed: kind='linear' must be 'conv' or 'dense'"),
    (
        "Pool",
        {"kind": "max"},
        "Pool: kind='max' must be 'cls', 'cls_register', 'mean', 'sequence', 'attention' or 'flatten'",
    ),
    ("Pool", {"prefix": -1}, "Pool: prefix=-1 must be a whole number, 0 or more"),
    ("PositionEmbed", {"kind": "rotary"}, "PositionEmbed: kind='rotary' must be 'learned', 'sincos', 'sine' or 'none'"),
    ("PrefixTokens", {"stddev": -1.0}, "PrefixTokens: stddev=-1.0 must be a finite number, 0 or more"),
    ("ShiftBlock", {"divisions": 0}, "ShiftBlock: divisions=0 must be"),
    ("ShiftBlock", {"divisions": 9}, "groups=9 must not exceed the 8 channels"),
    ("ShiftBlock", {"pixels": -1}, "ShiftBlock: pixels=-1 must be a whole number, 0 or more"),
    ("ShiftBlock", {"mlp_ratio": 0}, "ShiftBlock: mlp_ratio=0 must be a finite number above 0"),
    ("ShiftBlock", {"shift": "both"}, "ShiftBlock: shift='both' must be 'true', 'border' or 'none'"),
    ("ShiftBlock", {"groups": "size"}, "ShiftBlock: groups='size' must be 'count' or 'width'"),
    ("ShiftStage", {"drop_path": (0.0, 1.0)}, r"ShiftStage: drop_path=\(0.0, 1.0\) must be a tuple, each element"),
    ("TokenLearner", {"kind": "v2"}, "TokenLearner: kind='v2' must be 'v1', 'v11_mlp' or 'v11_conv'"),
    ("TokenLearner", {"reduce": "max"}, "TokenLearner: reduce='max' must be 'sum' or 'mean'"),
    ("TokenLearner", {"convs": 0}, "TokenLearner: convs=0 must be"),
    ("TokenLearner", {"kind": "v11_conv", "groups": 3}, "TokenLearner: groups=3 does not divide 8 channels"),
]


def call(name, inputs=None, **attributes):
    make, own_inputs, kwargs = CALLS[name]
    return jax.eval_shape(lambda *x: make(**attributes).init_with_output(ROOT, *x, **kwargs), *(inputs or own_inputs))


@pytest.mark.parametrize("name", layers.__all__)
def test_wrong_values_of_common_attributes(name):
    make, _, _ = CALLS[name]
    tried = 0
    for attribute, value, sentence in COMMON:
        if attribute in getattr(layers, name).__dataclass_fields__:
            with pytest.raises(ValueError, match=sentence) as raised:
                make(**{attribute: value})
            assert f"{name}: {attribute}=" in str(raised.value) and "\n" not in str(raised.value)
            tried += 1
    assert tried or name == "Norm"


@pytest.mark.parametrize(("name", "attributes", "sentence"), OWN, ids=[f"{name}-{a}" for name, a, _ in OWN])
def test_wrong_values_of_a_layers_own_attributes(name, attributes, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        call(name, **attributes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [name for name in layers.__all__ if name not in ("Classifier", "Mlp", "Norm")])
def test_wrong_shape_of_the_input(name):
    with pytest.raises(ValueError, match=r"(must have shape|must be tokens|do not belong)"):
        call(name, inputs=[jnp.ones((2, 8))] * len(CALLS[name][1]))


@pytest.mark.parametrize("name", [name for name in layers.__all__ if hasattr(getattr(layers, name), "dtype")])
def test_a_dtype_is_accepted_like_its_name(name):
    by_name, by_type = (call(name, dtype=dtype) for dtype in ("bfloat16", jnp.bfloat16))
    assert jax.tree.map(jnp.shape, by_name) == jax.tree.map(jnp.shape, by_type)
    assert jax.tree.map(lambda x: x.dtype, by_name) == jax.tree.map(lambda x: x.dtype, by_type)
    layer = CALLS[name][0](dtype=jnp.bfloat16)
    assert layer == CALLS[name][0](dtype="bfloat16") and layer.dtype == "bfloat16"


@pytest.mark.parametrize("chosen", ["fast", "plain"])
@pytest.mark.parametrize("name", layers.__all__)
def test_forward_mode_works(name, chosen):
    """In training, by all parameters and inputs."""
    make, inputs, kwargs = CALLS[name]
    layer = make()
    variables = jax.eval_shape(lambda *x: layer.init(ROOT, *x, **kwargs), *inputs)

    def run(variables, *x):
        return layer.apply(variables, *x, rngs={"dropout": ROOT["dropout"]}, **kwargs)

    with implementations.use(chosen):
        value, tangent = jax.eval_shape(lambda *x: jax.jvp(run, x, x), variables, *inputs)
    assert value.shape == tangent.shape and value.dtype == tangent.dtype


def test_forward_mode_agrees_with_reverse_mode(draw):
    """⟨u, J t⟩ = ⟨Jᵀ u, t⟩ for the tokenizer, which uses all custom derivatives."""
    layer = ConvTokenizer(dim=4, layers=1)
    rng = np.random.default_rng(0)
    x, t = (rng.normal(size=IMAGE.shape).astype(np.float32) for _ in range(2))
    variables = draw(layer, x)
    u = rng.normal(size=(2, 4, 4, 4)).astype(np.float32)

    @jax.jit
    def both(x, t):
        _, forward = jax.jvp(partial(layer.apply, variables), (x,), (t,))
        (reverse,) = jax.vjp(partial(layer.apply, variables), x)[1](u)
        return jnp.vdot(u, forward), jnp.vdot(reverse, t)

    forward, reverse = both(x, t)
    assert abs(float(forward)) > 0.1
    np.testing.assert_allclose(forward, reverse, rtol=1e-4)
