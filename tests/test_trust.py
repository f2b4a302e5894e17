"""Untrusted files and folders cannot run code. See docs/trust.md."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from tiny import tiny_config

import jaxvit
from jaxvit.cli.benchmark import main as benchmark
from jaxvit.cli.evaluate import main as evaluate
from jaxvit.cli.export import main as export
from jaxvit.cli.report import main as report
from jaxvit.errors import UsageError

ROOT = Path(__file__).parents[1]
CODE = """
import pathlib
pathlib.Path({mark!r}).write_text("run")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trusting") / "run"
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(tiny_config(train__duration="1 steps"), workdir)
    return workdir


@pytest.fixture
def run(trained, tmp_path):
    import shutil

    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """A file that exists as soon as a module in the working folder has run."""
    folder, mark = tmp_path / "downloaded", tmp_path / "mark"
    (folder / "evp").mkdir(parents=True)
    code = CODE.format(mark=str(mark))
    for name in ("evil.py", "evp/__init__.py", "evp/x.py", "PIL.py", "rich.py", "numpy.py", "ml_collections.py"):
        (folder / name).write_text(code)
    monkeypatch.chdir(folder)
    before = set(sys.modules)
    path = list(sys.path)
    yield mark
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith("ev"):
            del sys.modules[name]


def without_checksum(file):
    """The content of a JSON file without its checksum; an attacker would fix or remove the checksum."""
    return {key: value for key, value in json.loads(file.read_text()).items() if key != "checksum"}


def change_config(run, **changes):
    file = run / "config.json"
    found = without_checksum(file)
    for key, value in changes.items():
        section, _, leaf = key.partition("__")
        found["config"][section][leaf] = value
    file.write_text(json.dumps(found))


VERBS = (
    ["train", "--config=digits", "--dry_run"],
    ["summary", "--model=tutorial_mini_vit"],
    ["report", "."],
    ["predict", "--workdir=.", "x.png"],
    ["embed", "--workdir=.", "x.png", "--out=x.npz"],
)


def start(words, **env):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env)


def test_no_verb_runs_what_lies_in_the_working_folder(mark):
    """Files named like installed modules are not imported. One process runs all verbs, as `python -m jaxvit` does."""
    done = start(["-m", "jaxvit", *VERBS[1]])
    assert done.returncode == 0 and "Traceback" not in done.stderr and not mark.exists()
    every = "import sys, runpy, os\nsys.argv = ['jaxvit', '--version']\nsys.path[0] = os.getcwd()\n"
    every += "try: runpy.run_module('jaxvit', run_name='__main__', alter_sys=True)\nexcept SystemExit: pass\n"
    every += "assert os.getcwd() not in sys.path and '' not in sys.path\n"
    verbs = "benchmark, data, embed, export, evaluate, predict, report, reproduce, sweep"
    every += f"from jaxvit.cli import command_line, {verbs}\n"
    every += (
        f"for words in {VERBS!r}:\n    try: command_line._dispatch(words)\n    except BaseException as e: print(e)\n"
    )
    every += "assert os.getcwd() not in sys.path and '' not in sys.path\nimport PIL.Image, rich, numpy\n"
    done = start(["-c", every])
    assert done.returncode == 0, done.stderr
    assert not mark.exists()


def test_code_that_was_asked_for_is_found_in_the_working_folder_last(mark):
    Path("mine.py").write_text(
        "import flax.linen as nn\nclass Net(nn.Module):\n    num_classes: int = 10\n    @nn.compact\n"
        "    def __call__(self, x, *, train):\n        return nn.Dense(self.num_classes)(x.reshape(len(x), -1))\n"
    )
    done = start(["-m", "jaxvit", "summary", "--model=mine:Net"])
    assert done.returncode == 0 and "Dense" in done.stdout and not mark.exists(), done.stderr
    code = "import sys, os\nfrom jaxvit import own_code\nown_code.load('mine:Net', 'Class')\n"
    done = start(["-P", "-c", code + "print(sys.path.index(os.getcwd()) == len(sys.path) - 1)"])
    assert done.stdout == "True\n" and not mark.exists(), done.stderr


