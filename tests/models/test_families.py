"""Properties of every family, on small models: gradients, determinism, dtypes, sizes, noise, quirk flags."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvit.models import create_model, list_models, model_defaults
from jaxvit.ops import image_to_patches, implementations

SMALL = {"num_classes": 3, "dim": 8, "depth": 2, "heads": 2, "patch": 2}
MODELS = {
    "vit": ("vit", {**SMALL, "pool": "cls", "registers": 1, "layer_scale": 0.5, "rep_size": 4}),
    "vit_attention": ("vit", {**SMALL, "pool": "attention", "qk_norm": True, "positions": "sincos"}),
    "learner": ("token_learner_vit", {**SMALL, "learner_at": (0, 1), "learner_tokens": 3, "fuse": True}),
    "learner_conv": ("tutorial_mini_vit_v11_g4t4", {**SMALL, "learner_at": (1,), "pool": "sequence"}),
    "fashion": ("tutorial_fashion_fast_vit", {"num_classes": 3, "dim": 8, "depth": 2, "heads": 2, "learner_at": (1,)}),
    "flatten": ("tutorial_vit_cifar100", {**SMALL, "head_hidden": (6,)}),
    "shiftvit": ("shiftvit", {"num_classes": 3, "dim": 12, "depths": (2, 1), "patch": 1}),
    "tutorial_shiftvit": ("tutorial_shiftvit", {"num_classes": 3, "dim": 48, "depths": (1, 2), "patch": 2}),
    "cct": ("cct", {"num_classes": 3, "dim": 8, "conv_width": 4}),
    "tutorial_cct": ("tutorial_cct", {"num_classes": 3, "dim": 8, "conv_width": 4}),
    "vit_lite": ("vit_lite_2_4_32", {"num_classes": 3, "dim": 8, "patch": 2}),
}
# Parameters whose gradient mathematics makes zero, by model and the end of their names. A softmax does not see what is
# added to all of its scores, nor a norm what is added to all of its channels.
SCORES = "a bias of the keys adds one number to all scores of a query"
ZERO_GRADIENT = {
    "attention/key/bias": SCORES,
    "attention/norm_key/bias": SCORES + "; with qk_norm it is the norm's, and the bias before the norm has a gradient",
    "sequence_pool/score/bias": "adds one number to the scores of all tokens",
    "token_learner/mlp/dense_1/bias": "adds one number to the scores of all places",
    "token_learner/norm/bias": "'v11_conv' only: nothing bends between this norm and the softmax, so as above",
    "token_fuser/between/bias": "adds one number to all channels of a token, and norm_out follows",
}


def small(which, **overrides):
    name, attributes = MODELS[which]
    return create_model(name, **{**attributes, **overrides})


def images(which, batch=3, size=8):
    channels = 1 if which == "fashion" else 3
    size = 12 if which == "fashion" else size
    return np.random.default_rng(7).normal(size=(batch, size, size, channels)).astype(np.float32)


def quick(function):
    """Compiles without much optimisation: these programs run once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def products(program):
    """Matrix products and convolutions of a program and the programs in it."""
    for eqn in program.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            yield eqn
        for inner in eqn.params.values():
            if hasattr(inner, "eqns"):
                yield from products(inner)


def no_gradient(which, path):
    names = [entry.key.rstrip("0123456789").rstrip("_") if i == 1 else entry.key for i, entry in enumerate(path)]
    ends = [end for end in ZERO_GRADIENT if "/".join(names).endswith(end)]
    if ends == ["attention/key/bias"]:
        return not (which == "vit_attention" and names[0] == "encoder")  # qk_norm
    return bool(ends) and (ends != ["token_learner/norm/bias"] or which == "learner_conv")


_programs, _scores = {}, {}


def gradient_and_scores(draw, which):
    """(params, (params, images) -> (gradient, scores)) of a model; compiled once for all tests."""
    if which not in _programs:
        model = small(which)

        def loss(params, x):
            scores = model.apply({"params": params}, x, train=False)
            return jnp.sum(jnp.sin(3 * scores)), scores

        params = draw(model, images(which), train=False, scale=0.5)["params"]
        _programs[which] = params, quick(jax.grad(loss, has_aux=True))
    return _programs[which]


