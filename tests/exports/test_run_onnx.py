"""run_onnx.py reads photos as `jaxvit predict` does, without jaxvit."""

import itertools
import os
import re
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import train_family

import jaxvit
from jaxvit.data.decoding import decode
from jaxvit.data.depth import Depth
from jaxvit.exports.formats import FORMATS
from jaxvit.trained.image_files import find_images

pytest.importorskip("onnxruntime")
SCRIPT = FORMATS["onnx"].loader


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Every format, orientation and mode that a photo is likely to have, and some that it is not."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (20, 34, 3), np.uint8))
    for kind, turn in itertools.product(("jpg", "png", "webp", "tiff"), (1, 3, 6, 8)):
        exif = Image.Exif()
        exif[274] = turn
        colour.save(folder / f"turned{turn}.{kind}", exif=exif)
    for kind in ("bmp", "gif", "ppm", "avif", "jp2", "tga"):
        colour.save(folder / f"x.{kind}")
    clear = colour.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(colour.size))
    for mode in ("1", "L", "LA", "P", "RGBA"):
        clear.convert(mode).save(folder / f"mode{mode}.png")
    for mode in ("CMYK", "YCbCr"):
        colour.convert(mode).save(folder / f"mode{mode}.tiff")
    Image.fromarray(rng.integers(0, 4096, (20, 34)).astype(np.uint16)).save(folder / "deep.png")
    colour.resize((150, 400)).save(folder / "large.jpg")  # decoded at a smaller size
    colour.resize((900, 3)).save(folder / "long.png")
    return folder


@pytest.mark.parametrize("white", [0, 4095])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_jaxvit(photos, channels, white):
    read = runpy.run_path(str(SCRIPT))["read"]
    files = sorted(photos.iterdir())
    assert len(files) > 28
    for file in files:
        wanted = decode(file.read_bytes(), channels, (16, 12), depth=Depth(white))
        np.testing.assert_array_equal(read(str(file), (16, 12, channels), white), wanted, str(file))


@pytest.mark.skipif(jax.version.__version_info__ >= (0, 12), reason="the converter needs an older jax")
def test_probabilities_are_those_of_predict(photos, tmp_path):
    pytest.importorskip("jax2onnx")
    run = train_family(tmp_path / "run", "vit")
    jaxvit.export(run, to="onnx", out=tmp_path / "out")
    files = [*find_images([str(photos)])]
    (tmp_path / "bad.jpg").write_text("no image")
    alone = {"capture_output": True, "text": True, "env": {**os.environ, "PYTHONPATH": ""}}
    words = [sys.executable, "-I", "out/run_onnx.py"]  # the model is beside the script
    done = subprocess.run([*words, *files, str(tmp_path / "bad.jpg")], cwd=tmp_path, **alone)
    assert done.returncode == 1 and "bad.jpg" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    lines = done.stdout.splitlines()
    named = subprocess.run([*words, "out/model.onnx", files[0]], cwd=tmp_path, **alone)
    assert named.stdout.splitlines() == lines[:1] and named.returncode == 0
    gone = subprocess.run([*words, "gone.onnx", files[0]], cwd=tmp_path, **alone)
    assert gone.returncode == 1 and len(gone.stderr.splitlines()) == 1 and "gone.onnx" in gone.stderr
    for line, said in zip(lines, jaxvit.predict(run, files), strict=True):
        file, _, rest = line.partition(": ")
        pairs = re.findall(r"(\w+) (\d\.\d+)", rest)
        assert file == said.file and len(pairs) == 5
        found, wanted = {name: float(value) for name, value in pairs}, dict(said.top)
        assert all(abs(found[name] - wanted[name]) < 1e-4 for name in found.keys() & wanted.keys())
        assert abs(max(found.values()) - said.top[0][1]) < 1e-4
