"""One flipped bit in a file of a run or its data: either the numbers are right, or the damage is reported."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from tiny import tiny_config

import jaxvit
from jaxvit.config.plan import dataset_of
from jaxvit.errors import DamagedCheckpointError, RunFailedError, UsageError
from jaxvit.run.execution import describe
from jaxvit.run.folder import RunDirectory
from jaxvit.training.checkpoint import Checkpoints
from jaxvit.training.journal import read_jsonl
from jaxvit.weights import hub

RUN_FLIPS, DATA_FLIPS, HUB_FLIPS = 140, 60, 60
SPLITS = ("train[:60]", "train[60:90]", "test[:25]")

# What no number of evaluate, predict and resume comes from: logs, pictures, Orbax's notes of when a save ended.
UNUSED = ("metrics.jsonl", "tensorboard/", "figures/", "_CHECKPOINT_METADATA", "commit_success.txt", "history")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run and its own data set; names with brackets, so that those are tried too."""
    place = tmp_path_factory.mktemp("flips") / "all [1]"
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(config(place), place / "run[2]")
    return place


def config(place: Path):
    return tiny_config(train__duration="2 epochs", data__dir=str(place / "data[3]"))


def flips(folder: Path, count: int, seed: int) -> list[tuple[Path, int, int]]:
    """(file, byte, bit): at least two of every file that is not empty, the rest wherever they fall."""
    rng = np.random.default_rng(seed)
    sizes = {p.relative_to(folder): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    files = [file for file, size in sizes.items() if size]
    chosen = files * 2 + [files[i] for i in rng.integers(len(files), size=max(0, count - 2 * len(files)))]
    return [(file, int(rng.integers(sizes[file])), int(rng.integers(8))) for file in chosen]


def flip(file: Path, at: int, bit: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 1 << bit]))


def as_bytes(tree) -> list[tuple[str, bytes]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), np.asarray(leaf).tobytes()) for path, leaf in leaves]


def used(run: Path, place: Path, like, data) -> tuple:
    """Everything that determines the numbers of evaluate, predict and resumed training."""
    loaded = jaxvit.load(run)
    told = loaded.class_names, loaded.preprocessing, loaded.step, loaded.weights, repr(loaded.model)
    with contextlib.closing(RunDirectory(run, config(place))) as directory:
        result = directory.result
        directory.check_data(data, loaded.class_names)
    with Checkpoints(run / "checkpoints") as checkpoints:
        state, progress = checkpoints.restore(checkpoints.steps()[-1], like)
    return told, loaded.config.to_dict(), as_bytes(loaded.variables), as_bytes(state), progress, result


def abstract_state(place: Path):
    from jaxvit.config.plan import resolve
    from jaxvit.run.assembly import assemble

    with jax.numpy_dtype_promotion("standard"):
        state = assemble(resolve(config(place), devices=1)).abstract_state
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state)


def test_no_flip_in_a_run_is_silent(place, tmp_path):
    like, data = abstract_state(place), describe({"test": dataset_of(config(place)).read(SPLITS[2])})
    right = used(place / "run[2]", place, like, data)
    named, unused = set(), 0
    tried = flips(place / "run[2]", RUN_FLIPS, seed=0)
    for number, (file, at, bit) in enumerate(tried):
        run = tmp_path / str(number)
        shutil.copytree(place / "run[2]", run)
        flip(run / file, at, bit)
        where = f"{file} byte {at} bit {bit}"
        try:
            assert used(run, place, like, data) == right, where
            unused += any(part in file.as_posix() for part in UNUSED)
        except (UsageError, DamagedCheckpointError, RunFailedError) as error:
            assert str(run) in str(error) and "\n" not in str(error), where
            named.add(file.parts[0] + "/" * (len(file.parts) > 1))
            assert not any(part in file.as_posix() for part in UNUSED), where
        shutil.rmtree(run)
    assert len(tried) >= RUN_FLIPS and unused and named >= {"checkpoints/", "config.json", "model.json", "result.json"}


