"""`jaxvit export`: a trained model as files that run without jaxvit, each checked in a fresh process."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxvit import command_line
from jaxvit.errors import DONE, RunFailedError, UsageError, first_line, nearest
from jaxvit.evaluate import add_run_options, evaluate, load_run, read_split
from jaxvit.export.check import LARGEST, largest_difference
from jaxvit.export.formats import FORMATS, Format
from jaxvit.export.model import ExportModel
from jaxvit.export.weights import KINDS
from jaxvit.loading import Loaded
from jaxvit.run_directory import make_writable

IMAGES = 32  # that a written file is compared on
_PREFIX, _OLD = ".exporting-", "old"

_EXAMPLES = """examples:
  jaxvit export --workdir=runs/digits                               model.stablehlo: jax runs it, on CPU, GPU, TPU
  jaxvit export --workdir=runs/digits --to=onnx,hub --out=digits    model.onnx; and a folder with a model card to give away
  jaxvit export --workdir=runs/digits --to=stablehlo --dtype=int8   a quarter of the size; says what it costs in accuracy

Every file takes uint8 images of the run's size, any number at once, and gives probabilities; resizing and normalising
are inside, and so are the class names. Beside each file lies a short script that runs it, without jaxvit but for hub/,
which is for jaxvit.load. Before a file gets its name it is run so in a fresh process and compared, on 32 images, with the
model of the same weights; one that differs by 1e-4 or more is thrown away. `jaxvit benchmark --file=FILE` measures it.
"""  # noqa: E501


def main(argv: list[str]) -> int:
    """The verb.

    Raises:
      UsageError: no such run or format, or a format whose packages are missing.
      RunFailedError: a file cannot be written, does not run, or disagrees with the model.
    """
    parser = command_line.Parser("export", "Writes a trained model as files that run without jaxvit.", _EXAMPLES)
    add_run_options(parser)
    parser.add_argument("--to", default="stablehlo", metavar="FORMATS", help=f"{', '.join(FORMATS)}; several: a,b")
    parser.add_argument("--dtype", choices=KINDS, default="float32", help="of the stored weights (default: float32)")
    parser.add_argument("--out", default="", metavar="DIR", help="where the files go (default: RUN/export)")
    parser.add_argument("--dry_run", action="store_true", help="say what would be written; write nothing")
    options, rest = parser.parse_known_args(argv)
    parser.refuse_unknown(rest)
    kinds = _formats(options.to)
    loaded = load_run(options)
    folder = Path(options.out) if options.out else loaded.workdir / "export"
    for kind in kinds:
        _check_place(folder / kind.file(options.dtype), kind, loaded)
    if options.dry_run:
        for kind in kinds:
            print(f"{folder / kind.file(options.dtype)}: {options.dtype} weights of step {loaded.step:,}")
        print("dry run: nothing was written")
        return DONE
    make_writable(folder, "name another with --out=DIR")
    with _alone(folder):
        _clear(folder)
        _export(loaded, kinds, folder, options)
    return DONE


def _export(loaded: Loaded, kinds: list[Format], folder: Path, options: Any) -> None:
    """Writes the files and says what was found."""
    model = ExportModel.of(loaded, options.dtype)
    split, source, why_not = _labelled_images(loaded, options)
    images = source.batch(np.arange(min(IMAGES, len(source))))[0] if source else _noise(loaded.image_shape)
    if options.dtype != "float32" or "hub" in options.to.split(","):  # whose card has the result
        model = _measured(model, split, source, options)
    if options.dtype != "float32":
        print(_cost_in_accuracy(model, split, source, why_not, options), flush=True)
    compared = f"{len(images)} images of {_named(source) if source else 'noise'}"
    of = "" if options.dtype == "float32" else f"with {options.dtype} weights "
    for kind in kinds:
        made = _write_checked(model, kind, folder, images)
        print(f"{made.target}: {_size(made.target):,} bytes, {made.difference:.1e} from the model {of}on {compared}")
        print(f"  it needs {kind.runs_on}: python {made.loader} {made.target} images.npy", flush=True)
        if len(kinds) == 1:
            print(f"\n{kind.loader.read_text()}", end="")


def _formats(words: str) -> list[Format]:
    kinds = []
    for name in dict.fromkeys(words.split(",")):
        if name not in FORMATS:
            raise UsageError(f"--to={words}: there is no format '{name}'{nearest(name, FORMATS)}; {', '.join(FORMATS)}")
        FORMATS[name].check()
        kinds.append(FORMATS[name])
    return kinds


def _labelled_images(loaded: Loaded, options: Any) -> tuple[str, Any, str]:
    """(split, images: the run's test split, else its validation split, else None; why there is none)."""
    try:
        return *read_split(loaded, directory=options.data_dir), ""
    except UsageError as error:
        return "", None, str(error)


def _named(source: Any) -> str:
    """Its name, within a sentence."""
    return source.name.replace(": ", ", ")


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (IMAGES, *shape), dtype=np.uint8)


