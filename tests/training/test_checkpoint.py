"""Newest and best survive; damage and full disks are said in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvit.errors import RunFailedError, UsageError
from jaxvit.training.checkpoint import Checkpoints
from jaxvit.training.state import create_state


def make_state(value=1.0):
    state = create_state(lambda key: {"params": {"w": jnp.full((3,), value)}}, optax.adam(0.1), jax.random.key(0))
    return state.replace(step=jnp.int32(value))


def steps(directory):
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit())


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
    assert Checkpoints(tmp_path / "new").latest_step() is None


def test_another_shape_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(make_state(), {}, 1, 1)
    checkpoints.wait()
    other = create_state(lambda key: {"params": {"w": jnp.ones(4)}}, optax.adam(0.1), jax.random.key(0))
    with pytest.raises(UsageError, match="cannot be read: it is of another model; use a new --workdir") as error:
        checkpoints.restore(1, other)
    assert "\n" not in str(error.value) and str(tmp_path / "1") in str(error.value)


def test_a_damaged_file_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(make_state(), {}, 1, 1)
    checkpoints.close()
    for file in (tmp_path / "1" / "state").rglob("*"):
        if file.is_file() and file.stat().st_size:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UsageError, match="cannot be read"):
        Checkpoints(tmp_path).restore(1, make_state())


def test_a_folder_that_vanished_is_one_line(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(make_state(), {}, 1, 1)
    checkpoints.wait()
    (tmp_path / "c").rename(tmp_path / "moved")
    (tmp_path / "c").write_text("a file in the way")
    with pytest.raises(RunFailedError, match=r"cannot save into .*there is no checkpoint yet"):
        checkpoints.save(make_state(2.0), {}, 2, 2)
        checkpoints.wait()