@pytest.mark.parametrize("name", ["evil", "evp.x", "evil:give", "evp.x:give", "evil.py", "evp.x.give"])
def test_a_data_set_that_a_run_names_does_not_run(run, mark, name):
    change_config(run, data__name=name, data__dir=str(run))
    for call in (
        lambda: evaluate([f"--workdir={run}"]),
        lambda: jaxvit.evaluate(jaxvit.load(run), "test"),
        lambda: report([str(run)]) and None,
    ):
        try:
            call()
        except UsageError as error:
            assert "\n" not in str(error)
    assert not mark.exists() and not set(sys.modules) & {"evil", "evp", "evp.x"}
    with pytest.raises(UsageError):
        evaluate([f"--workdir={run}", "--own_code"])
    assert mark.exists() or name in ("evil.py", "evp.x.give")  # no names of modules: the line says what to write


def test_a_model_that_the_config_alone_names_does_not_run(run, mark, tmp_path):
    change_config(run, model__name="evil:Net")
    with pytest.raises(UsageError, match=r"its model 'evil:Net' is code outside jaxvit.*--own_code"):
        export([f"--workdir={run}", "--to=hub", f"--out={tmp_path / 'out'}"])
    jaxvit.load(run)
    report([str(run)])
    assert not mark.exists() and not (tmp_path / "out" / "hub").exists()


def test_optimizers_hooks_and_augmentations_that_a_run_names_do_not_run(run, mark, tmp_path):
    change_config(run, optim__name="evil:a", optim__schedule="evil:b", train__hooks=["evil:c"], augment__own="evil:d")
    evaluate([f"--workdir={run}", "--json"])
    report([str(run)])
    export([f"--workdir={run}", "--to=hub", f"--out={tmp_path / 'out'}"])
    benchmark([f"--file={tmp_path / 'out' / 'hub'}", f"--workdir={run}", "--rounds=1", "--seconds=0.01", "--json"])
    with pytest.raises(UsageError, match="another config"):
        jaxvit.train(tiny_config(train__duration="1 steps"), run)
    assert not mark.exists()


FEATURES = (
    {"pythonClassName": "evil.Image"},
    {"python_class_name": "evp.x.Image"},
    {"type": "evil.Image", "content": {}},
    {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict", "featuresDict": {
        "features": {"image": {"pythonClassName": "evil.Image"}}}},
    {"pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence", "jsonFeature": {
        "json": json.dumps({"feature": {"type": "evil.Image", "content": "{}"}})}},
    {"pythonClassName": "tensorflow_datasets.core.features.image_feature.Image\n.evil"},
    {"pythonClassName": "tensorflow_datasets_evil.core.features.Image"},
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(FEATURES)))
def test_a_prepared_set_whose_features_are_foreign_does_not_run(run, mark, number):
    folder = run / "data" / "foreign_set" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"name": "foreign_set", "version": "1.0.0"}))
    (folder / "features.json").write_text(json.dumps(FEATURES[number]))
    change_config(run, data__name="foreign_set", data__dir=str(run / "data"))
    with pytest.raises(UsageError, match=r"is code outside TFDS"):
        evaluate([f"--workdir={run}"])
    assert not mark.exists()


def image(data, name, folder):
    (folder / name).write_bytes(data)
    return str(folder / name)


def png(height, width):
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.new("L", (width, height), 200).save(file, "PNG")
    return file.getvalue()


