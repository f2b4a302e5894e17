"""A folder of runs as one file, to go on with on another machine: what it takes to go on, and nothing else.

A tar file, not compressed, since checkpoints are. Its first member, contents.json, names each run, how far it is, and
each of its files with size and SHA-256. Of a run there are its own files (config, metrics, environment, result, line),
its events for TensorBoard, and of its checkpoints the newest and the best; none where it is finished and has its line.
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

from jaxvit.errors import UsageError, first_line, is_disk_full
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
    """How far a run is.

    Attributes:
      config_hash: of its config.
      finished: it has its result.
      step: of the newest checkpoint; 0 = none.
      epochs: the same in epochs; 0 where that is not known.
    """

    config_hash: str
    finished: bool = False
    step: int = 0
    epochs: float = 0.0

    def __ge__(self, other: Reached) -> bool:
        return (self.finished, self.step) >= (other.finished, other.step)


def reached(run: Path) -> Reached | None:
    """How far the run in a folder is; None where there is none.

    Raises:
      UsageError: its config or metrics are damaged.
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
    """The folder to work in: of an archive the one beside it that has its name without .tar, else the path itself."""
    return path.with_suffix("") if path.suffix == SUFFIX else path


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The folder of `folder_for`; what an archive holds is there within, and what is there at the end is packed again.

    Raises:
      UsageError: as `unpack` and `pack`.
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
    """Writes the runs of a folder into an archive, in place of an older one.

    Returns:
      How many; without any, no file is written.

    Raises:
      UsageError: a run is being trained, or cannot be read; or the file cannot be written.
    """
    found = _runs(runs)
    if not found:
        return 0
    make_writable(file.absolute().parent, "name another file")
    with contextlib.ExitStack() as stack:
        for name in found:
            busy = f"{runs / name}: it is being trained; stop that with SIGTERM, which saves it, then pack"
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
    """The folders of runs, relative; a run of several seeds and those of its seeds are one each."""
    found = []
    for folder, below, files in os.walk(runs):
        below[:] = sorted(name for name in below if name != "checkpoints" and not name.startswith("."))
        if "config.json" in files and Path(folder) != runs:
            found.append(Path(folder).relative_to(runs).as_posix())
    return found


def _content(run: Path) -> dict[str, Any]:
    """{'reached': …, 'files': {file: (size, SHA-256)}} of a run."""
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
    """Steps of the newest checkpoint and the one that it names as the best; all where it is too damaged to say."""
    steps = saved_steps(checkpoints)
    try:
        return sorted({best_step(checkpoints, steps[-1]), steps[-1]}) if steps else []
    except UsageError:
        return steps


def renew(path: Path) -> None:
    """Packs the runs again where `path` is their archive and not their folder; what goes wrong is told, not raised."""
    folder = folder_for(path)
    if folder == path:
        return
    try:
        pack(folder, path)
    except (UsageError, OSError) as error:
        print(f"{path} is not renewed ({first_line(error)}); {folder} has everything", file=sys.stderr, flush=True)


def archived(path: Path) -> dict[str, Reached]:
    """The runs of an archive and how far they are; {} where `path` is a folder, or there is none yet.

    Raises:
      UsageError: it is no archive of runs, or a damaged one.
    """
    if folder_for(path) == path or not path.exists():
        return {}
    with _reading(path) as tar:
        return {name: about[0] for name, about in _read_contents(tar).items()}


def unpack(file: Path, runs: Path) -> list[str]:
    """Brings the runs of an archive into a folder; of a run that is there already, the one that is further stays.

    Everything is checked before anything is changed.

    Returns:
      The names of the runs that came from the archive.

    Raises:
      UsageError: it is no archive of runs, or a damaged one; or a run is there with another config, or being trained.
    """
    make_writable(runs, "name another folder with --runs")
    for left in runs.glob(".unpacked-*"):  # by a killed process
        shutil.rmtree(left, ignore_errors=True)
    with contextlib.ExitStack() as stack:
        tar = stack.enter_context(_reading(file))
        fresh = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=runs, prefix=".unpacked-")))
        wanted = {}
        for name, (there, files) in _read_contents(tar).items():
            here = reached(runs / name)
            if here and here.config_hash != there.config_hash:
                raise UsageError(f"{file}: {name} is a run of another config than {runs / name}; move one of them away")
            if here and here >= there:
                continue
            wanted[name] = files
            if here:
                busy = f"{runs / name}: it is being trained; wait for that, or stop it"
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
        remedy = "copy it here again, or make it anew with jaxvit reproduce --pack"
        raise UsageError(
            f"{file}: no archive of runs, or a damaged one ({first_line(error)[:100]}); {remedy}"
        ) from None
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UsageError(f"{file}: cannot be unpacked ({error.strerror or first_line(error)})") from None


def _read_contents(tar: tarfile.TarFile) -> dict[str, tuple[Reached, dict[str, tuple[int, str]]]]:
    """Raises ValueError, KeyError or TypeError where it is not what `pack` writes."""
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
    """Whether a path leads into the folder that it is relative to, by plain names."""
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and re.fullmatch(r"[^\x00-\x1f\\]{1,255}", part) for part in parts)
    return plain and not PurePosixPath(name).is_absolute() and not parts[0].startswith(".")


def _stream(tar: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    stream = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    if stream is None:
        raise ValueError(f"{member.name[:50]} is no file")
    return stream  # type: ignore[return-value]


def _extract(tar: tarfile.TarFile, wanted: dict[str, dict[str, tuple[int, str]]], into: Path) -> None:
    """Writes the files of the runs that are wanted. Raises ValueError where one is not what was packed."""
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
    """Moves an unpacked run to its place: the newest checkpoint almost last, the result last.

    So a kill in between leaves a run that is not as far as the archive's, and the next time it is unpacked again.
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
        shutil.rmtree(target, ignore_errors=True)  # the same step of the same config, perhaps half of it
        os.replace(checkpoints / str(step), target)
    for part in (LINE, "result.json"):
        if part in files:
            os.replace(fresh / part, run / part)
