"""`jaxvit.export`: writes a trained model to files that run without jaxvit, and checks each in a fresh process."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxvit import own_code as gate
from jaxvit.errors import RunFailedError, UsageError, find_system_error, first_line
from jaxvit.exports.check import LARGEST, largest_difference
from jaxvit.exports.formats import Format, formats_named
from jaxvit.exports.layout import export_layout
from jaxvit.exports.model import ExportModel
from jaxvit.exports.page import find_browser, fitting_dtype, samples_of
from jaxvit.files import locked_folder, make_writable, naming, no_empty_folders
from jaxvit.shown import terminal
from jaxvit.trained.evaluate import evaluate_source, read_split
from jaxvit.trained.load import Loaded, load
from jaxvit.weights.stored import KINDS

IMAGES = 32  # number of images used to compare a file with the model


_PREFIX, _OLD = ".exporting-", "old"


def export(
    run: str | Path | Loaded,
    to: str = "stablehlo",
    *,
    dtype: str = "",
    layout: str = "",
    out: str | Path = "",
    beside: Sequence[str | Path | Loaded] = (),
    checkpoint: str = "best",
    weights: str = "chosen",
    data_dir: str = "",
    own_code: bool = False,
) -> list[Path]:
    """Exports a trained model to files that run without jaxvit.

    Each file is run in a fresh process and compared with the model before it is moved into place.

    Args:
      run: a run folder, or a model returned by `jaxvit.load`.
      to: 'stablehlo', 'onnx', 'savedmodel', 'hub' or 'page'; several are joined by commas, as in 'stablehlo,hub'.
      dtype: dtype of the stored weights: 'float32', 'bfloat16', 'float16' or 'int8'. '' = float32; for a page alone,
        the first of float32, float16 and int8 with which it surely fits into 15 MB.
      layout: with the name of a project, or 'authors', the weights alone are written in that project's layout, and
        `to` is the name of their file: see `jaxvit.exports.layout`. '' = the formats above.
      out: folder for the files; '' = ``export`` in the run folder.
      beside: for a page: further runs or models, which it shows beside the first.
      checkpoint, weights, own_code: as in `jaxvit.load`; ignored if `run` is a loaded model.
      data_dir: TFDS directory; '' = the one used in training, else the default.

    Returns:
      Paths of the files, or folders for 'hub' and 'savedmodel', in the order of `to`.

    Raises:
      UsageError: unknown run or format, or a required package is not installed.
      RunFailedError: a file cannot be written, does not run, or differs from the model.

    Example:
      >>> jaxvit.export("runs/digits", "onnx")  # doctest: +SKIP
      [PosixPath('runs/digits/export/model.onnx')]
    """
    if dtype and dtype not in KINDS:
        raise UsageError(f"dtype='{dtype}': must be one of {', '.join(KINDS)}")
    kinds = [] if layout else formats_named(to)
    loaded, *others = (
        each if isinstance(each, Loaded) else load(each, checkpoint=checkpoint, weights=weights, own_code=own_code)
        for each in (run, *beside)
    )
    if layout:
        file = (Path(out) if str(out) else loaded.workdir / "export") / to
        export_layout(loaded, file, layout)
        return [file]
    return export_files(loaded, kinds, dtype=dtype, out=out, beside=others, data_dir=data_dir)


@no_empty_folders()
def export_files(
    loaded: Loaded,
    kinds: Sequence[Format],
    *,
    dtype: str,
    out: str | Path = "",
    beside: Sequence[Loaded] = (),
    data_dir: str = "",
    batch_size: int = 0,
    devices: int = 0,
    dry_run: bool = False,
) -> list[Path]:
    """Writes the files and prints size and accuracy; see `export`.

    `batch_size` and `devices` are used to evaluate the stored weights (0 = batch size of the run, all devices). With
    `dry_run` it only prints the names of the files.
    """
    if beside and not any(kind.name == "page" for kind in kinds):
        raise UsageError("--beside is for --to=page, which shows several models")
    if not dtype:
        dtype = fitting_dtype((loaded, *beside)) if [kind.name for kind in kinds] == ["page"] else "float32"
    folder = Path(out) if str(out) else loaded.workdir / "export"
    targets = [folder / kind.file(dtype) for kind in kinds]
    for target, kind in zip(targets, kinds, strict=True):
        _check_place(target, kind, loaded)
    if dry_run:
        for target in targets:
            print(terminal(f"{target}: {dtype} weights of step {loaded.step:,}"))
        print("dry run: nothing was written")
        return targets
    make_writable(folder, "name another with --out=DIR")
    trusting = gate.named_by(loaded.workdir, allowed=loaded.own_code)
    busy = f"{folder}: another export is writing there; wait for it, or name another --out=DIR"
    with trusting, locked_folder(folder, busy):
        _clear(folder)
        measured = partial(_evaluated, batch_size=batch_size, devices=devices)
        _write_all(loaded, kinds, folder, dtype, beside, data_dir, measured)
    return targets


def _write_all(
    loaded: Loaded,
    kinds: Sequence[Format],
    folder: Path,
    dtype: str,
    beside: Sequence[Loaded],
    data_dir: str,
    evaluated: Callable[[Loaded, str, Any], dict[str, Any]],
) -> None:
    model = ExportModel.of(loaded, dtype)
    paged = any(kind.name == "page" for kind in kinds)
    if paged:
        browser, no_browser = find_browser()
    split, source, why_not = _labelled_images(loaded, data_dir)
    images = source.batch(np.arange(min(IMAGES, len(source))))[0] if source else _noise(loaded.image_shape)
    if source and (dtype != "float32" or any(kind.name == "hub" for kind in kinds)):  # the model card states the result
        model = dataclasses.replace(model, result=evaluated(model.restored, split, source))
    if dtype != "float32":
        before = evaluated(loaded, split, source) if source else None
        print(terminal(_cost_in_accuracy(model, before, source, why_not)), flush=True)
    if paged:
        others = tuple(ExportModel.of(each, dtype) for each in beside)
        model = dataclasses.replace(model, beside=others, samples=samples_of(source) if source else ())
    compared = f"{len(images)} images of {_named(source) if source else 'noise'}"
    of = "" if dtype == "float32" else f"with {dtype} weights "
    for kind in kinds:
        made = _write_checked(model, kind, folder, images, browser if kind.alone else "")
        facts = f"{_size(made.target):,} bytes, {made.difference:.1e} from the model {of}on {compared}"
        facts += f"; {made.apart} of them left out, where it chose other tokens" if made.apart else ""
        print(terminal(f"{made.target}: {facts}"))
        if kind.alone:
            checked = "checked in Chromium, offline" if browser else f"not checked in a browser: {no_browser}"
            print(terminal(f"  open it in a browser; it needs nothing else ({checked})"), flush=True)
            continue
        print(terminal(f"  it needs {kind.runs_on}: python {made.loader} {made.target} images.npy"), flush=True)
        if len(kinds) == 1:
            print(f"\n{kind.loader.read_text()}", end="")


def _labelled_images(loaded: Loaded, data_dir: str) -> tuple[str, Any, str]:
    """Returns (split, source, reason): the test split, else the validation split, else None and the reason why."""
    try:
        return *read_split(loaded, directory=data_dir), ""
    except UsageError as error:
        return "", None, str(error)


def _named(source: Any) -> str:
    """The name of a source, for use within a sentence."""
    return source.name.replace(": ", ", ")


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (IMAGES, *shape), dtype=np.uint8)


def _evaluated(loaded: Loaded, split: str, source: Any, *, batch_size: int, devices: int) -> dict[str, Any]:
    return evaluate_source(loaded, source, split=split, batch_size=batch_size, devices=devices)[0]


def _cost_in_accuracy(model: ExportModel, before: dict[str, Any] | None, source: Any, why_not: str) -> str:
    """One line that compares the accuracy of the stored weights with that of the float32 weights, `before`."""
    after = model.result
    if before is None or after is None:
        return f"the accuracy of {model.kind} weights was not measured: {why_not}"
    change = 100 * (after["top1"] - before["top1"])
    return (
        f"{model.kind} weights: top-1 {after['top1']:.2%} on {_named(source)}, {after['count']:,} images; float32 "
        f"{before['top1']:.2%}, a change of {change:+.2f} points; loss {after['loss']:.4f}, was {before['loss']:.4f}"
    )


# The files of formats that are folders; a folder with any other file is not replaced.
_HOLDS = {
    "hub": {"model.safetensors", "model.json", "config.json", "environment.json", "README.md"},
    "savedmodel": {"saved_model.pb", "fingerprint.pb", "variables", "assets"},
}


def _check_place(target: Path, kind: Format, loaded: Loaded) -> None:
    """Raises UsageError if another file has the name of the export or of the script beside it."""
    remedy = "move it away, or name another --out=DIR"
    if target.is_symlink() or (target.exists() and target.is_dir() != (not kind.suffix)):
        raise UsageError(f"{target} exists and is not a {kind.name} export: {remedy}")
    if target.is_dir() and (foreign := sorted({path.name for path in target.iterdir()} - _HOLDS[kind.name])):
        raise UsageError(f"{target} exists and holds {foreign[0]}, which is not part of a {kind.name} export: {remedy}")
    if loaded.workdir.resolve().is_relative_to(target.resolve()):
        raise UsageError(f"{target} is the exported run itself, or a folder around it: name another --out=DIR")
    script = target.parent / kind.loader.name
    if not kind.alone and script.exists() and not script.read_bytes().startswith(b'"""Runs a model of jaxvit'):
        raise UsageError(f"{script} exists and was not written by jaxvit: {remedy}")


