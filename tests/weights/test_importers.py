"""Each importer against its authors' forward pass, with random weights of full width and a depth of one or two."""

import jax
import numpy as np
import pytest

from jaxvit.errors import UsageError
from jaxvit.models.registry import MODELS, create_model, input_shape
from jaxvit.weights.pretrained import ORIGINS, load_weights, read_pretrained, shapes_of, write_arrays
from tests.weights import authors

RNG = np.random.default_rng(0)
GOOGLE = {"activation": "gelu_tanh"}
LEARNED = {**GOOGLE, "learner_activation": "gelu_tanh"}


def random_arrays(origin, name, attributes):
    """Arrays as the authors' file has them: kernels scaled by their inputs, norms and biases far from 1 and 0."""
    model = create_model(name, **attributes)
    tree = {}
    for path, shape in shapes_of(model, input_shape(name)).items():
        values = RNG.standard_normal(shape)
        if path.endswith("kernel"):
            inputs = np.prod(shape[:-2]) if path.endswith("out/kernel") else np.prod(shape[:-1])
            inputs = shape[0] if "/query/" in path or "/key/" in path or "/value/" in path else inputs
            values /= np.sqrt(inputs)
        elif path.endswith("scale") or "/scale_" in path:
            values = 1 + 0.3 * values
        else:
            values *= 0.2
        node = tree
        *above, last = path.split("/")
        for part in above:
            node = node.setdefault(part, {})
        node[last] = values.astype(np.float32)
    return write_arrays(tree, ORIGINS[origin], model), tree, model


def plain(arrays):
    """Without the model's name in front, as the forward passes of Hugging Face take them."""
    return {name.split(".", 1)[1] if name.startswith(("vit.", "dinov2")) else name: a for name, a in arrays.items()}


def registers_with_positions(w):
    """A file of timm whose registers have places in the table, as those with `no_embed_class=False` have."""
    w["pos_embed"] = np.concatenate(
        [w["pos_embed"][:, :1], 0.2 * RNG.standard_normal((1, 4, 192)), w["pos_embed"][:, 1:]], 1
    )
    return {name: array.astype(np.float32) for name, array in w.items()}


def class_token_not_read(w):
    """As MAE's fine-tuned models: a class token takes part, and the mean of the others is read."""
    w["cls_token"], w["reg_token"] = w.pop("reg_token"), None
    del w["reg_token"]
    row = 0.2 * RNG.standard_normal((1, 1, 192)).astype(np.float32)
    w["pos_embed"] = np.concatenate([row, w["pos_embed"]], 1)
    return w


def distillation_token(w):
    """As DeiT in transformers: a second token that takes part and is not read."""
    w = dict(w)
    w["vit.embeddings.distillation_token"] = w["vit_with_registers.embeddings.register_tokens"]
    w = {name.replace("vit_with_registers.", "vit."): array for name, array in w.items()}
    del w["vit.embeddings.register_tokens"]
    table = w["vit.embeddings.position_embeddings"]
    row = 0.2 * RNG.standard_normal((1, 1, 192)).astype(np.float32)
    w["vit.embeddings.position_embeddings"] = np.concatenate([table[:, :1], row, table[:, 1:]], 1)
    return w


def old_names(w):
    new = {"MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1", "LayerNorm_1": "LayerNorm_2"}
    new["MlpBlock_0"] = "MlpBlock_3"
    return {"/".join(new.get(part, part) for part in name.split("/")): array for name, array in w.items()}


def combined_table(w):
    """As big_vision before it added positions first: a row for the class token."""
    row = 0.2 * RNG.standard_normal((1, 1, 192)).astype(np.float32)
    return {**w, "pos_embedding": np.concatenate([row, w["pos_embedding"]], 1)}