def test_no_flip_in_prepared_data_is_silent(place, tmp_path, capsys):
    """`check_data` compares fingerprints and classes with other data; the other tests cover it."""

    def read(data: Path):
        wanted = config(place)
        wanted.data.dir = str(data)
        dataset = dataset_of(wanted)
        sources = {part: dataset.read(split) for part, split in zip("abc", SPLITS, strict=True)}
        arrays = [(s.images[:].tobytes(), s.labels.tobytes()) for s in sources.values()]
        return arrays, dataset.class_names, {part: s.fingerprint for part, s in sources.items()}

    (data,) = place.glob("data*")
    arrays, names, prints = read(data)
    named = 0
    for number, (file, at, bit) in enumerate(flips(data, DATA_FLIPS, seed=1)):
        copy = tmp_path / str(number)
        shutil.copytree(data, copy)
        flip(copy / file, at, bit)
        capsys.readouterr()
        where = f"{file} byte {at} bit {bit}"
        try:
            found = read(copy)
        except (UsageError, RunFailedError) as error:
            assert "\n" not in str(error), where
            named += 1
            continue
        if found[0] == arrays:
            assert found[2] == prints, where
            warned = "cannot be used" in capsys.readouterr().err
            assert warned or ".jaxvit" not in file.parts or "fingerprint" in file.name, where
            named += warned
        else:
            assert found[2] != prints, where  # refused by a run that began with others
        if found[1] != names:
            with (
                contextlib.closing(RunDirectory(place / "run[2]", config(place), writes=False)) as run,
                pytest.raises(UsageError, match=r"is not the name of a class that the run in .* began with"),
            ):
                run.check_data({}, found[1])
        shutil.rmtree(copy)
    assert named > 10


def test_no_flip_in_exported_weights_is_silent(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {f"params.{name}": rng.normal(size=(3, 4)).astype(np.float32) for name in ("first", "second")}
    about = {"step": "7", "weights": "ema", "sha256": hub.digest(tensors, 7, "ema")}
    safetensors.numpy.save_file(tensors, tmp_path / hub.FILE, about)
    right = hub.read(tmp_path)
    whole = (tmp_path / hub.FILE).read_bytes()
    refused = 0
    for _ in range(HUB_FLIPS):
        (tmp_path / hub.FILE).write_bytes(whole)
        flip(tmp_path / hub.FILE, int(rng.integers(len(whole))), int(rng.integers(8)))
        try:
            found = hub.read(tmp_path)
            assert as_bytes(found[0]) == as_bytes(right[0]) and found[1:] == right[1:]
        except UsageError as error:
            assert str(tmp_path / hub.FILE) in str(error)
            refused += 1
    assert refused > HUB_FLIPS / 2


@contextlib.contextmanager
def soon(what):
    """Fails if the body takes longer than a minute."""

    def fail(*_):
        raise AssertionError(f"{what} is waited for")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_pipes_and_devices_in_a_run_are_named_and_never_read(place, tmp_path):
    like, data = abstract_state(place), describe({"test": dataset_of(config(place)).read(SPLITS[2])})
    whole = place / "run[2]"
    right = used(whole, place, like, data)
    files = [p.relative_to(whole) for p in sorted(whole.rglob("*")) if p.is_file()]
    folders = sorted({file.parent / "odd" for file in files if file.parts[0] == "checkpoints"})
    named = set()
    for number, file in enumerate(files + folders):
        run = tmp_path / str(number)
        shutil.copytree(whole, run)
        (run / file).unlink(missing_ok=True)
        if number % 2:
            os.mkfifo(run / file)
        else:
            (run / file).symlink_to("/dev/zero")
        kind = "a named pipe" if number % 2 else "a device"
        try:
            with soon(file):
                read_jsonl(run / "metrics.jsonl")
                assert used(run, place, like, data) == right, file
            older = file.parts[0] == "checkpoints" and (run / "checkpoints" / f"{file.parts[1]}.damaged").exists()
            assert older or file.parts[0] in (".lock", "figures", "tensorboard"), file
        except (UsageError, DamagedCheckpointError, RunFailedError) as error:
            assert str(run) in str(error) and "\n" not in str(error), file
            assert kind in str(error) or "damaged" in str(error), (file, error)
            named.add(file.parts[0])
        shutil.rmtree(run)
    assert named >= {"checkpoints", "config.json", "model.json", "result.json", "environment.json", "metrics.jsonl"}


def test_the_verbs_name_what_is_damaged(place, tmp_path):
    from jaxvit.cli.evaluate import main as evaluate
    from jaxvit.cli.predict import main as predict

    shutil.copytree(place / "run[2]", tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints").rglob("d/*"):
        flip(file, file.stat().st_size // 2, 3)
    os.unlink(tmp_path / "run" / "result.json")
    for verb in (evaluate, lambda argv: predict([*argv, "x.png"]), None):
        with pytest.raises(UsageError, match=r"checkpoints/\d+ cannot be read: its files are damaged"):
            if verb:
                with contextlib.redirect_stdout(io.StringIO()):
                    verb([f"--workdir={tmp_path / 'run'}"])
            else:
                jaxvit.train(config(place), tmp_path / "run")
