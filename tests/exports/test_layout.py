"""Weights trained here, in another project's layout: read back bit by bit, or refused in one line."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny import train_family

import jaxvit
from jaxvit.cli import export as verb
from jaxvit.errors import UsageError
from jaxvit.exports.layout import export_layout
from jaxvit.models.registry import create_model
from jaxvit.weights.arrays import read_arrays
from jaxvit.weights.pretrained import load_weights, read_pretrained

SHIFT = {"patch": 1, "dim": 16, "depths": (2, 1), "divisions": 8}
VIT = {"patch": 4, "dim": 8, "depth": 2, "heads": 2, "pool": "cls"}
LEARNED = {"activation": "gelu_tanh", "learner_activation": "gelu_tanh", "learner_at": (1,), "learner_tokens": 2}
CASES = {
    "timm": ("vit", VIT, "timm", "model.safetensors"),
    "timm with registers": ("vit", {**VIT, "registers": 3, "qk_norm": True}, "timm", "model.safetensors"),
    "timm, mean": ("vit", {**VIT, "pool": "mean", "layer_scale": 0.1}, "timm", "model.npz"),
    "transformers": ("vit", VIT, "transformers", "model.safetensors"),
    "ViT's authors": ("vit", {**VIT, "activation": "gelu_tanh"}, "authors", "model.npz"),
    "big_vision": ("vit", {**VIT, "activation": "gelu_tanh", "pool": "attention"}, "big_vision", "model.npz"),
    "TokenLearner's authors": (
        "token_learner_vit", {**VIT, "pool": "mean", **LEARNED}, "authors", "model.npz",
    ),
    "CCT's authors": ("cct", {"dim": 8, "depth": 2, "heads": 2, "conv_layers": 1}, "authors", "model.safetensors"),
    "ShiftViT's authors": ("shiftvit", SHIFT, "authors", "model.safetensors"),
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return jaxvit.load(train_family(tmp_path_factory.mktemp("layout") / "run", "vit"))


def of(run, name, attributes):
    """The loaded run with another model, with random weights."""
    model = create_model(name, num_classes=10, **attributes)
    images = np.zeros((1, 8, 8, 3), np.float32)
    shapes = jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes["params"])
    return dataclasses.replace(run, model=model, variables={"params": params}, input_shape=(8, 8, 3))


@pytest.mark.parametrize("case", CASES)
def test_every_bit_comes_back(run, tmp_path, case):
    name, attributes, layout, file = CASES[case]
    loaded = of(run, name, attributes)
    _, arguments = export_layout(loaded, tmp_path / file, layout)
    assert [path.name for path in tmp_path.iterdir()] == [file]
    if name != "shiftvit":
        found = read_pretrained(tmp_path / file, overrides={"heads": 2, **arguments}, input=(8, 8, 3))
        assert found.guess.attributes["depth"] == 2
    again = load_weights(tmp_path / file, loaded.model, (8, 8, 3))["params"]
    same = jax.tree.map(np.array_equal, loaded.variables["params"], again)
    assert all(jax.tree.leaves(same)) and jax.tree.structure(again) == jax.tree.structure(loaded.variables["params"])
    asks = (layout in ("timm", "transformers") or name == "cct") and "qk_norm" not in attributes
    assert ("heads" in arguments) == asks


def test_the_verb_says_what_the_file_does_not(run, capsys):
    assert verb.main([f"--workdir={run.workdir}", "--to=model.safetensors", "--layout=timm", "--dry_run"]) == 0
    assert "nothing was written" in capsys.readouterr().out and not (run.workdir / "export").exists()
    assert verb.main([f"--workdir={run.workdir}", "--to=model.safetensors", "--layout=timm"]) == 0
    out = capsys.readouterr().out
    assert "as in timm (huggingface/pytorch-image-models)" in out and "give its code: heads=2" in out
    assert jaxvit.export(run, "model.safetensors", layout="timm") == [run.workdir / "export" / "model.safetensors"]
    assert read_arrays(run.workdir / "export" / "model.safetensors")["reg_token"].shape == (1, 2, 8)


OTHERS = {
    "post-norm": ({**VIT, "norm_order": "post"}, "timm", "its norm_order is \"pre\", here 'post'"),
    "exact gelu in Google's": (VIT, "authors", "its activation is \"gelu_tanh\", here 'gelu'"),
    "a learner in timm": (
        {**VIT, "learner": "v11_mlp", "learner_at": (1,), "learner_tokens": 2},
        "timm",
        "has no counterpart",
    ),
    "wide heads": ({**VIT, "head_dim": 8}, "timm", "its head_dim is 0, here 8|no such model|cannot be written"),
    "no such layout": (VIT, "tim", "did you mean 'timm'"),
    "a CCT's project": (VIT, "compact_transformers", "cannot be written|no such model"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_that_the_project_has_not_is_refused(run, tmp_path, kind):
    attributes, layout, words = OTHERS[kind]
    with pytest.raises(UsageError, match=words) as caught:
        export_layout(of(run, "vit", attributes), tmp_path / "model.npz", layout)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_wrong_words_of_the_verb(run, tmp_path):
    folder = f"--workdir={run.workdir}"
    for words, message in (
        (["--to=onnx"], "ends in .safetensors or .npz"),
        (["--to=a/model.npz"], "name its folder with --out"),
        (["--to=model.npz", "--dtype=int8"], "weights are float32"),
    ):
        with pytest.raises(UsageError, match=message):
            verb.main([folder, "--layout=timm", f"--out={tmp_path}", *words])
    (tmp_path / "model.npz").mkdir()
    with pytest.raises(UsageError, match="exists and is not a file"):
        verb.main([folder, "--layout=timm", f"--out={tmp_path}", "--to=model.npz"])
