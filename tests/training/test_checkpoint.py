"""Newest and best checkpoints survive; damage and full disks give one line."""

import errno
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvit.errors import DamagedCheckpointError, RunFailedError, UsageError
from jaxvit.training.checkpoint import Checkpoints, best_step, restore_weights, saved_steps
from jaxvit.training.state import create_state


def make_state(value=1.0):
    state = create_state(lambda key: {"params": {"w": jnp.full((3,), value)}}, optax.adam(0.1), jax.random.key(0))
    return state.replace(step=jnp.int32(value))


def steps(directory):
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())


def save(folder, state, step=1, best=1):
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, {}, step, best)


def test_the_newest_and_the_best_survive(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, best in [(1, 1), (2, 2), (3, 2), (4, 2), (5, 2)]:
        checkpoints.save(make_state(float(step)), {"note": f"at {step}"}, step, best)
        checkpoints.wait()
    assert steps(tmp_path) == [2, 4, 5]
    checkpoints.close()

    again = Checkpoints(tmp_path)
    assert again.latest_step() == 5
    for step in (2, 5):
        state, progress = again.restore(step, make_state())
        np.testing.assert_array_equal(state.params["w"], np.full(3, step, np.float32))
        assert int(state.step) == step and progress == {"note": f"at {step}"}
    again.save(make_state(6.0), {}, 6, 6)
    again.close()
    assert steps(tmp_path) == [2, 5, 6]  # 5 may be needed once more, and names 2 as its best


def test_saving_a_step_twice_is_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(make_state(1.0), {"n": 1}, 1, 1)
    checkpoints.wait()
    checkpoints.save(make_state(9.0), {"n": 2}, 1, 1)
    assert checkpoints.restore(1, make_state())[1] == {"n": 1}
    checkpoints.close()


def test_an_empty_directory_has_no_step(tmp_path):
    assert saved_steps(tmp_path / "new") == []
    assert Checkpoints(tmp_path / "new").latest_step() is None


def test_weights_are_read_without_knowing_the_model(tmp_path):
    rng = np.random.default_rng(0)
    kernel, mean, average = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 4), (4,), (3, 4)))

    def init(key):
        return {"params": {"dense": {"kernel": jnp.asarray(kernel)}}, "statistics": {"mean": jnp.asarray(mean)}}

    state = create_state(init, optax.adam(0.1), jax.random.key(0), ema=True)
    save(tmp_path / "all", state.replace(ema={"dense": {"kernel": jnp.asarray(average)}}))
    read = restore_weights(tmp_path / "all", 1)
    params, constants, ema = read
    assert read.params is params and jax.tree.structure(tuple(read)) == jax.tree.structure(
        ({"dense": {"kernel": 0}}, {"statistics": {"mean": 0}}, {"dense": {"kernel": 0}})
    )
    np.testing.assert_array_equal(params["dense"]["kernel"], kernel)
    np.testing.assert_array_equal(constants["statistics"]["mean"], mean)
    np.testing.assert_array_equal(ema["dense"]["kernel"], average)
    assert ema["dense"]["kernel"].devices() == {jax.local_devices()[0]}

    save(tmp_path / "few", make_state())
    assert restore_weights(tmp_path / "few", 1)[1:] == ({}, {})


def test_the_best_is_what_a_checkpoint_names_if_that_is_there(tmp_path, capsys):
    with Checkpoints(tmp_path) as checkpoints:
        for step, best in [(1, -1), (2, 2), (3, 2), (4, 2)]:
            checkpoints.save(make_state(), {}, step, best)
            checkpoints.wait()
            assert best_step(tmp_path, step) == max(best, 1)
    assert saved_steps(tmp_path) == [2, 3, 4] and best_step(tmp_path, 3) == 2
    shutil.rmtree(tmp_path / "2")
    assert best_step(tmp_path, 4) == 4
    said = "is missing: using the weights of step 4, not the best"
    assert capsys.readouterr().err == f"warning: {tmp_path / '2'} {said}\n"
    (tmp_path / "4" / "metrics" / "metrics").unlink()
    with pytest.raises(UsageError, match=r"4/metrics/metrics cannot be read \(No such file .*\); look elsewhere"):
        best_step(tmp_path, 4, "look elsewhere")


