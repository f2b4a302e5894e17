"""Export of a trained model to files that run without jaxvit."""

import ast
import json
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from tiny import FAMILIES, tiny_config, train_family

import jaxvit
from jaxvit.cli import export as verb
from jaxvit.cli.benchmark import main as benchmark
from jaxvit.config.keys import base_config
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.exports import check, write
from jaxvit.exports.card import public_name
from jaxvit.exports.formats import FORMATS, format_of
from jaxvit.files import CHECKSUM, locked_folder

HAS_ONNX = all(map(FORMATS["onnx"].there, FORMATS["onnx"].needs)) and jax.version.__version_info__ < (0, 12)
HAS_TENSORFLOW = FORMATS["savedmodel"].there("tensorflow")
ONNX = pytest.param("onnx", marks=pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx"))
SAVEDMODEL = pytest.param("savedmodel", marks=pytest.mark.skipif(not HAS_TENSORFLOW, reason="needs tensorflow"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("exporting") / "run"
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(tiny_config(optim__ema_decay=0.9), workdir)
    return workdir


def images(shape, count=5):
    return np.random.default_rng(1).integers(0, 256, (count, *shape), dtype=np.uint8)


def contents(path):
    """The bytes of a file, of the files in an archive, or of those in a folder."""
    if path.is_dir():
        return [file.read_bytes() for file in path.rglob("*") if file.is_file()]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return [archive.read(name) for name in archive.namelist()]
    return [path.read_bytes()]


def loaded_from(path):
    return runpy.run_path(str(format_of(path).loader))["load"](str(path))


@pytest.mark.parametrize("kind", ["stablehlo", ONNX, SAVEDMODEL, "hub"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_file_gives_the_models_probabilities(run, tmp_path, capsys, kind, dtype):
    assert verb.main([f"--workdir={run}", f"--to={kind}", f"--dtype={dtype}", f"--out={tmp_path}"]) == 0
    out = capsys.readouterr().out
    path = tmp_path / FORMATS[kind].file(dtype)
    assert f"{path}: " in out and "on 25 images of digits, test[:25]" in out
    assert (dtype == "float32") != (f"{dtype} weights: top-1 " in out)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, f"run_{kind}.py"])  # and nothing else
    for content in contents(path):
        assert not any(os.fsencode(place) in content for place in (run, tmp_path, os.environ["TFDS_DATA_DIR"]))
    model = jaxvit.load(run)
    call, facts = loaded_from(path)
    assert tuple(facts["class_names"]) == model.class_names
    for count in (1, 5):
        batch = images(model.image_shape, count)
        found, wanted = np.asarray(call(batch)), np.asarray(model(batch))
        assert np.abs(found - wanted).max() < {"float32": 1e-5, "bfloat16": 2e-2, "int8": 2e-2}[dtype]
        assert dtype == "float32" or np.abs(found - wanted).max() > 0


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("token_learner_vit", "fuser"))) for name in FAMILIES],
)
def test_every_family(tmp_path, name):
    workdir, kinds = train_family(tmp_path / "run", name), ["stablehlo", "hub", *(["onnx"] if HAS_ONNX else [])]
    assert verb.main([f"--workdir={workdir}", f"--to={','.join(kinds)}", "--out", str(tmp_path / "out")]) == 0
    assert {FORMATS[kind].file("float32") for kind in kinds} <= {file.name for file in (tmp_path / "out").iterdir()}


@pytest.mark.skipif(not HAS_ONNX, reason="needs the extra onnx")
def test_onnx_has_what_onnxruntime_is_fast_at(tmp_path):
    """For a model with pooling, fixed positions, and heads as wide as the tokens."""
    import onnx

    config = tiny_config(train__duration="1 steps", data__validation="")
    wide = {"dim": 8, "depth": 2, "heads": 2, "head_dim": 8, "conv_layers": 1, "frozen_positions": True}
    config.model = base_config("cct", **wide).model
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(config, tmp_path / "run")
    assert verb.main([f"--workdir={tmp_path / 'run'}", "--to=onnx", f"--out={tmp_path}"]) == 0
    graph = onnx.load(tmp_path / "model.onnx").graph
    pools = [node for node in graph.node if node.op_type == "MaxPool"]
    assert [each.ints for node in pools for each in node.attribute if each.name == "kernel_shape"] == [[3, 3]]
    constant = {each.name for each in graph.initializer}
    for node in graph.node:
        if set(node.input) <= constant:  # computed once, when the file is loaded
            constant |= set(node.output)
        else:
            assert node.op_type != "Einsum"


