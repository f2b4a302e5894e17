"""Packs a folder of runs into one file, so that another machine can continue them.

The archive is an uncompressed tar file; checkpoints are compressed already. Its first member, contents.json, lists each
run, its progress, and its files with size and SHA-256. The archive has the files of a run (config, metrics,
environment, result, line), its TensorBoard events, and its newest and best checkpoint. A finished run that has its line
needs no checkpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from jaxvit.errors import UsageError, first_line, is_disk_failure
from jaxvit.files import Lock, file_hash, make_writable, read_json, replaced
from jaxvit.reproduce.runs import LINE
from jaxvit.training.checkpoint import best_step, saved_steps
from jaxvit.training.journal import read_jsonl

SUFFIX = ".tar"
_CONTENTS = "contents.json"
_MOST_CONTENTS = 64 << 20  # bytes
_PIECE = 1 << 20


@dataclass(frozen=True)
class Reached:
    """Progress of a run.

    Attributes:
      config_hash: hash of its config.
      finished: True if it has its result.
      step: step of the newest checkpoint; 0 = none.
      epochs: the same in epochs; 0 if unknown.
    """

    config_hash: str
    finished: bool = False
    step: int = 0
    epochs: float = 0.0

    def __ge__(self, other: Reached) -> bool:
        return (self.finished, self.step) >= (other.finished, other.step)


def reached(run: Path) -> Reached | None:
    """Progress of the run in a folder; None if the folder has no run.

    Raises:
      UsageError: config or metrics are damaged.
    """
    if not (run / "config.json").exists():
        return None
    config = read_json(run / "config.json")
    step = max(saved_steps(run / "checkpoints"), default=0)
    records = read_jsonl(run / "metrics.jsonl")
    last = records[-1] if records else {}
    epochs = round(step * last["epoch"] / last["step"], 2) if last.get("step") else 0.0
    hashed = str(config.get("config_hash", "")) if isinstance(config, dict) else ""
    return Reached(hashed, (run / "result.json").exists(), step, epochs)


def folder_for(path: Path) -> Path:
    """The folder of runs: for an archive, the folder beside it, named without .tar; else the path itself."""
    return path.with_suffix("") if path.suffix == SUFFIX else path


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """Context that yields `folder_for(path)`; an archive is unpacked on entry and packed again on exit.

    Raises:
      UsageError: see `unpack` and `pack`.
    """
    folder = folder_for(path)
    if folder == path:
        yield path
        return
    if path.exists():
        unpack(path, folder)
    try:
        yield folder
    except BaseException:
        renew(path)
        raise
    pack(folder, path)


def pack(runs: Path, file: Path) -> int:
    """Packs the runs in a folder into an archive, replacing an older one.

    Returns:
      Number of runs; if it is 0, no file is written.

    Raises:
      UsageError: a run is being trained or cannot be read, or the file cannot be written.
    """
    found = _runs(runs)
    if not found:
        return 0
    make_writable(file.absolute().parent, "name another file")
    with contextlib.ExitStack() as stack:
        for name in found:
            busy = f"{runs / name}: it is being trained; stop it with SIGTERM, which saves its state, then pack"
            stack.enter_context(Lock(runs / name / ".lock", busy))
        contents = {name: _content(runs / name) for name in found}
        head = json.dumps({"jaxvit_runs": 1, "runs": contents}, indent=1).encode()
        with replaced(file) as beside, tarfile.open(beside, "w", format=tarfile.PAX_FORMAT) as tar:
            tar.addfile(_member(_CONTENTS, len(head)), io.BytesIO(head))
            for name, about in contents.items():
                for part, (size, _) in about["files"].items():
                    with (runs / name / part).open("rb") as stream:
                        tar.addfile(_member(f"{name}/{part}", size), stream)
    return len(found)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def _runs(runs: Path) -> list[str]:
    """Relative paths of the runs; a run with several seeds and each of its seeds count separately."""
    found = []
    for folder, below, files in os.walk(runs):
        below[:] = sorted(name for name in below if name != "checkpoints" and not name.startswith("."))
        if "config.json" in files and Path(folder) != runs:
            found.append(Path(folder).relative_to(runs).as_posix())
    return found


def _content(run: Path) -> dict[str, Any]:
    """The entry of a run in contents.json: {'reached': …, 'files': {file: (size, SHA-256)}}."""
    state = reached(run)
    assert state is not None
    own = [p for p in run.iterdir() if not p.name.startswith(".")]
    steps = [] if state.finished and (run / LINE).exists() else _needed(run / "checkpoints")
    deep = [run / "tensorboard", *(run / "checkpoints" / str(step) for step in steps)]
    files = [*own, *(p for folder in deep for p in sorted(folder.rglob("*")))]
    whole = [p for p in files if p.is_file() and not p.is_symlink()]
    return {
        "reached": asdict(state),
        "files": {p.relative_to(run).as_posix(): (p.stat().st_size, file_hash(p)) for p in whole},
    }


def _needed(checkpoints: Path) -> list[int]:
    """Steps of the newest and the best checkpoint; all steps if the newest is damaged and does not name the best."""
    steps = saved_steps(checkpoints)
    try:
        return sorted({best_step(checkpoints, steps[-1]), steps[-1]}) if steps else []
    except UsageError:
        return steps


def renew(path: Path) -> None:
    """Packs the runs again if `path` is an archive; prints errors instead of raising them."""
    folder = folder_for(path)
    if folder == path:
        return
    try:
        pack(folder, path)
    except (UsageError, OSError) as error:
        print(f"{path} was not updated ({first_line(error)}); {folder} has all runs", file=sys.stderr, flush=True)


def archived(path: Path) -> dict[str, Reached]:
    """The runs in an archive and their progress; {} if `path` is a folder or does not exist.

    Raises:
      UsageError: the file is not an archive of runs, or damaged.
    """
    if folder_for(path) == path or not path.exists():
        return {}
    with _reading(path) as tar:
        return {name: about[0] for name, about in _read_contents(tar).items()}


def unpack(file: Path, runs: Path) -> list[str]:
    """Unpacks the runs of an archive into a folder. If a run exists there already, the one with more progress is kept.

    Checks everything before it changes anything.

    Returns:
      Names of the runs taken from the archive.

    Raises:
      UsageError: the file is not an archive of runs, or damaged; or the folder has the same run with another config, or
        is training it.
    """
    make_writable(runs, "name another folder with --runs")
    for left in runs.glob(".unpacked-*"):  # left by a killed process
        shutil.rmtree(left, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        tar = stack.enter_context(_reading(file))
        fresh = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=runs, prefix=".unpacked-")))
        wanted = {}
        for name, (there, files) in _read_contents(tar).items():
            here = reached(runs / name)
            if here and here.config_hash != there.config_hash:
                raise UsageError(f"{file}: {name} has another config than {runs / name}; move one of them away")
            if here and here >= there:
                continue
            wanted[name] = files
            if here:
                busy = f"{runs / name}: it is being trained; wait until it ends, or stop it"
                stack.enter_context(Lock(runs / name / ".lock", busy))
        _extract(tar, wanted, fresh)
        for name, files in wanted.items():
            _move(fresh / name, runs / name, files)
        return list(wanted)


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(file, "r:") as tar:
            yield tar
    except (tarfile.TarError, EOFError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        remedy = "copy it again, or make a new one with jaxvit reproduce --pack"
        raise UsageError(f"{file}: not an archive of runs, or damaged ({first_line(error)[:100]}); {remedy}") from None
    except OSError as error:
        if is_disk_failure(error):
            raise
        raise UsageError(f"{file}: cannot be unpacked ({error.strerror or first_line(error)})") from None


def _read_contents(tar: tarfile.TarFile) -> dict[str, tuple[Reached, dict[str, tuple[int, str]]]]:
    """Reads and checks contents.json. Raises ValueError, KeyError or TypeError if `pack` did not write it."""
    first = tar.next()
    if first is None or first.name != _CONTENTS or not first.isreg() or first.size > _MOST_CONTENTS:
        raise ValueError(f"it does not begin with {_CONTENTS}")
    found = json.loads(_stream(tar, first).read())
    if found["jaxvit_runs"] != 1:
        raise ValueError("it was written by a newer version")
    runs = {}
    for name, about in found["runs"].items():
        at = Reached(**about["reached"])
        sound = isinstance(at.config_hash, str) and type(at.finished) is bool and type(at.step) is int and at.step >= 0
        if not sound or not isinstance(at.epochs, int | float) or not _is_inside(name):
            raise ValueError(f"run '{name[:50]}'")
        files = {part: (size, digest) for part, (size, digest) in about["files"].items()}
        if wrong := [part for part in files if not _is_inside(part)]:
            raise ValueError(f"file '{wrong[0][:50]}'")
        if "config.json" not in files:
            raise ValueError(f"run '{name[:50]}' has no config.json")
        runs[name] = at, files
    return runs


def _is_inside(name: str) -> bool:
    """True if a relative path stays inside its folder and has only plain names."""
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and re.fullmatch(r"[^\x00-\x1f\\]{1,255}", part) for part in parts)
    return plain and not PurePosixPath(name).is_absolute() and not parts[0].startswith(".")


def _stream(tar: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    stream = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if stream is None:
        raise ValueError(f"{member.name[:50]} is not a file")
    return stream  # type: ignore[return-value]


def _extract(tar: tarfile.TarFile, wanted: dict[str, dict[str, tuple[int, str]]], into: Path) -> None:
    """Extracts the files of the wanted runs. Raises ValueError if a file differs from its entry."""
    missing = {f"{name}/{part}": about for name, files in wanted.items() for part, about in files.items()}
    for member in tar:
        if member.name not in missing:
            continue
        size, digest = missing.pop(member.name)
        if member.size != size:
            raise ValueError(f"{member.name} has another size")
        target, hashed = into / member.name, hashlib.sha256()
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out, _stream(tar, member) as stream:
            while piece := stream.read(_PIECE):
                hashed.update(piece)
                out.write(piece)
            out.flush()
            os.fsync(out.fileno())
        if hashed.hexdigest() != digest:
            raise ValueError(f"{member.name} is not what was packed")
    if missing:
        raise ValueError(f"{next(iter(missing))} is missing")


def _move(fresh: Path, run: Path, files: dict[str, tuple[int, str]]) -> None:
    """Moves an unpacked run into place: first its files, then its checkpoints, the result last.

    If the process is killed in between, the run has less progress than in the archive and is unpacked again next time.
    """
    run.mkdir(parents=True, exist_ok=True)
    checkpoints = fresh / "checkpoints"
    plain = [part for part in files if not part.startswith("checkpoints/") and part not in ("result.json", LINE)]
    for part in plain:
        (run / part).parent.mkdir(parents=True, exist_ok=True)
        os.replace(fresh / part, run / part)
    for step in saved_steps(checkpoints):
        target = run / "checkpoints" / str(step)
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)  # the same step of the same config, perhaps incomplete
        os.replace(checkpoints / str(step), target)
    for part in (LINE, "result.json"):
        if part in files:
            os.replace(fresh / part, run / part)
