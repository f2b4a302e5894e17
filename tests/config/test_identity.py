"""Config hashes: recorded hashes do not change, and a missing key or attribute means its default."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import pytest
from tiny import tiny_config

import jaxvit
from jaxvit.config import keys, load_config_file
from jaxvit.config.identity import config_hash, differences
from jaxvit.config.key_table import KEYS, Key
from jaxvit.config.keys import base_config, complete, flatten
from jaxvit.config.overrides import parse_overrides
from jaxvit.data.settings import Augmentation
from jaxvit.errors import UsageError
from jaxvit.models import registry
from jaxvit.run.folder import read_config
from jaxvit.training.settings import OptimizerSettings

HERE = Path(__file__).parent
RECORDED = json.loads((HERE / "recorded_hashes.json").read_text())


@pytest.fixture(params=["plain", "with a key and an attribute added"])
def perhaps_grown(request, monkeypatch):
    """The package as is, and with one additional key and attribute."""
    if request.param != "plain":
        monkeypatch.setitem(KEYS, "train.dummy", Key(7, "nothing", added=True))
        monkeypatch.setattr(registry, "ADDED_ATTRIBUTES", registry.ADDED_ATTRIBUTES | {"dummy"})
        plain = registry.model_defaults
        monkeypatch.setattr(registry, "model_defaults", lambda name: {**plain(name), "dummy": 3})
    return request.param


@pytest.fixture
def old_run(tmp_path):
    """A run of tiny_config's ViT, 2 epochs, that was trained before this test was written."""
    shutil.unpack_archive(HERE.parent / "run" / "old_run.zip", tmp_path / "run")
    return tmp_path / "run"


def old_config(**changes):
    parts = {"train__duration": "2 epochs", "train__batch_size": 32, "log__writers": ("jsonl",)}
    return tiny_config(**{**parts, "optim__ema_decay": 0.9, **changes})


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_hashes_stay(name, perhaps_grown):
    file, _, variant = name.partition(":")
    spec = HERE.parents[1] / "configs" / f"{file}.py"
    assert config_hash(load_config_file(f"{spec}:{variant}")) == RECORDED[name]


def test_an_added_key_enters_the_hash_where_it_is_not_the_default(monkeypatch):
    before = config_hash(base_config())
    monkeypatch.setitem(KEYS, "train.dummy", Key(7, "nothing", added=True))
    config = base_config()
    assert config_hash(config) == before
    config.train.dummy = 8
    assert config_hash(config) != before
    monkeypatch.setitem(KEYS, "train.dummy", Key(7, "nothing", added=True, changes_result=False))
    assert config_hash(config) == before


@pytest.mark.parametrize("grown", [False, True])
def test_an_old_run_is_shown_loaded_and_resumed(grown, old_run, capsys, monkeypatch):
    if grown:
        monkeypatch.setitem(KEYS, "train.dummy", Key(7, "nothing", added=True))
    result = json.loads((old_run / "result.json").read_text())
    assert jaxvit.train(old_config(), old_run) == result
    assert "this run is finished" in capsys.readouterr().out
    assert jaxvit.evaluate(old_run)["top1"] == result["test"]["top1"]
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        longer = jaxvit.train(old_config(train__duration="3 epochs"), old_run)
    assert longer["steps"] == 6 and "resuming from step 4" in capsys.readouterr().out


def test_a_run_with_another_value_is_another(old_run, monkeypatch):
    monkeypatch.setitem(KEYS, "train.dummy", Key(7, "nothing", added=True))
    with pytest.raises(UsageError, match=r"a run of another config \(train.dummy: 7 there, 8 here\)"):
        jaxvit.train(old_config(train__dummy=8), old_run)


def test_absent_is_the_default_in_comparing_and_reading():
    whole = base_config("tutorial_cct")
    part = base_config("tutorial_cct")
    with part.unlocked():
        del part.optim["b2"], part.model["conv_layers"], part["seeds"]
    assert not differences(part, whole) and not differences(whole, part)
    assert config_hash(part) == config_hash(whole)
    assert dict(flatten(complete(part))) == dict(flatten(whole))
    assert complete(whole) is whole
    whole.model.conv_layers = 1
    assert differences(part, whole) == {"model.conv_layers": (2, 1)}


def test_reading_does_not_import_a_model_that_a_folder_names(tmp_path, monkeypatch):
    (tmp_path / "evil_model").mkdir()
    (tmp_path / "evil_model" / "__init__.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("evil_model:Model", "evil_model.Model", "evil_model"):
        plain = {"config": {"model": {"name": name}, "data": {"name": "digits"}, "train": {"batch_size": 4}}}
        plain["config"]["eval"] = {"batch_size": 0}
        (tmp_path / "config.json").write_text(json.dumps(plain))
        assert read_config(tmp_path).optim.b1 == 0.9


def test_a_renamed_key_changes_no_hash(monkeypatch):
    old, new = base_config(), base_config()
    new.train.duration = "9 epochs"
    with old.unlocked():
        old.train.length = "9 epochs"
        del old.train["duration"]
    with monkeypatch.context() as before:
        earlier = {"train.length" if path == "train.duration" else path: key for path, key in KEYS.items()}
        for module in ("keys", "identity"):
            before.setattr(f"jaxvit.config.{module}.KEYS", earlier)
        recorded = config_hash(old)
    monkeypatch.setitem(keys.RENAMED, "train.length", "train.duration")
    assert config_hash(new) == config_hash(old) == recorded


def test_a_renamed_key_keeps_its_value_and_says_its_new_name(monkeypatch):
    monkeypatch.setitem(keys.RENAMED, "train.length", "train.duration")
    monkeypatch.setitem(keys.RENAMED, "model.layers", "model.depth")
    monkeypatch.setitem(keys.REMOVED, "train.magic", "set config.train.implementations in its place")
    old = base_config()
    with old.unlocked():
        old.train.length, old.model.layers = "9 epochs", 5
        del old.train["duration"], old.model["depth"]
    read = complete(old)
    assert (read.train.duration, read.model.depth) == ("9 epochs", 5)
    assert "length" not in read.train and "layers" not in read.model
    with pytest.raises(UsageError, match=r"this key is called config.train.duration now"):
        parse_overrides(base_config(), ["--config.train.length=9 epochs"])
    with pytest.raises(UsageError, match=r"this key is gone; set config.train.implementations in its place"):
        parse_overrides(base_config(), ["--config.train.magic=1"])
    with pytest.raises(UsageError, match=r"config.model.layers: this key is called config.model.depth now"):
        base_config("vit", layers=3)


@pytest.mark.parametrize(("section", "settings"), [("augment", Augmentation), ("optim", OptimizerSettings)])
def test_a_default_stands_in_one_place(section, settings):
    fields = {f.name: f.default for f in dataclasses.fields(settings)}
    shared = {name: default for name, default in fields.items() if f"{section}.{name}" in KEYS and name != "mix_until"}
    assert len(shared) > 10 and all(KEYS[f"{section}.{name}"].default == value for name, value in shared.items())