TI = "vit_ti16_224"
# name: (origin, model, attributes beside it, forward pass, change to the file, whether it comes back bit by bit)
CASES = {
    "Shift-T": ("spach", "shiftvit_tiny", {"depths": (1, 2, 1, 1)}, lambda w, x: authors.spach(w, x, 12), None, True),
    "Shift-B": ("spach", "shiftvit_base", {"depths": (1, 1, 1, 1)}, lambda w, x: authors.spach(w, x, 16), None, True),
    "CCT-7/3x1": (
        "compact_transformers", "cct_7_3x1_32", {"depth": 2},
        lambda w, x: authors.compact_transformers(w, x, 4), None, True,
    ),
    "CCT-14/7x2": (
        "compact_transformers", "cct_14_7x2_224", {"depth": 1},
        lambda w, x: authors.compact_transformers(w, x, 6), None, True,
    ),
    "CVT-7/4": (
        "compact_transformers", "cvt_7_4_32", {"depth": 1},
        lambda w, x: authors.compact_transformers(w, x, 4), None, True,
    ),
    "ViT-Lite-7/4": (
        "compact_transformers", "vit_lite_7_4_32", {"depth": 1},
        lambda w, x: authors.compact_transformers(w, x, 4), None, True,
    ),
    "timm ViT": ("timm", "vit_b16_224", {"depth": 1}, lambda w, x: authors.timm(w, x, 12), None, True),
    "timm reg4": (
        "timm", TI, {"depth": 1, "pool": "mean", "norm_after_pool": True, "registers": 4, "qk_norm": True},
        lambda w, x: authors.timm(w, x, 3, no_embed_class=True, pool="avg"), None, True,
    ),
    "timm with positions of registers": (
        "timm", TI, {"depth": 1, "registers": 4}, lambda w, x: authors.timm(w, x, 3), registers_with_positions, False,
    ),
    "MAE": (
        "timm", TI, {"depth": 1, "pool": "mean", "norm_after_pool": True, "registers": 1},
        lambda w, x: authors.timm(w, x, 3, pool="avg"), class_token_not_read, False,
    ),
    "DeiT III": (
        "timm", TI, {"depth": 1, "layer_scale": 1.0},
        lambda w, x: authors.timm(w, x, 3, no_embed_class=True),
        lambda w: {
            n.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): a[:, 1:] if n == "pos_embed" else a
            for n, a in w.items()
        },
        False,
    ),
    "vision_transformer": (
        "vision_transformer", TI, {**GOOGLE, "depth": 2, "rep_size": 192}, authors.vision_transformer, None, True,
    ),
    "AugReg": (
        "vision_transformer", TI, {**GOOGLE, "depth": 1},
        lambda w, x: authors.vision_transformer(w, x, old=True), old_names, False,
    ),
    "big_vision tok": (
        "big_vision", TI, {**GOOGLE, "depth": 1}, lambda w, x: authors.big_vision(w, x, "tok"),
        lambda w: {**w, "pos_embedding": w["pos_embedding"][:, 1:]}, False,
    ),
    "big_vision gap": (
        "big_vision", TI, {**GOOGLE, "depth": 1, "pool": "mean", "positions": "sincos", "rep_size": 192},
        lambda w, x: authors.big_vision({n[7:]: a for n, a in w.items()}, x, "gap"),
        lambda w: {f"params/{n}": a for n, a in w.items()}, False,
    ),
    "big_vision map": (
        "big_vision", TI, {**GOOGLE, "depth": 1, "pool": "attention"},
        lambda w, x: authors.big_vision(w, x, "map"), None, True,
    ),
    "Scenic v1.1": (
        "scenic", "token_learner_vit_b16_224", {**LEARNED, "depth": 2, "learner_at": (1,)},
        lambda w, x: authors.scenic(w, x, 1), None, True,
    ),
    "Scenic v1": (
        "scenic", "token_learner_vit_b16_224", {**LEARNED, "depth": 2, "learner_at": (1,), "learner": "v1"},
        lambda w, x: authors.scenic(w, x, 1), None, True,
    ),
    "Scenic with fuser": (
        "scenic", "token_learner_fuser_vit_b16_224", {**LEARNED, "depth": 2, "learner_at": (1,)},
        lambda w, x: authors.scenic(w, x, 1, fuse=True), None, True,
    ),
    "transformers ViT": (
        "transformers", TI, {"depth": 2, "norm_eps": 1e-12},
        lambda w, x: authors.transformers(plain(w), x, 3, 1e-12), None, True,
    ),
    "transformers DeiT": (
        "transformers", TI, {"depth": 1, "norm_eps": 1e-12, "registers": 1},
        lambda w, x: authors.transformers(plain(w), x, 3, 1e-12), distillation_token, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_authors(case, tmp_path):
    """The file is read, its model guessed from shapes alone, and the logits are those of the authors' own code."""
    origin, name, attributes, forward, change, returns = CASES[case]
    arrays, _, made_for = random_arrays(origin, name, attributes)
    arrays = change(arrays) if change else arrays
    file = tmp_path / "weights.npz"
    np.savez(file, **arrays)
    overrides = {"learner_at": attributes["learner_at"]} if origin == "scenic" else None
    found = read_pretrained(file, overrides=overrides)
    assert (found.origin.name, found.input, found.fresh, found.unused) == (origin, input_shape(name), (), ())

    images = RNG.standard_normal((2, *found.input)).astype(np.float32)
    expected = forward({name: array.astype(np.float64) for name, array in arrays.items()}, images.astype(np.float64))
    logits = jax.jit(lambda v, x: found.model.apply(v, x, train=False))({"params": found.params}, images)
    assert logits.shape == expected.shape == (2, made_for.num_classes)
    assert np.abs(expected).max() > 0.1  # the comparison says something
    np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1, np.abs(expected).max()))
    again = write_arrays(found.params, found.origin, found.model)
    if returns:
        assert again.keys() == arrays.keys()
        assert all(np.array_equal(again[key].reshape(arrays[key].shape), arrays[key]) for key in arrays)
    else:
        assert load_weights(file, found.model, found.input)["params"].keys() == found.params.keys()