def test_the_loader_stands_alone(run, tmp_path, capsys):
    """Used as its first lines say, from another folder, in a process without jaxvit."""
    assert verb.main([f"--workdir={run}", f"--out={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    script = (tmp_path / "run_stablehlo.py").read_text()
    assert printed.endswith(script) and len(script.splitlines()) <= 60 and "jaxvit" not in script.split('"""', 2)[2]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    batch = images((8, 8, 1))
    np.save(elsewhere / "images.npy", batch)
    words = [sys.executable, "-I", "../run_stablehlo.py", "../model.stablehlo", "images.npy", "said.npy"]
    done = subprocess.run(words, cwd=elsewhere, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    model = jaxvit.load(run)
    wanted = np.asarray(model(batch))
    assert np.abs(np.load(elsewhere / "said.npy") - wanted).max() < 1e-5
    said = [f"{model.class_names[row.argmax()]} {row.max():.4f}" for row in wanted]
    assert [line.split()[0] for line in done.stdout.splitlines()] == [line.split()[0] for line in said]


def test_the_program_is_for_every_platform(run, tmp_path):
    assert verb.main([f"--workdir={run}", f"--out={tmp_path}"]) == 0
    with zipfile.ZipFile(tmp_path / "model.stablehlo") as file:
        program = jax.export.deserialize(bytearray(file.read("program")))
        facts = json.loads(file.read("model.json"))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert facts["weights"] == "float32" and facts["image_shape"] == [8, 8, 1] and facts["model"] == "vit"


def test_smaller_weights_make_smaller_files(tmp_path):
    """For a model whose file consists mostly of weights."""
    with jax.numpy_dtype_promotion("standard"):
        config = tiny_config(train__duration="1 steps", data__validation="", data__test="")
        config.model.dim, config.model.heads = 128, 4
        jaxvit.train(config, tmp_path / "run")
    sizes = {}
    for dtype in ("float32", "bfloat16", "int8"):
        verb.main([f"--workdir={tmp_path / 'run'}", f"--dtype={dtype}", f"--out={tmp_path}"])
        sizes[dtype] = (tmp_path / FORMATS["stablehlo"].file(dtype)).stat().st_size
    assert sizes["bfloat16"] < 0.6 * sizes["float32"] and sizes["int8"] < 0.4 * sizes["float32"]


def test_without_the_data_it_is_compared_on_noise(run, tmp_path, capsys, monkeypatch):
    def gone(*_, **__):
        raise UsageError("the data is not here")

    monkeypatch.setattr(write, "read_split", gone)
    assert verb.main([f"--workdir={run}", f"--out={tmp_path}", "--dtype=int8"]) == 0
    out = capsys.readouterr().out
    assert "with int8 weights on 32 images of noise" in out
    assert "the accuracy of int8 weights was not measured: the data is not here" in out


def test_a_file_that_disagrees_is_thrown_away(run, tmp_path, monkeypatch):
    (tmp_path / "model.stablehlo").write_text("the one from before")
    right = write.ExportModel.probabilities
    monkeypatch.setattr(write.ExportModel, "probabilities", lambda *a, **k: right(*a, **k) * np.float32(1.01))
    with pytest.raises(RunFailedError, match=r"differs from the model by 0\.00.*deleted"):
        verb.main([f"--workdir={run}", f"--out={tmp_path}"])
    assert [p.name for p in tmp_path.iterdir()] == ["model.stablehlo"]
    assert (tmp_path / "model.stablehlo").read_text() == "the one from before"


def test_a_file_that_does_not_run_is_thrown_away(run, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxvit.exports.stablehlo.write", lambda model, path: Path(path).write_text("no program"))
    with pytest.raises(RunFailedError, match=r"the exported file does not run: .*zip"):
        verb.main([f"--workdir={run}", f"--out={tmp_path}"])
    assert not list(tmp_path.iterdir())


def test_a_loader_may_not_bring_the_package_in(run, tmp_path, monkeypatch):
    script = tmp_path / "run_stablehlo.py"
    script.write_text("import jaxvit\n" + FORMATS["stablehlo"].loader.read_text())
    monkeypatch.setattr("jaxvit.exports.formats._LOADERS", tmp_path)
    with pytest.raises(RunFailedError, match="import of jaxvit halted"):
        verb.main([f"--workdir={run}", f"--out={tmp_path / 'out'}"])
    assert check.LARGEST == 1e-4


def test_again_replaces_what_is_there(run, tmp_path):
    for _ in range(2):
        assert verb.main([f"--workdir={run}", "--to=hub,stablehlo", f"--out={tmp_path}"]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"hub", "model.stablehlo", "run_hub.py", "run_stablehlo.py"}


def test_what_is_not_an_export_is_left_alone(run, tmp_path):
    """A run folder with the name of a format, a user's folder, a user's script."""
    shutil.copytree(run, tmp_path / "hub")
    with pytest.raises(UsageError, match=r"holds .*, which is not part of a hub export"):
        verb.main([f"--workdir={tmp_path / 'hub'}", "--to=hub", f"--out={tmp_path}"])
    with pytest.raises(UsageError, match="was not written by jaxvit"):
        (tmp_path / "run_stablehlo.py").write_text("mine")
        verb.main([f"--workdir={run}", f"--out={tmp_path}"])
    assert (tmp_path / "hub" / "result.json").exists() and (tmp_path / "run_stablehlo.py").read_text() == "mine"
    assert not (tmp_path / "model.stablehlo").exists()


def test_one_export_at_a_time(run, tmp_path):
    with locked_folder(tmp_path), pytest.raises(UsageError, match="another export is writing there"):
        verb.main([f"--workdir={run}", f"--out={tmp_path}"])
    assert verb.main([f"--workdir={run}", f"--out={tmp_path}"]) == 0


def test_a_file_that_does_not_end_is_thrown_away(run, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "_PATIENCE", 0.01)
    with pytest.raises(RunFailedError, match=r"did not finish 25 images in 0.01 s"):
        verb.main([f"--workdir={run}", f"--out={tmp_path}"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to=stablehl"], "there is no format 'stablehl' .did you mean 'stablehlo'"),
        (["--to=stablehlo,"], "there is no format ''"),
        (["--dtype=int4"], "invalid choice: 'int4'"),
        (["--workdir=/no/such"], "/no/such: there is no such folder"),
        (["--too=onnx"], "unknown argument '--too"),
    ],
)
def test_mistakes_are_one_line(run, words, says):
    with pytest.raises(UsageError, match=says):
        verb.main([f"--workdir={run}", *words])


def test_a_missing_package_is_named_with_its_remedy(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for kind, says in (
        ("onnx", r"--to=onnx needs jax2onnx.*jaxvit\[onnx\]"),
        ("savedmodel", "--to=savedmodel needs tens"),
    ):
        with pytest.raises(UsageError, match=says):
            verb.main([f"--workdir={run}", f"--to={kind}"])


def F(*shape):
    return np.zeros(shape, np.float32)


def save(tensors, metadata=None):
    metadata = {"step": "1", "weights": "model"} if metadata is None else metadata
    return lambda file: safetensors.numpy.save_file(tensors, file, metadata)


@pytest.fixture(scope="module")
def hub(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    verb.main([f"--workdir={run}", "--to=hub", f"--out={folder}"])
    return folder / "hub"


def test_a_hub_folder_is_the_model(run, hub):
    mine, theirs = jaxvit.load(hub), jaxvit.load(run)
    assert (mine.step, mine.weights, mine.class_names) == (theirs.step, "ema", theirs.class_names)
    batch = images(mine.image_shape)
    assert np.array_equal(np.asarray(mine(batch)), np.asarray(theirs(batch)))
    assert json.loads((hub / "config.json").read_text())["config"]["data"]["dir"] == ""


def test_other_verbs_take_a_hub_folder(hub, tmp_path, capsys):
    from jaxvit.cli.evaluate import main as evaluate

    assert evaluate([f"--workdir={hub}", f"--out={tmp_path}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 25


def test_the_card_tells_the_run(run, hub):
    card, test = (hub / "README.md").read_text(), json.loads((run / "result.json").read_text())["test"]
    assert f"top-1 {test['top1']:.2%}" in card and "| train | train[:60] | 60 |" in card
    assert (
        "| `optim.ema_decay` | 0.9 |" in card
        and "| `model.dim` | 8 |" in card
        and "`model.pool`" not in card
        and "averaged over training" in card
    )
    for heading in ("Use", "Data", "Recipe", "Result", "Limits"):
        assert f"## {heading}\n" in card


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: f.write_bytes(f.read_bytes()[:100]), "cannot be read"),
        (lambda f: f.write_text("no weights"), "cannot be read"),
        (save({"params.a": F(2)}, {}), "cannot be read"),
        (save({"params.a": F(2)}), "model.json does not fit the weights of step 1"),
        (save({"params.a": F(2), "params.a.b": F(2)}), "extends the name of an array"),
        (save({"params." + "a." * 3000 + "a": F(2)}), "a name of too many parts"),
        (save({"params.a": np.zeros(2, np.float64)}), "params.a is float64"),
        (save({"params.a": np.zeros((2, 2), np.int8), "params.a.scale": F(2)}), "cannot be read"),
        (save({"params.a": np.zeros((2, 2), np.int8), "params.a.scale": F(3, 1)}), "params.a.scale is float32"),
        (save({"params.a": np.zeros((2, 2), np.int8)}), "cannot be read"),
        (save({"params.a": F(2)}, {"step": "-1", "weights": "model"}), "step -1"),
        (save({"params.a": F(2)}, {"step": "1", "weights": "others"}), "weights 'others'"),
    ],
)
def test_damage_of_a_hub_folder_is_one_line(hub, tmp_path, damage, says):
    import shutil

    shutil.copytree(hub, tmp_path / "hub")
    damage(tmp_path / "hub" / "model.safetensors")
    with pytest.raises(UsageError, match=says):
        jaxvit.load(tmp_path / "hub")


def test_a_hub_folder_of_a_billion_layers_is_refused(hub, tmp_path):
    shutil.copytree(hub, tmp_path / "hub")
    facts = json.loads((tmp_path / "hub" / "model.json").read_text())
    facts["attributes"]["depth"] = 10**9
    (tmp_path / "hub" / "model.json").write_text(json.dumps({k: v for k, v in facts.items() if k != CHECKSUM}))
    with pytest.raises(UsageError, match="'depth' says 1000000000 layers, and the weights are"):
        jaxvit.load(tmp_path / "hub")


def test_a_hub_folder_holds_one_set_of_weights(hub):
    with pytest.raises(UsageError, match="it holds only 'ema'"):
        jaxvit.load(hub, weights="model")


def test_files_are_timed_beside_the_original(run, tmp_path, capsys):
    verb.main([f"--workdir={run}", "--to=stablehlo,hub", f"--out={tmp_path}"])
    capsys.readouterr()
    files = f"--file={tmp_path / 'model.stablehlo'},{tmp_path / 'hub'}"
    words = [files, f"--workdir={run}", "--rounds=1", "--seconds=0.01"]
    assert benchmark([*words, f"--out={tmp_path / 'speed'}"]) == 0
    out = capsys.readouterr().out
    assert "| jitted original | jax |" in out and "| stablehlo |" in out and "| hub |" in out
    assert (tmp_path / "speed" / "files.md").read_text() == out
    assert benchmark([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["files"]
    assert [sorted(each["batches"]) for each in found] == [["1", "32"]] * 3 and found[0]["ratios"] == {
        "1": 1.0,
        "32": 1.0,
    }
    assert benchmark([*words, "--dry_run"]) == 0 and "nothing was measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--file=/no/such.onnx"], "/no/such.onnx: there is no such file"),
        (["--file={here}/notes.txt"], "notes.txt: not a file that jaxvit export writes"),
        (["--workdir=runs"], "--workdir and --own_code are for --file"),
        (["--file={here}/model.stablehlo", "--batch=0"], "--batch does not apply to exported files"),
        (["--file={here}/model.stablehlo", "--model=vit"], "--model does not apply to exported files"),
        (["--file={here}/model.stablehlo", "--rounds=0"], "--rounds=0: must be 1 or more"),
        (["--file={here}/model.stablehlo", "--config.seed=1"], "unknown argument"),
    ],
)
def test_mistakes_in_timing_files(tmp_path, words, says):
    for name in ("notes.txt", "model.stablehlo"):
        (tmp_path / name).write_text("nothing")
    with pytest.raises(UsageError, match=says):
        benchmark([word.format(here=tmp_path) for word in words])
    with pytest.raises(RunFailedError, match="cannot be run"):
        benchmark([f"--file={tmp_path}/model.stablehlo"])


def test_a_model_that_computes_in_bfloat16_is_exported_in_float32(tmp_path):
    config = tiny_config(train__duration="1 steps", data__validation="")
    config.model.dtype, config.model.initialiser = "bfloat16", "keras"  # whose head does not begin with zeros
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(config, tmp_path / "run")
    assert verb.main([f"--workdir={tmp_path / 'run'}", "--to=stablehlo,hub", f"--out={tmp_path}"]) == 0
    call, _ = loaded_from(tmp_path / "model.stablehlo")
    model, batch = jaxvit.load(tmp_path / "run"), images((8, 8, 1))
    exact = write.ExportModel.of(model, "float32").compiled(reference=True)(batch)
    assert np.abs(np.asarray(call(batch)) - np.asarray(exact)).max() < 1e-6
    with jax.numpy_dtype_promotion("standard"):
        in_bfloat16 = np.asarray(model(batch))
    assert np.abs(in_bfloat16 - np.asarray(exact)).max() > check.LARGEST  # so that it matters
    from_hub = jaxvit.load(tmp_path / "hub")
    assert np.abs(np.asarray(from_hub(batch)) - np.asarray(exact)).max() < 1e-6
    assert from_hub.config.model.dtype == "float32"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_a_model_that_sees_resized_images_is_exported(interpolation, tmp_path):
    config = tiny_config(train__duration="1 steps", data__validation="", augment__size=16)
    config.augment.interpolation, config.model.initialiser = interpolation, "keras"
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(config, tmp_path / "run")
    assert verb.main([f"--workdir={tmp_path / 'run'}", "--to=onnx,stablehlo", f"--out={tmp_path}"]) == 0
    assert (tmp_path / "model.onnx").exists() and (tmp_path / "model.stablehlo").exists()


def test_outputs_beyond_the_classes_have_no_name(tmp_path):
    config = tiny_config(train__duration="1 steps", data__validation="")
    config.model.num_classes = 12
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(config, tmp_path / "run")
    assert verb.main([f"--workdir={tmp_path / 'run'}", "--to=stablehlo,hub", f"--out={tmp_path}"]) == 0
    batch = images((8, 8, 1))
    for name in ("model.stablehlo", "hub"):
        said = np.asarray(loaded_from(tmp_path / name)[0](batch))
        assert said.shape == (5, 10) and np.all(said.sum(axis=1) < 1)


OWN = """
import flax.linen as nn

class Own(nn.Module):
    num_classes: int = 10
    fixed: bool = False

    @nn.compact
    def __call__(self, images, *, train):
        if self.fixed and images.shape[0] > 4:  # the batch may not be looked at
            images = images * 1.0
        return nn.Dense(self.num_classes)(images.reshape(images.shape[0], -1))
"""


def own_run(tmp_path, monkeypatch, **attributes):
    (tmp_path / "my_exported_model.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = tiny_config(train__duration="1 steps", data__validation="")
    config.model = base_config("my_exported_model:Own", **attributes).model
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(config, tmp_path / "run")
    return [f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--own_code"]


def test_a_model_of_ones_own(tmp_path, monkeypatch):
    words = own_run(tmp_path, monkeypatch)
    assert verb.main([*words, "--to=stablehlo,hub"]) == 0
    assert "own_code=True" in (tmp_path / "out" / "hub" / "README.md").read_text()
    with pytest.raises(UsageError, match="--own_code"):
        jaxvit.load(tmp_path / "out" / "hub")
    files = f"--file={tmp_path / 'out' / 'model.stablehlo'},{tmp_path / 'out' / 'hub'}"
    assert benchmark([files, words[0], "--own_code", "--rounds=1", "--seconds=0.01", "--json"]) == 0


def test_a_model_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    words = own_run(tmp_path, monkeypatch, fixed=True)
    with pytest.raises(RunFailedError, match=r"this format cannot express the model .Inconclusive"):
        verb.main(words)
    assert not (tmp_path / "out").exists()


def test_a_model_that_has_diverged_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        write.ExportModel, "compiled", lambda *a, **k: lambda x: np.full((len(x), 10), np.nan, np.float32)
    )
    with pytest.raises(RunFailedError, match="not finite"):
        verb.main([f"--workdir={run}", f"--out={tmp_path}"])
    assert not list(tmp_path.iterdir())


def test_a_folder_is_back_when_its_successor_fails(run, tmp_path, monkeypatch):
    words = [f"--workdir={run}", "--to=hub", f"--out={tmp_path}"]
    verb.main(words)
    (tmp_path / "hub" / "README.md").write_text("the one from before")
    rename, seen = os.replace, []

    def fails(source, target):
        if Path(target) == tmp_path / "hub":
            seen.append(source)
            if len(seen) == 1:
                raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="Input/output"):
        verb.main(words)
    assert (tmp_path / "hub" / "README.md").read_text() == "the one from before"
    assert {p.name for p in tmp_path.iterdir()} == {"hub", "run_hub.py"}


def test_what_a_killed_export_left_is_taken_away(run, tmp_path):
    left = tmp_path / ".exporting-abc"
    (left / "old" / "hub").mkdir(parents=True)
    (left / "old" / "hub" / "mine.txt").write_text("moved aside")
    assert verb.main([f"--workdir={run}", f"--out={tmp_path}"]) == 0
    assert not left.exists() and (tmp_path / "hub" / "mine.txt").exists()


def test_something_else_in_its_place_is_refused(run, tmp_path):
    (tmp_path / "hub").write_text("a file")
    (tmp_path / "model.stablehlo").mkdir()
    for kind in ("hub", "stablehlo"):
        with pytest.raises(UsageError, match=f"exists and is not a {kind}"):
            verb.main([f"--workdir={run}", f"--to={kind}", f"--out={tmp_path}"])


def test_the_card_tells_the_very_weights(run, tmp_path):
    """The card describes the exported weights, not the run's result; also for a hub folder exported again."""
    assert (
        verb.main([f"--workdir={run}", "--to=hub", "--checkpoint=latest", "--weights=model", f"--out={tmp_path}"]) == 0
    )
    card = (tmp_path / "hub" / "README.md").read_text()
    loaded = jaxvit.load(run, checkpoint="latest", weights="model")
    source = write.read_split(loaded)[1]
    found, _ = write.evaluate_source(loaded, source)
    assert f"top-1 {found['top1']:.2%}" in card and f"loss {found['loss']:.4f}" in card and "averaged" not in card
    assert verb.main([f"--workdir={tmp_path / 'hub'}", "--to=hub", f"--out={tmp_path / 'again'}"]) == 0
    again = (tmp_path / "again" / "hub" / "README.md").read_text()
    assert "| train | train[:60] | 60 |" in again and again == card


def test_a_card_without_data_says_so(run, tmp_path, monkeypatch):
    def gone(*_, **__):
        raise UsageError("the data is not here")

    monkeypatch.setattr(write, "read_split", gone)
    verb.main([f"--workdir={run}", "--to=hub", f"--out={tmp_path}"])
    assert "Not measured: the data set was not available" in (tmp_path / "hub" / "README.md").read_text()


def test_a_folder_to_give_away_does_not_say_where_the_images_lay():
    assert public_name("image_folder:/home/somebody/photos") == "image_folder:photos"
    assert public_name("image_table:/home/somebody/labels.csv") == "image_table:labels.csv"
    assert public_name("cifar10") == "cifar10"


def test_a_jax_that_the_converter_does_not_know_is_one_line(monkeypatch):
    monkeypatch.setattr("jaxvit.exports.formats.importlib.metadata.version", lambda _: "0.12.0.1")
    with pytest.raises(UsageError, match=r"its converter does not support jax 0\.12\.0\.1; .*--to=stablehlo"):
        FORMATS["onnx"].check_converter()
    FORMATS["stablehlo"].check_converter()


@pytest.mark.parametrize("script", sorted((Path(jaxvit.__file__).parent / "exports" / "loaders").glob("run_*.py")))
def test_a_script_shows_a_class_name_as_text(script):
    """Without the libraries that the script needs."""
    tree = ast.parse(script.read_text())
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "shown")
    names: dict = {}
    exec(compile(ast.Module([function], []), str(script), "exec"), names)
    assert names["shown"]("a\x1b[2J\n\u202e\ud800") == r"a\x1b[2J\n\u202e\ud800"
    assert names["shown"]("größe 猫 7") == "größe 猫 7"
    assert "shown(facts['class_names']" in script.read_text()