@pytest.mark.parametrize("which", MODELS)
def test_every_parameter_gets_a_gradient(draw, which):
    """All parameters are random, so that no zero-initialized branch hides another gradient."""
    params, run = gradient_and_scores(draw, which)
    grads = jax.tree_util.tree_flatten_with_path(run(params, images(which))[0])[0]
    sizes = {path: float(np.abs(grad).max()) for path, grad in grads}
    largest = max(sizes.values())
    for path, size in sizes.items():
        name = jax.tree_util.keystr(path)
        if no_gradient(which, path):
            assert size < 1e-5 * max(1, largest), name
        else:
            assert size > 1e-7 * largest, name


@pytest.mark.parametrize("which", MODELS)
def test_evaluation_looks_at_one_image_at_a_time(draw, which):
    params, run = gradient_and_scores(draw, which)
    x, apply = images(which), lambda x: run(params, x)[1]
    out = apply(x)
    assert out.shape == (3, 3) and out.dtype == jnp.float32
    np.testing.assert_array_equal(out, apply(x))
    other = x.copy()
    other[1:] = 0
    np.testing.assert_array_equal(out[0], apply(other)[0])
    np.testing.assert_allclose(out[0], apply(x[::-1].copy())[2], atol=1e-5)


@pytest.mark.parametrize("which", MODELS)
def test_bfloat16_computes_and_float32_stays(draw, which):
    model, x = small(which, dtype="bfloat16"), images(which)
    variables = draw(model, x, train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}

    def run(variables, x):
        return model.apply(variables, x, train=False)

    assert jax.eval_shape(run, variables, x).dtype == jnp.float32
    features = partial(model.apply, train=False, method="features")
    assert jax.eval_shape(features, variables, x).dtype == jnp.bfloat16
    with implementations.use("plain"):  # the other way multiplies kernels by each other, in float32
        program = jax.make_jaxpr(run)(variables, x)
    factors = [{str(atom.aval.dtype) for atom in eqn.invars} for eqn in products(program)]
    assert factors.count({"float32"}) == 1 and factors.count({"bfloat16"}) == len(factors) - 1  # the classifier's


def test_bfloat16_is_close_to_float32(draw):
    x = images("vit")
    variables = draw(small("vit"), x, train=False)
    full, half = (
        quick(partial(small("vit", dtype=d).apply, train=False))(variables, x) for d in ("float32", "bfloat16")
    )
    np.testing.assert_allclose(half, full, atol=0.05)


@pytest.mark.parametrize("which", ["vit", "learner", "shiftvit", "cct"])
def test_implementations_to_run_change_no_output(draw, which):
    x = images(which)
    overrides = {"depth": 3} if which == "vit" else {}
    variables = draw(small(which, **overrides), x, train=False)
    outs = [
        quick(partial(small(which, **overrides, **run).apply, train=False))(variables, x)
        for run in ({}, {"remat": "dots"}, {"scan": True})
    ]
    for out in outs[1:]:
        np.testing.assert_allclose(out, outs[0], atol=1e-5)


@pytest.mark.parametrize("which", MODELS)
def test_other_sizes(which):
    x = jnp.zeros((2, 16, 12, 1 if which == "fashion" else 3))
    model = small(which)
    out = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x, train=False))[0]
    assert out.shape == (2, 3)


@pytest.mark.parametrize("which", ["vit", "learner", "fashion", "shiftvit", "cct"])
def test_no_two_kernels_are_the_same_draw(which):
    key = jax.random.key(0, impl="unsafe_rbg")
    variables = quick(lambda: small(which).init(key, images(which), train=False))()
    leaves = jax.tree_util.tree_flatten_with_path(variables["params"])[0]
    random = [(p, np.asarray(v)) for p, v in leaves if v.ndim > 1 and np.unique(v).size > 2]
    assert len(random) > 5
    for i, (path, value) in enumerate(random):
        for other_path, other in random[:i]:
            assert value.shape != other.shape or not np.array_equal(value, other), (path, other_path)