def _evaluated(loaded: Loaded, split: str, source: Any, options: Any) -> dict[str, Any]:
    return evaluate(loaded, source, split=split, batch_size=options.batch_size, devices=options.devices)[0]


def _measured(model: ExportModel, split: str, source: Any, options: Any) -> ExportModel:
    """With its result on labelled images, where there are such."""
    if source is None:
        return model
    return dataclasses.replace(model, result=_evaluated(model.restored, split, source, options))


def _cost_in_accuracy(model: ExportModel, split: str, source: Any, why_not: str, options: Any) -> str:
    """A line: accuracy with the weights as they are stored and as they were."""
    if source is None or model.result is None:
        return f"what {model.kind} weights cost in accuracy was not measured: {why_not}"
    before, after = _evaluated(model.loaded, split, source, options), model.result
    change = 100 * (after["top1"] - before["top1"])
    return (
        f"{model.kind} weights: top-1 {after['top1']:.2%} on {_named(source)}, {after['count']:,} images; float32 "
        f"{before['top1']:.2%}, a change of {change:+.2f} points; loss {after['loss']:.4f}, was {before['loss']:.4f}"
    )


# What a folder of a format holds; one that has anything else is no export.
_HOLDS = {
    "hub": {"model.safetensors", "model.json", "config.json", "environment.json", "README.md"},
    "savedmodel": {"saved_model.pb", "fingerprint.pb", "variables", "assets"},
}


def _check_place(target: Path, kind: Format, loaded: Loaded) -> None:
    """Raises UsageError where something else has the name that a file, or the script beside it, is to get."""
    remedy = "move it away, or name another --out=DIR"
    if target.is_symlink() or (target.exists() and target.is_dir() != (not kind.suffix)):
        raise UsageError(f"{target} is there already and is no {kind.name}: {remedy}")
    if target.is_dir() and (foreign := sorted({path.name for path in target.iterdir()} - _HOLDS[kind.name])):
        raise UsageError(f"{target} is there already and holds {foreign[0]}, which no {kind.name} does: {remedy}")
    if loaded.workdir.resolve().is_relative_to(target.resolve()):
        raise UsageError(f"{target} is what is to be exported, or above it: name another --out=DIR")
    script = target.parent / kind.loader.name
    if script.exists() and not script.read_bytes().startswith(b'"""Runs a model of jaxvit'):
        raise UsageError(f"{script} is there already and is none of jaxvit's: {remedy}")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises UsageError while another export writes into this folder, whose drafts `_clear` would take away."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UsageError(f"{folder}: another export is writing there; wait for it, or name another --out=DIR") from None
    finally:
        os.close(lock)


def _clear(folder: Path) -> None:
    """Takes away what an export that was killed has left; a folder that it had moved aside gets its name back."""
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


def _write_checked(model: ExportModel, kind: Format, folder: Path, images_BHWC: np.ndarray) -> _Written:
    """Writes a file beside its place, checks it there, and only then gives it its name.

    Raises:
      RunFailedError: it cannot be written, does not run, or disagrees.
    """
    target, loader = folder / kind.file(model.kind), folder / kind.loader.name
    print(f"writing {target}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_PREFIX) as name:
        draft = Path(name) / target.name
        try:
            kind.write(model, draft)
        except (UsageError, RunFailedError, OSError):
            raise
        except Exception as error:  # whatever another's library has to say to a model that it cannot express
            reason = f"{type(error).__name__}: {first_line(error)[:200]}"
            raise RunFailedError(
                f"--to={kind.name}: this model cannot be written so ({reason}); try another"
            ) from error
        difference = largest_difference(model, kind, draft, images_BHWC)
        if not difference < LARGEST:
            raise RunFailedError(
                f"--to={kind.name}: the file written differs from the model by {difference:.2g}, and {LARGEST:g} is "
                "too much: it was thrown away; try another format"
            )
        script = Path(name) / loader.name
        shutil.copyfile(kind.loader, script)
        _sync(Path(name))
        _put(draft, target, Path(name) / _OLD)
        os.replace(script, loader)  # of another version it runs the file too
    return _Written(target, loader, difference)


def _put(draft: Path, target: Path, aside: Path) -> None:
    """Gives a draft its name. A folder cannot be replaced at once: the old one steps aside, and back if that fails."""
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
    """Has the disk keep what was written: a name must not outlive what it stands for."""
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _size(path: Path) -> int:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return sum(p.stat().st_size for p in files)


if __name__ == "__main__":
    command_line.run(main)