def test_dinov2_gives_features(tmp_path):
    attributes = {"depth": 1, "layer_scale": 1.0, "registers": 4, "norm_eps": 1e-6}
    arrays, _, _ = random_arrays("transformers", TI, attributes)
    del arrays["classifier.weight"], arrays["classifier.bias"]
    arrays["dinov2_with_registers.embeddings.mask_token"] = np.zeros((1, 192), np.float32)
    np.savez(tmp_path / "a.npz", **arrays)
    found = read_pretrained(tmp_path / "a.npz")
    assert found.fresh == ("head/logits/bias", "head/logits/kernel") and not found.unused
    images = RNG.standard_normal((1, 224, 224, 3)).astype(np.float32)
    w = {name.split(".", 1)[1]: array.astype(np.float64) for name, array in arrays.items()}
    expected = authors.transformers(w, images.astype(np.float64), 3, 1e-6)
    features = found.model.apply({"params": found.params}, images, train=False, method="features")[:, 0]
    np.testing.assert_allclose(features, expected, atol=1e-4)


@pytest.mark.parametrize("origin", ["timm", "transformers"])
def test_the_two_heads_of_a_distilled_deit_are_averaged(origin, tmp_path):
    attributes = {"depth": 1, "registers": 1, **({} if origin == "timm" else {"norm_eps": 1e-12})}
    w = dict(random_arrays(origin, TI, attributes)[0])
    if origin == "timm":
        w["dist_token"] = w.pop("reg_token")
        w["head_dist.weight"], w["head_dist.bias"] = -0.5 * w["head.weight"], 1 + w["head.bias"]
    else:
        w = distillation_token(w)
        w["cls_classifier.weight"], w["cls_classifier.bias"] = w.pop("classifier.weight"), w.pop("classifier.bias")
        w["distillation_classifier.weight"] = -0.5 * w["cls_classifier.weight"]
        w["distillation_classifier.bias"] = 1 + w["cls_classifier.bias"]
    np.savez(tmp_path / "a.npz", **w)
    with pytest.raises(UsageError, match=r"a distilled DeiT, .*--heads=average"):
        read_pretrained(tmp_path / "a.npz")
    found = read_pretrained(tmp_path / "a.npz", heads="average")
    assert found.model.pool == "cls_register" and not (found.unused or found.fresh)
    images = RNG.standard_normal((2, 224, 224, 3)).astype(np.float32)
    w = {name: array.astype(np.float64) for name, array in w.items()}
    expected = authors.distilled(plain(w) if origin == "transformers" else w, images.astype(np.float64), 3)
    logits = jax.jit(lambda v, x: found.model.apply(v, x, train=False))({"params": found.params}, images)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1, np.abs(expected).max()))
    np.savez(tmp_path / "b.npz", **random_arrays(origin, TI, {"depth": 1})[0])
    with pytest.raises(UsageError, match="it has no two heads to average"):
        read_pretrained(tmp_path / "b.npz", heads="average")


SIZES = [name for name in MODELS if not name.startswith("tutorial_")]


@pytest.mark.parametrize("name", SIZES)
def test_the_published_size_is_guessed(name):
    """Every published name, whole, from the shapes of its file: no array is made."""
    origin = "spach" if "shift" in name else "compact_transformers" if name.startswith(("c", "vit_lite")) else "timm"
    origin = "scenic" if "token_learner" in name else origin
    model = create_model(name)
    shapes = shapes_of(model, input_shape(name))
    tree = {}
    for path, shape in shapes.items():
        node = tree
        *above, last = path.split("/")
        for part in above:
            node = node.setdefault(part, {})
        node[last] = np.broadcast_to(np.float32(1), shape)
    arrays = write_arrays(tree, ORIGINS[origin], model)
    assert ORIGINS[origin].fits(arrays) and next(o.name for o in ORIGINS.values() if o.fits(arrays)) == origin
    guess = ORIGINS[origin].guess(arrays)
    assert guess.input == input_shape(name)
    built = create_model(guess.model, **guess.attributes)
    alike = {"mlp_dim", "mlp_ratio", "activation", "learner_activation", "layer_scale", "conv_width"}
    for attribute in set(guess.attributes) - alike:
        assert getattr(built, attribute) == getattr(model, attribute), attribute