def png_header(height, width):
    """The header of a PNG without image data."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%MARK%) (w) file closefile\nshowpage\n"


def test_only_images_of_the_formats_documented_are_opened(tmp_path, monkeypatch):
    """Pillow knows more formats, and runs Ghostscript for PostScript; it must not even inspect them."""
    from PIL import EpsImagePlugin, Image

    from jaxvit.data.decoding import decode
    from jaxvit.data.image_kinds import ENDINGS, FORMATS

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: started.append(a) or Image.new("L", (8, 8)))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    with pytest.raises(Exception, match="not an image"):
        decode(POSTSCRIPT, 1)
    assert not started
    page = (ROOT / "docs" / "trust.md").read_text()
    assert all(kind.replace("JPEG2000", "JPEG 2000").replace("HEIF", "HEIC") in page.upper() for kind in FORMATS)
    assert set(FORMATS) == set(ENDINGS)
    for kind in ("ICO", "PCX", "SGI", "DDS", "ICNS", "PDF"):
        from io import BytesIO

        file = BytesIO()
        try:
            Image.new("RGB", (8, 8)).save(file, kind)
        except (KeyError, OSError, ValueError):
            continue
        with pytest.raises(Exception, match="not an image"):
            decode(file.getvalue(), 3)


def test_a_long_image_is_cut_before_it_is_enlarged():
    import tracemalloc

    import numpy as np
    from PIL import Image

    from jaxvit.data.decoding import _cover, decode

    data = png(150_000, 1)
    assert len(data) < 1000
    tracemalloc.start()
    decode(png(150_000, 1), 3, (224, 224))
    assert decode(png(1, 150_000), 3, (224, 160)).shape == (224, 160, 3)
    tracemalloc.stop()
    code = (
        "import resource, io\nfrom PIL import Image\nfrom jaxvit.data.decoding import decode\n"
        "f = io.BytesIO(); Image.new('L', (1, 150_000)).save(f, 'PNG')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "decode(f.getvalue(), 3, (224, 224))\n"
        "assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000\n"
    )
    done = start(["-P", "-c", code])
    assert done.returncode == 0, done.stderr
    # The part that is kept is the one that would have been cut out of the whole.
    rng = np.random.default_rng(0)
    long = Image.fromarray(rng.integers(0, 256, (200, 5), dtype=np.uint8))
    whole = long.resize((16, 640), Image.Resampling.BILINEAR).crop((0, 312, 16, 328))
    cut = np.asarray(_cover(long, 16, 16)).astype(int)
    assert abs(cut - np.asarray(whole)).max() <= 1


def test_the_limits_on_pixels_and_bytes_and_what_raises_them(run, tmp_path):
    from jaxvit.data.decoding import Limits, decode
    from jaxvit.data.sources import open_dataset

    with pytest.raises(ValueError, match=r"it has 9,000×9,001 pixels, and max_pixels allows 80,000,000"):
        decode(png_header(9000, 9001), 1, (8, 8))
    with pytest.raises(ValueError, match=r"it has 8,100,000,000 pixels, and max_pixels allows 80,000,000"):
        decode(png_header(90_000, 90_000), 1, (8, 8))
    assert decode(png(30, 30), 1, (8, 8), Limits(pixels=900)).shape == (8, 8, 1)
    file = image(png(30, 30), "x.png", tmp_path)
    for limit, said in (
        ("max_pixels", "it has 30×30 pixels, and max_pixels allows 899"),
        ("max_bytes", "max_bytes allows"),
    ):
        [answer] = jaxvit.predict(run, file, **{limit: 899 if limit == "max_pixels" else 10})
        assert said in answer.error
    assert not jaxvit.predict(run, file)[0].error
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        image(png(20, 20), "x.png", tmp_path / "photos" / name)
    for limits in (Limits(pixels=399), Limits(bytes=20)):
        with pytest.raises(Exception, match=r"max_(pixels|bytes) allows"):
            open_dataset(f"image_folder:{tmp_path / 'photos'}", tmp_path, side=8, limits=limits).read("train")
    data = open_dataset(f"image_folder:{tmp_path / 'photos'}", tmp_path, side=8, limits=Limits(pixels=400))
    assert len(data.read("train")) == 2


def test_only_regular_files_are_opened(run, tmp_path):
    """A pipe would keep the process waiting, a device give bytes without end."""
    from jaxvit.data.sources import open_dataset

    folder = tmp_path / "photos" / "a"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    said = jaxvit.predict(run, [folder / "pipe.png", folder / "zero.png"])
    assert [each.error for each in said] == ["it is a named pipe, not a file", "it is a device, not a file"]
    image(png(8, 8), "x.png", folder)
    assert [Path(each.file).name for each in jaxvit.predict(run, folder)] == ["x.png"]
    assert len(open_dataset(f"image_folder:{folder.parent}", tmp_path, side=8).read("train")) == 1
    for name in ("config.json", "model.json", "metrics.jsonl", "result.json"):
        kept = (run / name).read_bytes()
        (run / name).unlink()
        os.mkfifo(run / name)
        with pytest.raises(UsageError, match=rf"{name} cannot be read \(it is a named pipe, not a file\)"):
            report([str(run)])
        (run / name).unlink()
        (run / name).write_bytes(kept)
    os.mkfifo(run / "model.safetensors")
    with pytest.raises(UsageError, match="named pipe"):
        jaxvit.load(run)


def stablehlo(path, function, compressed=False):
    """A file such as `jaxvit export` writes, with another program in it."""
    import zipfile

    import jax.numpy as jnp
    from jax import export as exporting

    (batch,) = exporting.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, 8, 8, 1), jnp.uint8)
    unchecked = [exporting.DisabledSafetyCheck.custom_call(name) for name in CALLS]
    program = exporting.export(jax.jit(function), disabled_checks=unchecked)(images)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as file:
        file.writestr("program", bytes(program.serialize()))
        file.writestr("model.json", json.dumps({"class_names": ["a"], "image_shape": [8, 8, 1]}))


CALLS = ("xla_ffi_python_cpu_callback", "xla_python_cpu_callback", "somebody_elses")


def calling(name):
    import jax.numpy as jnp

    def function(images):
        shape = jax.ShapeDtypeStruct((2,), jnp.float32)
        return images.sum((1, 2)).astype(jnp.float32) + jax.ffi.ffi_call(name, shape)(jnp.zeros(2)).sum()

    return function


def test_a_program_that_calls_out_is_not_run(tmp_path):
    import numpy as np

    from jaxvit.errors import RunFailedError
    from jaxvit.exports.formats import FORMATS

    words = ["--rounds=1", "--seconds=0.01", "--json"]
    for number, name in enumerate(CALLS):
        file = tmp_path / f"{number}.stablehlo"
        stablehlo(file, calling(name))
        with pytest.raises(
            RunFailedError, match=rf"ValueError: the program calls '{name}', which no exported model does"
        ):
            benchmark([f"--file={file}", *words])
    stablehlo(tmp_path / "bomb.stablehlo", lambda images: images.sum((1, 2)).astype("float32"), compressed=True)
    with pytest.raises(RunFailedError, match="its parts are compressed, which no exported model's are"):
        benchmark([f"--file={tmp_path / 'bomb.stablehlo'}", *words])
    stablehlo(tmp_path / "good.stablehlo", lambda images: images.sum((1, 2)).astype("float32"))
    assert benchmark([f"--file={tmp_path / 'good.stablehlo'}", *words]) == 0
    np.save(tmp_path / "images.npy", np.zeros((1, 8, 8, 1), np.uint8))
    done = start(["-I", str(FORMATS["stablehlo"].loader), str(tmp_path / "0.stablehlo"), str(tmp_path / "images.npy")])
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "not run" in done.stderr


def test_what_a_published_folder_gives_away(run, tmp_path):
    """No paths, file names or commands of the machine, whatever the run's environment.json contains."""
    secret = "secret-" + "5f3a"
    file = run / "environment.json"
    known = without_checksum(file)
    known["data"]["train"] |= {
        "skipped": 1,
        "skipped_names": [f"/home/{secret}/a.png"],
        "warning": secret,
        "order": secret,
    }
    known["data"][secret] = {"sha256": "0" * 16}
    known["data"]["test"] |= {"content": f"/home/{secret}", "classes": [1, secret]}
    known |= {"starts": [{"command": ["jaxvit", f"--config={secret}.py"], "platform": secret}], secret: secret}
    file.write_text(json.dumps(known))
    change_config(run, data__dir=f"/home/{secret}", init__from=f"/home/{secret}/a", distill__from=f"/{secret}/b")
    config = without_checksum(run / "config.json")
    (run / "config.json").write_text(json.dumps({**config, "command": secret}))
    facts = without_checksum(run / "model.json")
    (run / "model.json").write_text(json.dumps({**facts, "command": secret}))
    export([f"--workdir={run}", "--to=hub", f"--out={tmp_path / 'out'}", "--data_dir=" + str(tmp_path / "data")])
    here = str(tmp_path).encode()
    places = [secret.encode(), here, str(ROOT).encode(), os.uname().nodename.encode(), str(Path.home()).encode() + b"/"]
    for written in (tmp_path / "out" / "hub").iterdir():
        data = written.read_bytes()
        assert not [place for place in places if place in data], written
    given = without_checksum(tmp_path / "out" / "hub" / "environment.json")
    assert (
        set(given) == {"data", "starts"}
        and given["starts"] == []
        and set(given["data"]) <= {"train", "validation", "test"}
    )
    assert set(given["data"]["train"]) == {"count", "classes", "mean", "std", "sha256", "content", "skipped"}
    jaxvit.load(tmp_path / "out" / "hub")