@pytest.mark.parametrize("which", ["vit", "shiftvit", "cct"])
def test_noise_in_training(draw, which):
    quiet = {"dropout": 0.0, "drop_path": 0.0}
    if which != "shiftvit":
        quiet["attention_dropout"] = 0.0
    x = images(which)
    variables = draw(small(which), x, train=False)

    still = quick(partial(small(which, **quiet).apply, train=True))(variables, x)  # no noise, no key needed
    for noise in quiet:
        model = small(which, **{**quiet, noise: 0.5})
        train = quick(lambda key, m=model: m.apply(variables, x, train=True, rngs={"dropout": key}))
        first, again, other = (np.asarray(train(jax.random.key(seed, impl="unsafe_rbg"))) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert not np.allclose(first, other) and not np.allclose(first, still), noise
    with pytest.raises(Exception, match="dropout"):
        small(which, **{**quiet, "dropout": 0.5}).apply(variables, x, train=True)


@pytest.mark.parametrize(
    "which, overrides",
    [
        ("tutorial_shiftvit", {"shift": "true"}),
        ("tutorial_shiftvit", {"groups": "count"}),
        ("tutorial_shiftvit", {"norm": "sample"}),
        ("tutorial_shiftvit", {"pixels": 2}),
        ("tutorial_shiftvit", {"activation": "relu"}),
        ("tutorial_cct", {"norm_order": "cct"}),
        ("tutorial_cct", {"activate_twice": False}),
        ("tutorial_cct", {"pad_after_conv": False}),
        ("tutorial_cct", {"same_pooling": False}),
        ("tutorial_cct", {"positions": "sine"}),
        ("tutorial_cct", {"frozen_positions": True}),
        ("tutorial_cct", {"norm_eps": 1e-1}),
        ("fashion", {"learner_reduce": "sum"}),
        ("fashion", {"learner_activation": "relu"}),
        ("flatten", {"activation": "gelu_tanh"}),
    ],
)
def test_each_quirk_is_a_flag_that_keeps_the_other_parameters(draw, which, overrides):
    x = images(which, size=12)
    variables = draw(small(which), x, train=False)
    if which not in _scores:
        _scores[which] = quick(partial(small(which).apply, train=False))(variables, x)
    before, after = _scores[which], quick(partial(small(which, **overrides).apply, train=False))(variables, x)
    assert not np.allclose(before, after, atol=1e-6)


def test_the_walk_from_the_tutorials_shiftvit_to_the_authors():
    steps = {"shift": "true", "groups": "count", "drop_path_ramp": "all", "shared_drop_path": False, "norm": "sample"}
    steps |= {"stem_norm": True, "final_norm": True, "merge_padding": "VALID", "dropout": 0.0, "embed_dropout": -1.0}
    steps |= {"initialiser": "shiftvit"}
    sizes = {"depths": (6, 8, 18, 6), "num_classes": 1000}
    assert create_model("tutorial_shiftvit", **steps, **sizes) == create_model("shiftvit_tiny")
    tutorial = create_model("tutorial_shiftvit", drop_path=0.3).drop_path_table()
    assert tutorial[0] == tutorial[3] == (0.0, 0.3) and len(tutorial[2]) == 8
    authors = create_model("shiftvit_tiny").drop_path_table()
    flat = [rate for stage in authors for rate in stage]
    assert [len(stage) for stage in authors] == [6, 8, 18, 6] and flat == sorted(flat)
    assert (flat[0], flat[-1]) == (0.0, 0.2)


def test_the_walk_from_the_tutorials_cct_to_the_authors():
    steps = {"norm_order": "cct", "activate_twice": False, "head_dim": 0, "qkv_bias": False, "initialiser": "cct"}
    steps |= {"pad_after_conv": False, "same_pooling": False, "dropout": 0.0, "embed_dropout": -1.0}
    assert create_model("tutorial_cct", **steps, projection_dropout=-1.0) == create_model("cct_2_3x2_32")


def test_shared_drop_path_is_one_draw_for_all_layers(draw):
    x = images("shiftvit")
    variables = draw(small("shiftvit"), x, train=False)
    rngs = {"dropout": jax.random.key(3, impl="unsafe_rbg")}
    model = partial(small, "shiftvit", drop_path=0.5, drop_path_ramp="stage")
    own, shared = (
        quick(partial(model(shared_drop_path=flag).apply, train=True))(variables, x, rngs=rngs)
        for flag in (False, True)
    )
    assert not np.allclose(own, shared)


def test_fashion_takes_images_or_patches(draw):
    model = small("fashion")
    x = np.random.default_rng(0).uniform(0, 255, (2, 28, 28, 1)).astype(np.float32)
    patches = image_to_patches(x, patch=5, crop=True)
    assert patches.shape == (2, 5, 5, 25)
    variables = draw(model, x, train=False)
    from_patches, from_images = (quick(partial(model.apply, train=False))(variables, given) for given in (patches, x))
    np.testing.assert_allclose(from_patches, from_images, atol=1e-5)


def test_what_can_be_looked_at(draw):
    def seen(which):
        model, x = small(which), images(which)
        _, state = model.apply(draw(model, x, train=False), x, train=False, mutable=["intermediates"])
        return {p[-2].key for p, _ in jax.tree_util.tree_flatten_with_path(state)[0]}

    assert seen("learner") == {"attention", "token_maps", "mix"}
    assert seen("cct") == {"attention", "pool_weights"}


@pytest.mark.parametrize("name", list_models())
def test_what_weight_decay_leaves_alone_is_not_named_kernel(name):
    depth = {"depths": (1,) * 2} if "shiftvit" in name else {"depth": 4}
    places = {"learner_at": (3,), "fuse": True} if "fuser" in name else {}
    places |= {"learner_at": (3,)} if model_defaults(name).get("learner_at") and not places else {}
    model = create_model(name, **depth, **places)
    from jaxvit.models import input_shape
    from jaxvit.models.count import abstract_variables

    leaves = jax.tree_util.tree_flatten_with_path(abstract_variables(model, input_shape(name))["params"])[0]
    for path, _ in leaves:
        assert path[-1].key in {"kernel", "bias", "scale", "table", "probe", "scale_attention", "scale_mlp"}


def test_a_norm_after_the_mean_is_timms(draw):
    """global_pool='avg' with registers: the mean of the raw patch tokens, fc_norm, head. The parameters do not move."""
    settings = {**SMALL, "registers": 1, "pool": "mean", "norm_eps": 1e-6}
    before, after = create_model("vit", **settings), create_model("vit", **settings, norm_after_pool=True)
    x = images("vit")
    variables = draw(after, x, train=False)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, draw(before, x, train=False))
    tokens = quick(lambda x: after.apply(variables, x, train=False, method="features"))(x)
    p = jax.tree.map(np.float64, variables["params"])
    mean = np.asarray(tokens, np.float64)[:, 1:].mean(1)
    mean -= mean.mean(1, keepdims=True)
    y = mean / np.sqrt(mean.var(1, keepdims=True) + 1e-6) * p["norm"]["scale"] + p["norm"]["bias"]
    want = y @ p["head"]["logits"]["kernel"] + p["head"]["logits"]["bias"]
    got = quick(lambda x: after.apply(variables, x, train=False))(x)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(got - quick(lambda x: before.apply(variables, x, train=False))(x)).max() > 1e-3
    for wrong in ({"pool": "cls"}, {"final_norm": False}):
        with pytest.raises(ValueError, match="norm_after_pool moves the final norm"):
            create_model("vit", **{**settings, **wrong}, norm_after_pool=True)


def test_mae_class_token_is_a_register(draw):
    """In timm's fine-tuned MAE models, the class token has a position but is not pooled: it acts as a register."""
    settings = {**SMALL, "positions": "learned"}
    with_class, with_register = (
        create_model("vit", **settings, pool="cls"),
        create_model("vit", **settings, registers=1),
    )
    x = images("vit")
    variables = draw(with_class, x, train=False)
    p = dict(variables["params"])
    table, token = p["position_embed"]["table"], p.pop("class_token")["table"]
    p |= {"position_embed": {"table": table[1:]}, "register_tokens": {"table": token + table[:1]}}
    features = [
        quick(lambda x, m=model, v=v: m.apply(v, x, train=False, method="features"))(x)
        for model, v in ((with_class, variables), (with_register, {"params": p}))
    ]
    np.testing.assert_allclose(features[0], features[1], atol=1e-6)