FOREIGN = {
    "hybrid": ("timm", {"patch_embed.backbone.stem.conv.weight": (64, 3, 7, 7)}, "a hybrid with a ResNet"),
    "distilled": ("timm", {"dist_token": (1, 1, 192)}, "a distilled DeiT"),
    "SwiGLU": ("timm", {"blocks.0.mlp.w12.weight": (8, 8)}, "SwiGLU"),
    "relative positions": ("timm", {"blocks.0.attn.relative_position_bias_table": (8, 3)}, "relative positions"),
    "CLIP": ("timm", {"norm_pre.weight": (192,)}, "a norm before its first block"),
    "SigLIP": ("timm", {"attn_pool.latent": (1, 1, 192)}, "timm's attention pooling"),
    "R+ViT": ("vision_transformer", {"conv_root/kernel": (7, 7, 3, 64)}, "a hybrid with a ResNet"),
    "DINOv2 giant": ("transformers", {"vit.encoder.layer.0.mlp.weights_in.weight": (8, 8)}, "SwiGLU"),
    "distilled DeiT": ("transformers", {"distillation_classifier.weight": (10, 192)}, "a distilled DeiT"),
}


@pytest.fixture(scope="module")
def small():
    return {
        "timm": random_arrays("timm", TI, {"depth": 1})[0],
        "vision_transformer": random_arrays("vision_transformer", TI, {**GOOGLE, "depth": 1})[0],
        "transformers": random_arrays("transformers", TI, {"depth": 1})[0],
    }


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_model_that_is_none_of_ours_is_named(kind, small, tmp_path):
    origin, extra, words = FOREIGN[kind]
    np.savez(tmp_path / "a.npz", **small[origin], **{name: np.zeros(s, np.float32) for name, s in extra.items()})
    with pytest.raises(UsageError, match=f"cannot be imported: it holds {words}"):
        read_pretrained(tmp_path / "a.npz")


WRONG = {
    "a part is missing": (
        lambda w: w.pop("blocks.0.mlp.fc2.bias"),
        "has no weights for encoder/block_0/mlp/dense_1/bias",
    ),
    "no positions": (lambda w: w.pop("pos_embed"), "unknown form of patches or positions"),
    "NaN": (
        lambda w: w.update({"norm.bias": np.full(192, np.nan, np.float32)}),
        "NaN or infinite weights, in norm/bias",
    ),
    "another width": (lambda w: w.update({"norm.bias": np.zeros(191, np.float32)}), r"norm.bias \[191\] does not fit"),
    "no square": (lambda w: w.update({"pos_embed": np.zeros((1, 12, 192), np.float32)}), "do not form a square"),
    "nothing known": (lambda w: (w.clear(), w.update(a=np.zeros(1))), "names of no project that is known, such as a;"),
    "a stem without axes": (
        lambda w: w.update({"patch_embed.proj.weight": np.zeros(3, np.float32)}),
        "unknown form",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_one_line(kind, small, tmp_path):
    change, words = WRONG[kind]
    arrays = dict(small["timm"])
    change(arrays)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UsageError, match=words) as caught:
        read_pretrained(tmp_path / "a.npz")
    assert "\n" not in str(caught.value)


def test_a_model_that_the_file_does_not_suit(small, tmp_path):
    np.savez(tmp_path / "a.npz", **small["timm"], extra=np.zeros(3, np.float32))
    assert read_pretrained(tmp_path / "a.npz").unused == ("extra",)
    with pytest.raises(UsageError, match=r"does not suit the model: .* does not fit"):
        read_pretrained(tmp_path / "a.npz", model="vit_s16_224")
    with pytest.raises(UsageError, match="no origin 'keras'; known are spach"):
        read_pretrained(tmp_path / "a.npz", origin="keras")
    with pytest.raises(UsageError, match="does not suit the model"):
        load_weights(tmp_path / "a.npz", create_model("vit_s16_224"))
    model = read_pretrained(tmp_path / "a.npz").model
    with pytest.raises(UsageError, match="which has no place for extra;"):
        load_weights(tmp_path / "a.npz", model)
