"""Folders of this project give the weights that `jaxvit.load` gives, and those that do not fit are refused."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from tiny import edit_json, tiny_config, train_family

import jaxvit
from jaxvit.errors import UsageError
from jaxvit.exports import hub
from jaxvit.exports.model import ExportModel
from jaxvit.models.registry import create_model
from jaxvit.weights.pretrained import OWN, load_weights, read_pretrained


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run that keeps an average of its weights, and what `export --to=hub` makes of it, in float32 and int8."""
    folder = tmp_path_factory.mktemp("own")
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(tiny_config(train__duration="2 steps", optim__ema_decay=0.5), folder / "run")
        loaded = jaxvit.load(folder / "run")
        for kind in ("float32", "int8"):
            hub.write(ExportModel.of(loaded, kind), folder / kind)
    return folder


def same(tree, other):
    leaves = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), tree, other)
    return all(jax.tree.leaves(leaves))


@pytest.mark.parametrize("name", ["run", "float32", "int8", "float32/model.safetensors"])
def test_the_weights_are_those_of_load(folders, name):
    loaded = jaxvit.load(folders / name.split("/")[0])
    found = read_pretrained(folders / name)
    assert found.origin is OWN and found.guess.model == "vit" and found.input == (8, 8, 1)
    assert found.model == loaded.model and same(found.params, loaded.variables["params"])
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found.params))
    assert found.facts.class_names == loaded.class_names and found.facts.preprocessing == loaded.preprocessing
    assert same(load_weights(folders / name, loaded.model)["params"], found.params)
    assert not (found.fresh or found.unused or found.constants)


def test_a_part_is_chosen(folders):
    for part in ("model", "ema"):
        expected = jaxvit.load(folders / "run", weights=part).variables["params"]
        assert same(read_pretrained(folders / "run", part=part).params, expected)
    with pytest.raises(UsageError, match="has no part 'model': it holds only 'ema'"):
        read_pretrained(folders / "float32", part="model")
    with pytest.raises(UsageError, match="has no part 'optimizer'"):
        read_pretrained(folders / "run", part="optimizer")


def test_other_attributes_must_suit(folders):
    found = read_pretrained(folders / "run", overrides={"dropout": 0.0})
    assert found.model == dataclasses.replace(jaxvit.load(folders / "run").model, dropout=0.0)
    with pytest.raises(UsageError, match=r"does not suit the model: head/logits/bias is \[10\] there, and \[3\] in"):
        read_pretrained(folders / "run", overrides={"num_classes": 3})
    with pytest.raises(UsageError, match=r"embed\S+ is none there, and \[3, 3, 1, 64\] in the model"):
        load_weights(folders / "float32", create_model("cct", dim=8))
    with pytest.raises(UsageError, match="is a folder of jaxvit, not a file of timm"):
        read_pretrained(folders / "run", origin="timm")
    with pytest.raises(UsageError, match="is no folder of a run"):
        read_pretrained(folders / "run" / "config.json", origin="jaxvit")


def test_every_family(tmp_path):
    for name in ("fuser", "cct", "shiftvit"):
        train_family(tmp_path / name, name)
        assert same(read_pretrained(tmp_path / name).params, jaxvit.load(tmp_path / name).variables["params"])


def test_what_does_not_fit_is_one_line(folders, tmp_path):
    def changed(file, old, new):
        shutil.copytree(folders / "float32", tmp_path / "hub", dirs_exist_ok=True)
        edit_json(tmp_path / "hub" / file, old, new)
        with pytest.raises(UsageError) as caught:
            read_pretrained(tmp_path / "hub")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "'depth' says 1000000000 layers" in changed("model.json", '"depth": 1,', '"depth": 1000000000,')
    assert "does not fit the weights of step 2, in params/" in changed("model.json", '"dim": 8,', '"dim": 16,')
    assert "does not work on its images" in changed("model.json", '"patch": 4,', '"patch": 3,')
    assert "there is no model 'vot'" in changed("model.json", '"name": "vit"', '"name": "vot"')
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty holds no weights: name a file"):
        read_pretrained(tmp_path / "empty")
    (tmp_path / "hub" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot be read"):
        read_pretrained(tmp_path / "hub")