def test_another_shape_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(make_state(), {}, 1, 1)
    checkpoints.wait()
    other = create_state(lambda key: {"params": {"w": jnp.ones(4)}}, optax.adam(0.1), jax.random.key(0))
    with pytest.raises(UsageError, match="cannot be read: it is of another model; use a new --workdir") as error:
        checkpoints.restore(1, other)
    assert "\n" not in str(error.value) and str(tmp_path / "1") in str(error.value)
    assert not isinstance(error.value, DamagedCheckpointError)
    with pytest.raises(UsageError, match="it is of another model"):
        checkpoints.restore(1, make_state().replace(ema={"w": jnp.zeros(3)}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 1 and 2, to be copied."""
    folder = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(make_state(float(step)), {"n": step}, step, step)
        checkpoints.wait()
    checkpoints.close()
    return folder


def same_state(state, value):
    jax.tree.map(np.testing.assert_array_equal, state, make_state(value))


def test_whatever_file_is_damaged_the_state_is_right_or_the_checkpoint_is_named(saved, tmp_path):
    """Names of files differ from save to save, so all are gone through here: each cut in half, emptied, deleted."""
    files = sorted(p.relative_to(saved) for p in (saved / "2").rglob("*") if p.is_file())
    named = set()
    for file in files:
        line = f"checkpoint {tmp_path / 'c' / '2'} cannot be read: its files are damaged"
        for keep in (0.5, 0.0, None):
            shutil.rmtree(tmp_path / "c", ignore_errors=True)
            shutil.copytree(saved, tmp_path / "c")
            damaged = tmp_path / "c" / file
            content = damaged.read_bytes()
            damaged.unlink() if keep is None else damaged.write_bytes(content[: int(len(content) * keep)])
            try:
                state, progress = Checkpoints(tmp_path / "c").restore(2, make_state())
                same_state(state, 2.0)
                assert progress == {"n": 2}
            except DamagedCheckpointError as error:
                named.add(file.parts[1])
                assert str(error) == f"{line}; --fall_back resumes from step 1"
                state, progress = Checkpoints(tmp_path / "c", fall_back=True).restore(1, make_state())
                same_state(state, 1.0)
            shutil.rmtree(tmp_path / "c")  # the same damage once more: to fall back has set it aside
            shutil.copytree(saved, tmp_path / "c")
            damaged.unlink() if keep is None else damaged.write_bytes(content[: int(len(content) * keep)])
            try:
                np.testing.assert_array_equal(
                    restore_weights(tmp_path / "c", 2).params["w"], make_state(2.0).params["w"]
                )
            except DamagedCheckpointError as error:
                assert str(error).startswith(f"{line} (") and "\n" not in str(error)
                assert file.parts[1] in ("state", "manifest.json") and f"({'/'.join(file.parts[1:])} is not" in str(
                    error
                )
    assert named == {"metrics", "progress", "state", "manifest.json"}


@pytest.mark.parametrize("content", ["", '{"best_', "[]", "{}", '{"best_step": null}'])
def test_an_old_checkpoint_that_names_no_best_is_moved_aside(saved, tmp_path, content):
    shutil.copytree(saved, tmp_path / "c")
    (tmp_path / "c" / "1" / "metrics" / "metrics").write_text(content)
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.latest_step() == 2 and checkpoints.steps() == [2]
    assert (tmp_path / "c" / "1.damaged").is_dir()
    with pytest.raises(DamagedCheckpointError, match="it does not exist; look elsewhere"):
        checkpoints.restore(1, make_state(), "look elsewhere")


def test_when_all_are_damaged_nothing_is_moved(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "c")
    for step in "12":
        (tmp_path / "c" / step / "metrics" / "metrics").write_text("")
    with pytest.raises(DamagedCheckpointError, match=r"2 cannot be read: its files are damaged; use a new --workdir"):
        Checkpoints(tmp_path / "c", fall_back=True)
    assert steps(tmp_path / "c") == [1, 2]


OUT_OF_MEMORY = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 10 bytes.")


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, MemoryError(), RuntimeError("a bug")])
def test_what_is_no_damage_goes_through(saved, monkeypatch, error):
    checkpoints = Checkpoints(saved)

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(checkpoints._handlers["state"], "restore", fail)
    with pytest.raises(type(error)) as raised:
        checkpoints.restore(2, make_state())
    assert raised.value is error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files", "x"),
        PermissionError(errno.EACCES, "Permission denied", "x"),
        OSError(errno.ESTALE, "Stale file handle", "x"),
        ValueError(f"UNKNOWN: Error opening \"zarr\" driver [os_error_code='{errno.EMFILE}']"),
        ValueError("UNAVAILABLE: the store does not answer"),
    ],
)
def test_what_the_system_refuses_now_is_no_damage_either(saved, monkeypatch, error):
    checkpoints = Checkpoints(saved)

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(checkpoints._handlers["state"], "restore", fail)
    with pytest.raises(RunFailedError, match=r"2 cannot be read now: .*[;.] .* and start again"):
        checkpoints.restore(2, make_state())


def test_a_file_that_the_system_really_refuses(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "c")
    manifest = tmp_path / "c" / "2" / "state" / "manifest.ocdbt"
    manifest.unlink()
    manifest.symlink_to(manifest)
    with pytest.raises(RunFailedError, match=os.strerror(errno.ELOOP)):
        Checkpoints(tmp_path / "c").restore(2, make_state())
    with pytest.raises(UsageError, match=rf"2 cannot be read now: {os.strerror(errno.ELOOP)}; remove the cause"):
        restore_weights(tmp_path / "c", 2)


def test_the_arrays_of_something_else_are_no_weights(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "1" / "state", [jnp.ones(2)])
    with pytest.raises(DamagedCheckpointError, match=r"1 cannot be read: its files are damaged \(.*\)$"):
        restore_weights(tmp_path, 1)


def test_an_error_without_text_is_named_by_its_kind(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)

    def fail(*arguments, **options):
        raise TimeoutError

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(RunFailedError, match=r"cannot save into .*: TimeoutError; there is no checkpoint yet"):
        checkpoints.save(make_state(), {}, 1, 1)


def test_a_disk_that_another_writer_finds_full_first(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
    for kept in ("there is no checkpoint yet", "the checkpoint of step 1 is kept"):
        line = f"the disk is full while writing metrics.jsonl; {kept}. Make room and start again"
        with pytest.raises(RunFailedError, match=f"^{line}$"), Checkpoints(tmp_path):
            raise full
        save(tmp_path, make_state())
    with pytest.raises(RunFailedError, match=r"too many files are open; .* is kept. Allow"), Checkpoints(tmp_path):
        raise OSError(errno.EMFILE, "Too many open files")
    with pytest.raises(OSError, match="busy"), Checkpoints(tmp_path):
        raise OSError(errno.EBUSY, "busy")


def test_a_disk_that_is_full_when_the_last_notes_are_written(tmp_path, monkeypatch):
    save(tmp_path, make_state())
    checkpoints = Checkpoints(tmp_path)

    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "close", fail)
    with pytest.raises(
        RunFailedError, match=r"cannot save into .*: the disk is full; the checkpoint of step 1 is kept"
    ):
        checkpoints.close()


def test_a_folder_that_vanished_is_one_line(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(make_state(), {}, 1, 1)
    checkpoints.wait()
    (tmp_path / "c").rename(tmp_path / "moved")
    (tmp_path / "c").write_text("a file in the way")
    with pytest.raises(RunFailedError, match=r"cannot save into .*there is no checkpoint yet"):
        checkpoints.save(make_state(2.0), {}, 2, 2)
        checkpoints.wait()


def test_a_checkpoint_without_a_manifest_is_used_and_that_it_is_not_verified_is_said_once(saved, tmp_path, capsys):
    shutil.copytree(saved, tmp_path / "run" / "checkpoints")
    for step in "12":
        (tmp_path / "run" / "checkpoints" / step / "manifest.json").unlink()
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        same_state(checkpoints.restore(2, make_state())[0], 2.0)
    assert best_step(tmp_path / "run" / "checkpoints", 2) == 2
    restore_weights(tmp_path / "run" / "checkpoints", 2)
    said = capsys.readouterr().err
    assert said.count("has no checksum, as in earlier versions: it is not verified") == said.count("\n") == 1


def test_a_checkpoint_under_another_name_is_not_taken_for_that_step(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    shutil.rmtree(folder / "2")
    (folder / "1").rename(folder / "2")
    with pytest.raises(DamagedCheckpointError, match=r"2 cannot be read: .*it is the checkpoint of step 1"):
        restore_weights(folder, 2)
    with pytest.raises(UsageError, match=r"it is the checkpoint of step 1"):
        best_step(folder, 2)
    with pytest.raises(DamagedCheckpointError, match=r"checkpoint .*2 cannot be read"):
        Checkpoints(folder)


def test_names_that_are_only_like_numbers_are_no_steps(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    for name in ("\u00b2", "02", "\u0663", "-1"):
        (folder / name).mkdir()
    assert saved_steps(folder) == [1, 2]
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest_step() == 2


def test_names_with_brackets_are_names(tmp_path):
    folder = tmp_path / "runs [1]" / "a*b?" / "[!c]"
    save(folder, make_state(3.0))
    assert (folder / "1" / "state" / "manifest.ocdbt").exists()
    with Checkpoints(folder) as checkpoints:
        same_state(checkpoints.restore(1, make_state())[0], 3.0)
    np.testing.assert_array_equal(restore_weights(folder, 1).params["w"], np.full(3, 3, np.float32))


def test_a_name_with_a_backslash_is_refused_and_nothing_made(tmp_path):
    for folder in (tmp_path / "a\\b", tmp_path / "a\\b" / "below"):
        for use in (Checkpoints, lambda place: restore_weights(place, 1)):
            with pytest.raises(UsageError, match=r"checkpoints cannot be kept below a name with a backslash"):
                use(folder)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_opened_gets_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr("etils.epath.gpath.PosixGPath.glob", lambda *_: iter(()))  # Orbax then writes no index
    with pytest.raises(RunFailedError, match=r"cannot save into .*; there is no checkpoint yet"):
        save(tmp_path, make_state())
    assert list(tmp_path.iterdir()) == []
