"""`jaxvit.load`: valid and damaged folders; code that a run's files name does not run."""

from __future__ import annotations

import json
import shutil
import sys

import jax
import numpy as np
import pytest
from tiny import edit_json, tiny_config

import jaxvit
from jaxvit.cli.evaluate import main as evaluate
from jaxvit.cli.predict import main as predict
from jaxvit.cli.report import main as report
from jaxvit.errors import UsageError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("loading") / "run"
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(tiny_config(train__duration="1 epochs"), workdir)
    return workdir


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def change(file, **parts):
    """Puts other values into a JSON file: section__key, or a whole section; `...` takes a key away."""
    found = json.loads(file.read_text())
    found.pop("checksum", None)  # by hand, as the message about it says
    for key, value in parts.items():
        section, _, leaf = key.partition("__")
        place, last = (found[section], leaf) if leaf else (found, section)
        if value is ...:
            del place[last]
        else:
            place[last] = value
    file.write_text(json.dumps(found))


def test_images_as_a_list_or_an_array(trained):
    loaded = jaxvit.load(trained)
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 1), np.uint8)
    for given in (list(images), jax.numpy.asarray(images)):
        np.testing.assert_array_equal(loaded(given), loaded(images))
        np.testing.assert_array_equal(loaded.preprocess(given), loaded.preprocess(images))


@pytest.mark.parametrize(
    "images",
    [[[1]], [[1], [1, 2]], [], "digit.png", None, [np.zeros((8, 8, 1)), np.zeros((9, 9, 1))], np.zeros((1, 8, 8, 1))],
)
def test_what_are_no_images(trained, images):
    loaded = jaxvit.load(trained)
    for call in (loaded, loaded.logits, loaded.preprocess, loaded.pictures):
        with pytest.raises(UsageError, match=r"^images of .*: this model takes uint8 \[B, 8, 8, 1\]$"):
            call(images)


@pytest.mark.parametrize("text", ["[]", "{}", "5", '{"name":', "null"])
def test_a_model_file_that_is_none(run, text):
    (run / "model.json").write_text(text)
    with pytest.raises(UsageError, match=r"run/model.json cannot be read \(.*\); it is damaged, .*: put a copy"):
        jaxvit.load(run)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"augmentation": ...}, "it has no 'augmentation'"),
        ({"augmentation__x": 1}, "there is no 'augmentation.x'"),
        ({"augmentation__size": "8"}, "'augmentation.size' is '8'"),
        ({"augmentation__mean": [0.1, 0.2]}, r"'augmentation.mean' is \(0.1, 0.2\)"),
        ({"augmentation__std": [0]}, "'augmentation.std' is"),
        ({"augmentation__evaluation": "half"}, "'augmentation.evaluation' is 'half'"),
        ({"augmentation__evaluation": "centre_crop", "augmentation__size": 99}, "does not work on its images"),
        ({"name": ...}, "it has no 'name'"),
        ({"name": "vitt"}, r"there is no model 'vitt' \(did you mean 'vit'\?\)"),
        ({"name": "cct"}, "no attribute"),
        ({"attributes": []}, "it has no 'attributes'"),
        ({"attributes__dim": "x"}, "attribute 'dim' of model 'vit' takes int, not str 'x'"),
        ({"attributes__dim": {}}, "'attributes.dim' is not a plain value"),
        ({"attributes__dim": 16}, r"does not fit the weights of step 4: \['params'\].* is \[.*8.*\], .* has \[.*16"),
        ({"attributes__depth": 2}, r"\['block_1'\].* is not there, and this model has \["),
        ({"attributes__registers": 1}, r"does not fit the weights of step 4: \['params'\]"),
        ({"attributes__heads": 3}, "heads=3 does not divide dim=8"),
        ({"attributes__patch": 0}, "model.json: "),
        ({"image_shape": [8, 8]}, r"'image_shape' is not \[H, W, C\]"),
        ({"image_shape": [8, 8, 3]}, "does not fit the weights"),
        ({"class_names": [1]}, "'class_names' are not names"),
        ({"class_names": [*"abcdefghijkl"]}, "it has 12 class names, and its model gives an output of .10. for"),
    ],
)
def test_a_model_file_that_does_not_fit(run, parts, says):
    change(run / "model.json", **parts)
    with pytest.raises(UsageError, match=says) as error:
        jaxvit.load(run)
    assert "run/model.json" in str(error.value) and "put a copy of it back" in str(error.value)
    assert "\n" not in str(error.value)


def test_fewer_blocks_than_the_weights_have(run):
    change(run / "model.json", attributes__depth=0)
    with pytest.raises(UsageError, match=r"model.json"):
        jaxvit.load(run)