HOSTILE = "a\x1b[2J\nforged: line\r\x9b|[red]x[/red]:cat:b<script>alert(1)</script>[l](http://x)`*_y_*\u202e\udc80"


def test_text_from_outside_is_escaped_for_each_medium():
    import io
    import re

    from rich.console import Console
    from rich.table import Table

    from jaxvit import shown

    line = shown.terminal(HOSTILE)
    assert line.isprintable() and "\\x1b" in line and "\\n" in line and line.encode()
    assert shown.terminal("größe 猫.png") == "größe 猫.png"
    stream = io.StringIO()
    table = Table(title=shown.rich(HOSTILE))
    table.add_column(shown.rich("[b]:cat:"))
    table.add_row(shown.rich(HOSTILE))
    Console(file=stream, width=300).print(table)
    said = stream.getvalue()
    assert said.count("[red]x[/red]:cat:b") == 2 and "[b]:cat:" in said and "\x1b" not in said
    cell = shown.markdown(HOSTILE)
    assert "\n" not in cell and not re.search(r"(?<!\\)[|<>`*]|(?<!\\)\]\(", cell) and "http://" not in cell
    assert shown.markdown("token_learner_vit[:60] (a-b)") == "token_learner_vit[:60] (a-b)"
    assert "<" not in shown.page(HOSTILE) and '"' not in shown.page('a"b')
    formulas = ["=1+1", "+A1", "-A1", "@SUM(A1)", "\t=1", "\r=1", " =1"]
    assert [shown.csv_cell(text) for text in formulas] == [f"'{text}" for text in formulas]
    numbers = ["-0.5", "+3", "1e-3", -2, 0.5, None, "a=b", ""]
    assert [shown.csv_cell(value) for value in numbers] == numbers


