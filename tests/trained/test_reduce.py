"""`--reduce`: a trained model with fewer tokens, in every verb that uses one."""

import dataclasses
import json
import runpy
import zipfile

import jax
import numpy as np
import pytest
from tiny import train_family

import jaxvit
from jaxvit.cli.benchmark import main as benchmark
from jaxvit.cli.evaluate import main as evaluate
from jaxvit.cli.export import main as export
from jaxvit.cli.predict import main as predict
from jaxvit.cli.report import main as report
from jaxvit.exports import check
from jaxvit.exports.formats import FORMATS, format_of
from jaxvit.figures.groups import colours
from jaxvit.models.count import count_macs
from jaxvit.trained.introspection import merged_places

HAS_ONNX = all(map(FORMATS["onnx"].there, FORMATS["onnx"].needs)) and jax.version.__version_info__ < (0, 12)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A ViT with 4 patches, a class token and two registers."""
    return train_family(tmp_path_factory.mktemp("reduce") / "run", "vit")


def test_evaluate_and_predict(run, capsys):
    assert evaluate([f"--workdir={run}", "--reduce=merge:macs=.95", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    whole, fewer = jaxvit.load(run), jaxvit.load(run).reduced("merge:r=1")
    macs = [count_macs(each.model, each.input_shape)["all"] for each in (whole, fewer)]
    assert found["reduce"] == "merge:r=1" and found["macs"] == macs[1] < macs[0]
    said = f"{macs[1]:,} multiply-adds per image instead of {macs[0]:,} ({macs[1] / macs[0]:.1%})"
    assert f"note: merge:r=1: {said}" in err
    assert json.loads((run / "evaluation" / "test_merge_macs_95.json").read_text())["count"] == found["count"] == 25
    again = jaxvit.evaluate(fewer)
    assert again["loss"] == found["loss"] != jaxvit.evaluate(whole)["loss"]
    image = np.random.default_rng(0).integers(0, 256, whole.image_shape, dtype=np.uint8)
    assert fewer.predict(image).top != whole.predict(image).top
    assert jaxvit.evaluate(whole.reduced("merge:r=0"))["loss"] == jaxvit.evaluate(whole)["loss"]


def test_predict_prints_what_the_reduced_model_says(run, tmp_path, capsys):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.png")
    words = [str(tmp_path / "one.png"), f"--workdir={run}", "--format=jsonl"]
    assert predict([*words, "--reduce=prune:keep=.5,by=norm"]) == 0
    said = json.loads(capsys.readouterr().out)
    wanted = jaxvit.load(run).reduced("prune:keep=.5,by=norm").predict(pixels).top
    flat = json.dumps(said)
    assert all(name in flat for name, _ in wanted[:3])
    assert any(f"{wanted[0][1]:.4f}"[:5] in word for word in flat.split())


@pytest.mark.parametrize("reduce", ["merge:r=1", "prune:keep=.5"])
def test_exported_files_carry_it(run, tmp_path, reduce):
    kinds = ["stablehlo", "hub", *(["onnx"] if HAS_ONNX else [])]
    whole, rng = jaxvit.load(run), np.random.default_rng(0)
    # After one step of training all answers are alike, with and without.
    variables = jax.tree.map(lambda x: x + rng.normal(0, 0.5, x.shape).astype("f"), jax.device_get(whole.variables))
    whole = dataclasses.replace(whole, variables=variables)
    jaxvit.export(whole.reduced(reduce), ",".join(kinds), out=tmp_path)
    fewer = whole.reduced(reduce)
    images = np.random.default_rng(1).integers(0, 256, (3, *whole.image_shape), dtype=np.uint8)
    wanted = np.asarray(fewer(images))
    for kind in kinds:
        path = tmp_path / FORMATS[kind].file("float32")
        call, facts = runpy.run_path(str(format_of(path).loader))["load"](str(path))
        for count in (1, 3):
            np.testing.assert_allclose(np.asarray(call(images[:count])), wanted[:count], atol=1e-5)
        if kind != "hub":
            assert facts["reduce"] == fewer.model.reduce
    assert np.abs(wanted - np.asarray(whole(images))).max() > 1e-2
    assert jaxvit.load(tmp_path / "hub").model.reduce == fewer.model.reduce


def test_a_file_that_chose_other_tokens_for_many_images_is_refused(run, tmp_path, monkeypatch):
    """The check leaves out a few images, where two choices are equal up to rounding, but no more."""
    from jaxvit.exports.model import ExportModel

    model = ExportModel.of(jaxvit.load(run).reduced("merge:r=1"), "float32")
    images = np.random.default_rng(1).integers(0, 256, (16, *model.loaded.image_shape), dtype=np.uint8)
    wanted = np.asarray(model.compiled(reference=True)(images))
    for wrong, left_out in ((2, 2), (3, 0)):
        said = wanted.copy()
        said[:wrong] = np.roll(said[:wrong], 1, axis=1)
        monkeypatch.setattr(check, "_run_it", lambda *_, said=said: [said, said[:1], said[:3]])
        largest, apart = check.largest_difference(model, FORMATS["stablehlo"], tmp_path, images)
        assert apart == left_out and (largest < check.LARGEST) == bool(left_out)


def test_the_verb_takes_the_flag(run, tmp_path, capsys):
    assert export([f"--workdir={run}", f"--out={tmp_path}", "--reduce=merge:r=1", "--dry_run"]) == 0
    assert "note: merge:r=1: " in capsys.readouterr().err
    assert export([f"--workdir={run}", f"--out={tmp_path}", "--reduce=merge:r=1"]) == 0
    with zipfile.ZipFile(tmp_path / "model.stablehlo") as file:
        assert json.loads(file.read("model.json"))["reduce"] == "merge:r=1"


def test_report_draws_which_patches_are_merged(run, capsys):
    assert report([str(run), "--figures", "--n=2", "--reduce=merge:r=1"]) == 0
    assert (run / "figures" / "merged_tokens.png").stat().st_size > 5_000
    assert "merged to one token" in (run / "figures" / "index.html").read_text()
    loaded = jaxvit.load(run).reduced("merge:r=1")
    images = np.random.default_rng(1).integers(0, 256, (3, *loaded.image_shape), dtype=np.uint8)
    places = merged_places(loaded, images)
    assert [*places] == ["block_0", "block_1"]
    assert [len(set(found[0])) for found in places.values()] == [3, 2]


def test_colours_of_groups():
    shades = colours(np.array([3, 5, 3, -1, 7, 7]))
    assert (shades[0] == shades[2]).all() and (shades[4] == shades[5]).all() and (shades[0] != shades[4]).any()
    assert shades[1, 3] == 0 and shades[3].tolist() == [0, 0, 0, 1]


def test_benchmark_counts_it(capsys):
    words = ["--model=vit", "--config.model.depth=2", "--config.model.dim=8", "--config.model.heads=2", "--dry_run"]
    assert benchmark(words) == 0
    whole = capsys.readouterr().out
    assert benchmark([*words, "--reduce=merge:macs=.8"]) == 0
    assert capsys.readouterr().out != whole