def _clear(folder: Path) -> None:
    """Removes leftovers of a killed export; a folder that it had moved aside is moved back."""
    for left in folder.glob(f"{_PREFIX}*"):
        old = left / _OLD
        for was in old.iterdir() if old.is_dir() else ():
            if not (folder / was.name).exists():
                os.replace(was, folder / was.name)
        shutil.rmtree(left, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class _Written:
    target: Path
    loader: Path
    difference: float
    apart: int  # images for which the file chose other tokens


def _write_checked(
    model: ExportModel, kind: Format, folder: Path, images_BHWC: np.ndarray, browser: str = ""
) -> _Written:
    """Writes a temporary file, checks it, and moves it into place.

    Raises:
      RunFailedError: the file cannot be written, does not run, or differs from the model.
    """
    target, loader = folder / kind.file(model.kind), folder / kind.loader.name
    print(terminal(f"writing {target}"), file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_PREFIX) as name, naming(target, draft=Path(name)):
        draft = Path(name) / target.name
        try:
            kind.write(model, draft)
        except (UsageError, RunFailedError, OSError):
            raise
        except Exception as error:  # converters raise all kinds of errors for models that they do not support
            if failed := find_system_error(error):  # safetensors raises its own error, with errno in the text
                raise failed from error
            reason = f"{type(error).__name__}: {first_line(error)[:200]}"
            raise RunFailedError(
                f"--to={kind.name}: this format cannot express the model ({reason}); try another"
            ) from error
        difference, apart = largest_difference(model, kind, draft, images_BHWC, browser)
        if not difference < LARGEST:
            raise RunFailedError(
                f"--to={kind.name}: the exported file differs from the model by {difference:.2g}, more than "
                f"{LARGEST:g}: it was deleted; try another format"
            )
        script = Path(name) / loader.name
        if not kind.alone:
            shutil.copyfile(kind.loader, script)
        _sync(Path(name))
        _put(draft, target, Path(name) / _OLD)
        if not kind.alone:
            os.replace(script, loader)  # replaces a script of another version, which may differ
    return _Written(target, loader, difference, apart)


def _put(draft: Path, target: Path, aside: Path) -> None:
    """Moves a draft into place. Folders cannot be replaced atomically: the old one moves aside, and back on failure."""
    if not target.is_dir():
        os.replace(draft, target)
        return
    aside.mkdir()
    os.replace(target, aside / target.name)
    try:
        os.replace(draft, target)
    except BaseException:
        os.replace(aside / target.name, target)
        raise


def _sync(folder: Path) -> None:
    """Syncs all files in a folder to disk, so that a power cut cannot leave a name without its content."""
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _size(path: Path) -> int:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return sum(p.stat().st_size for p in files)