def test_names_from_outside_in_every_output(trained, tmp_path, capsys, monkeypatch):
    """Runs all verbs that print names on a run whose folder, model, classes and images have hostile names."""
    import csv
    import shutil

    name = "=a\x1b[2J|[red]:cat:<script>"
    run = Path(shutil.copytree(trained, tmp_path / name))
    found = without_checksum(run / "model.json")
    found["class_names"][:2] = [f"{name}\nforged", f"@{name}"]
    (run / "model.json").write_text(json.dumps(found))
    photo = tmp_path / f"=x{name}\n.png"
    photo.write_bytes(png(8, 8))
    from jaxvit.cli.predict import main as predict

    monkeypatch.chdir(tmp_path)
    for style in ("table", "csv"):
        assert predict([f"--workdir={run}", f"--format={style}", "--top=10", photo.name]) == 0
        out = capsys.readouterr().out
        if style == "table":
            assert "\x1b" not in out and len(out.splitlines()) == 1
        else:
            _, row = csv.reader(out.splitlines(keepends=True))
            assert row[0].startswith("'=x") and not [cell for cell in row if cell.startswith(("=", "@"))]
    for style in ("table", "markdown", "csv"):
        report([str(run), f"--format={style}"])
        out = capsys.readouterr().out
        if style != "csv":
            assert "\x1b" not in out and ":cat:" in out.replace("\n", "")
        if style == "markdown":
            assert "\\<script\\>" in out
    export([f"--workdir={run}", "--to=hub", f"--out={tmp_path / 'out'}"])
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    card = (tmp_path / "out" / "hub" / "README.md").read_text()
    assert "\x1b" not in card and "<script" not in card.replace("\\<", "") and "\nforged" not in card
