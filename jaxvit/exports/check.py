"""Runs an exported file in a fresh process, with its loader script, and compares the output with the model's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxvit.errors import RunFailedError
from jaxvit.exports.formats import Format
from jaxvit.exports.model import ExportModel
from jaxvit.files import INSTALLED_IN
from jaxvit.trained.image_files import pixels_in_memory

LARGEST = 1e-4  # allowed difference of a probability
# A model that merges or removes tokens chooses them by comparing numbers. If two are equal up to rounding, a file may
# choose otherwise than the model; it may do so for this share of the images.
_APART = 1 / 8
_OTHER_BATCHES = (1, 3)  # further batch sizes, in the same process
_PATIENCE = 1800  # seconds; a large model takes long to compile on a CPU

# Loaders must work without jaxvit, so it is hidden from them. Other packages come from this Python installation.
_DRIVER = """
import json, runpy, sys
import numpy as np
loader, file, how, own, words, *pairs = sys.argv[1:]
words = json.loads(words)
if own:
    sys.path.append(own)
if how == "alone":
    sys.modules["jaxvit"] = None
model, facts = runpy.run_path(loader)["load"](file, **words)
for images, out in zip(pairs[::2], pairs[1::2]):
    np.save(out, np.asarray(model(np.load(images))))
"""


def largest_difference(
    model: ExportModel, kind: Format, path: Path, images_BHWC: np.ndarray, browser: str = ""
) -> tuple[float, int]:
    """Compares the file's and the model's probabilities, over several batch sizes, on the CPU.

    Args:
      model: the model; for a page, each of its models is compared.
      kind, path: format and place of the file.
      images_BHWC: uint8 images.
      browser: for a page: the browser to run it in; '' = run its ONNX graphs with onnxruntime.

    Returns:
      (largest difference, number of images left out): images are left out only for a model with fewer tokens, at most
      an eighth of them, if they differ by `LARGEST` or more because other tokens were chosen.

    Raises:
      RunFailedError: the file does not run, or its output is not an array of finite probabilities.
    """
    if kind.name != "page":
        words = {"own_code": True} if kind.name == "hub" and model.loaded.own_code else {}
        return _difference(model, kind, path, images_BHWC, _OTHER_BATCHES, words)
    # A page runs one image at a time.
    differences, apart = zip(
        *(
            _difference(each, kind, path, _of_shape(images_BHWC, each), (), {"browser": browser, "model": i})
            for i, each in enumerate((model, *model.beside))
        ),
        strict=True,
    )
    return max(differences), sum(apart)


def _of_shape(images_BHWC: np.ndarray, model: ExportModel) -> np.ndarray:
    """Images in the shape that a model takes."""
    shape = model.loaded.image_shape
    if images_BHWC.shape[1:] == tuple(shape):
        return images_BHWC
    return np.stack([pixels_in_memory(image, shape) for image in images_BHWC])


def _difference(
    model: ExportModel,
    kind: Format,
    path: Path,
    images_BHWC: np.ndarray,
    others: tuple[int, ...],
    words: dict[str, Any],
) -> tuple[float, int]:
    run = model.compiled(reference=True)
    batches = [images_BHWC, *(images_BHWC[:size] for size in others)]
    found = _run_it(model, kind, path, batches, words)
    worst_N = np.zeros(len(images_BHWC))
    for batch, said in zip(batches, found, strict=True):
        wanted = np.asarray(run(batch))
        if not np.isfinite(wanted).all():
            raise RunFailedError("the model's probabilities are not finite numbers: its training has diverged")
        if said.shape != wanted.shape or said.dtype != np.float32 or not np.isfinite(said).all():
            raise RunFailedError(
                f"--to={kind.name}: the exported file returns {said.dtype} {list(said.shape)}, not finite "
                f"probabilities float32 {list(wanted.shape)}"
            )
        difference_N = np.abs(said - wanted).max(axis=1)
        worst_N[: len(batch)] = np.maximum(worst_N[: len(batch)], difference_N)
    apart_N = worst_N >= LARGEST
    if model.reduce and apart_N.sum() <= _APART * len(worst_N):
        return float(worst_N[~apart_N].max()), int(apart_N.sum())
    return float(worst_N.max()), 0


def _run_it(
    model: ExportModel, kind: Format, path: Path, batches: list[np.ndarray], words: dict[str, Any]
) -> list[np.ndarray]:
    """Runs a file on batches in a new process. Only the hub format can import jaxvit there.

    `words` are passed to the script's `load`.
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    how, own = "alone", ""
    if kind.name == "hub":
        how = "own_code" if model.loaded.own_code else "with jaxvit"
        own = os.getcwd() if model.loaded.own_code else ""
        here = [str(INSTALLED_IN), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, here))
    with tempfile.TemporaryDirectory(prefix="jaxvit-check-") as name:
        folder = Path(name)
        files = [(folder / f"images{i}.npy", folder / f"out{i}.npy") for i in range(len(batches))]
        for batch, (images, _) in zip(batches, files, strict=True):
            np.save(images, batch)
        command = [sys.executable, "-c", _DRIVER, kind.loader, path.absolute(), how, own, json.dumps(words)]
        command += [file for pair in files for file in pair]
        how_to = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": _PATIENCE}
        try:
            done = subprocess.run(list(map(str, command)), **how_to)
        except subprocess.TimeoutExpired:
            late = f"the exported file did not finish {len(batches[0])} images in {_PATIENCE} s"
            raise RunFailedError(f"--to={kind.name}: {late}; it was deleted") from None
        if done.returncode:
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"code {done.returncode}"]
            errors = [line for line in said if "rror:" in line] or said[-1:]
            raise RunFailedError(f"--to={kind.name}: the exported file does not run: {errors[0][:300]}")
        return [np.load(out) for _, out in files]