def test_what_a_checkpoint_says_of_the_best_may_be_damaged(run, capsys):
    (newest,) = (run / "checkpoints").glob("*/metrics/metrics")
    newest.write_text("{")
    with pytest.raises(
        UsageError, match=r"metrics cannot be read .*; this checkpoint is damaged: .*checkpoint='latest'"
    ):
        jaxvit.load(run)
    assert jaxvit.load(run, checkpoint="latest").step == 4
    newest.write_text("[]")
    with pytest.raises(UsageError, match=r"metrics cannot be read \(metrics/metrics is not what was written\); this"):
        jaxvit.load(run)
    (run / "checkpoints" / "4" / "manifest.json").unlink()  # as an earlier version wrote it
    assert jaxvit.load(run).step == 4
    assert "using the weights of step 4, not the best" in capsys.readouterr().err


OWN = """
from pathlib import Path
Path(__file__).with_name("was_run").touch()
import flax.linen as nn, numpy as np
class Linear(nn.Module):
    num_classes: int = 10
    @nn.compact
    def __call__(self, images, *, train: bool):
        return nn.Dense(self.num_classes)(images.reshape(images.shape[0], -1))
def noise():
    rng = np.random.default_rng(0)
    parts = {s: (rng.integers(0, 255, (40, 8, 8, 1), np.uint8), np.arange(40) % 10) for s in ("train", "test")}
    return {**parts, "class_names": [*"0123456789"]}
def same(key, image):
    return image
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of a module `own_things`, which notes that it was run."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own_things.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path / "own")
    monkeypatch.delitem(sys.modules, "own_things", raising=False)
    yield tmp_path / "own"
    sys.modules.pop("own_things", None)


def was_run(own):
    return (own / "was_run").exists()


def test_a_model_outside_the_package_is_imported_only_if_allowed(run, own, capsys):
    from jaxvit.config.keys import model_config

    config = tiny_config(train__duration="1 steps", optim__weight_decay=0.0, augment__own="own_things:same")
    config.model = model_config("own_things:Linear")
    with jax.numpy_dtype_promotion("standard"):
        result = jaxvit.train(config, run.parent / "linear")
    run = run.parent / "linear"
    (own / "was_run").unlink()
    sys.modules.pop("own_things")
    image = run.parent / "image.png"
    from PIL import Image

    Image.new("L", (8, 8)).save(image)
    refusal = r"linear: its model 'own_things:Linear' is code outside jaxvit, .* runs module own_things; .*own_code"
    calls = [
        lambda *flag: evaluate([f"--workdir={run}", "--json", *flag]),
        lambda *flag: predict([f"--workdir={run}", str(image), *flag]),
        lambda *flag: report([str(run), "--figures", *flag]),
        lambda *flag: jaxvit.load(run, own_code=bool(flag)),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=refusal):
            call()
    assert report([str(run), "--format=csv"]) == 0  # the table does without
    assert "own_things:Linear" in capsys.readouterr().out
    assert not was_run(own) and "own_things" not in sys.modules
    for call in calls:
        call("--own_code")
    assert was_run(own)
    assert f'"top1": {result["test"]["top1"]}' in capsys.readouterr().out


def test_a_folder_that_names_a_module_runs_nothing(run, own):
    for name in ("own_things:Linear", "own_things", "own_things.Linear", "own_things.py"):
        change(run / "model.json", name=name)
        with pytest.raises(UsageError, match="own_things"):
            jaxvit.load(run)
    change(run / "model.json", name="vit", augmentation__own="own_things:same")
    jaxvit.load(run)([np.zeros((8, 8, 1), np.uint8)])  # an augmentation is of no use here: nothing to be allowed
    change(
        run / "config.json",
        config={**json.loads((run / "config.json").read_text())["config"], "model": {"name": "own_things:X"}},
    )
    jaxvit.load(run)
    assert not was_run(own) and "own_things" not in sys.modules


def test_a_data_set_outside_the_package_is_opened_only_if_allowed(run, own, capsys):
    file = run / "config.json"
    edit_json(file, '"digits"', '"own_things:noise"')
    with pytest.raises(UsageError, match=r"its data set 'own_things:noise' is code outside .*--own_code"):
        evaluate([f"--workdir={run}"])
    assert report([str(run), "--figures", "--n=1"]) == 0
    assert "left out: " in capsys.readouterr().err
    assert not was_run(own)
    assert evaluate([f"--workdir={run}", "--own_code"]) == 0
    assert evaluate([f"--workdir={run}", "--data=own_things:noise"]) == 0  # named by the user


def test_a_run_that_is_damaged_leaves_the_others_in_the_table(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "other")
    (run / "result.json").write_text("{}")
    assert report([str(tmp_path), "--format=csv"]) == 1
    out, err = capsys.readouterr()
    assert out.count("\n") == 2 and "other" in out and "run/result.json cannot be read" in err
    with pytest.raises(UsageError, match=r"run/result.json cannot be read"):
        report([str(run)])
