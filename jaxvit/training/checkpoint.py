"""Writes and reads the checkpoints of a run. No other file knows their layout.

Each checkpoint is a folder, named by its step, the number of updates so far::

    checkpoints/
      1200/                       a finished checkpoint; it gets this name last, by an atomic rename
        state/                    `jaxvit.training.state.TrainState`, as Orbax's standard handler stores arrays:
                                    step       int32 scalar
                                    params     the model's parameters, nested by module names
                                    constants  the model's other collections, or {}
                                    opt_state  optax's state: moments and counts
                                    ema        EMA of the parameters, or {}
        progress/metadata         `jaxvit.training.loop.Position` as JSON: the best epoch and its value, epochs waited,
                                  totals of the epoch so far, seconds spent
        metrics/metrics           JSON, {"best_step": 900}: the step with the best weights; without validation, the last
                                  end of an epoch; -1 = no epoch has ended yet
        manifest.json             sizes and hashes of these files, see `jaxvit.training.manifest`
      900/                        the best step
      1300.orbax-checkpoint-tmp/  being written, or left unfinished by a kill; never read
      1100.damaged/               set aside; never read

Orbax keeps its own notes there too. Random state is not stored: it is derived from the seed and the step.

The newest two checkpoints and the best ones that they name are kept. The newest checkpoint says which one is best, so
both change in one rename: after a kill at any time, the newest finished checkpoint and its best exist.
(Orbax's own option to keep the best deletes the newest checkpoint if it is not among the best; then a run could not
resume.) The second newest is kept in case the newest is damaged.

A run opens its folder with `Checkpoints`, which writes, and restores whole states. `saved_steps`, `best_step` and
`restore_weights` only read, and work during the run too.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, cast

import jax
import orbax.checkpoint as ocp
from jax.tree_util import KeyPath
from orbax.checkpoint.checkpoint_managers import PolicyCheckpointInfo, PreservationContext

from jaxvit.devices import processes
from jaxvit.errors import (
    DamagedCheckpointError,
    RunFailedError,
    UsageError,
    describe_system_error,
    find_system_error,
    first_line,
)
from jaxvit.files import check_regular, make_folder, read_json, refuse_backslash, take_brackets_literally
from jaxvit.ops.trees import Params, Variables
from jaxvit.training.manifest import ChangedError, check_manifest, write_manifest
from jaxvit.training.state import TrainState

if TYPE_CHECKING:
    from etils import epath  # Orbax's own paths

take_brackets_literally()  # else Orbax omits the arrays' index below a folder with brackets


def saved_steps(folder: Path) -> list[int]:
    """Returns the steps of the finished checkpoints in a folder, oldest first; [] if there are none, or no folder.

    Their files may still be damaged.
    """
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal() and p.name == str(int(p.name)))


def best_step(folder: Path, step: int, remedy: str = "this checkpoint is damaged") -> int:
    """Returns the step with the best weights, as the checkpoint of `step` records it.

    Returns `step` itself if no epoch has ended yet, or, with a warning on stderr, if the recorded checkpoint is
    missing.

    Args:
      folder: folder of the checkpoints.
      step: step of a finished checkpoint, usually the newest.
      remedy: what to do if it cannot be read; the end of the error message.

    Raises:
      UsageError: the record cannot be read, or is damaged.
    """
    file = _metrics_file(folder, step)
    said = read_json(file, remedy)
    try:
        check_manifest(folder / str(step), "metrics")
    except (ChangedError, OSError) as error:
        raise UsageError(f"{file} cannot be read ({first_line(error)[:200]}); {remedy}") from None
    best = said.get("best_step") if isinstance(said, dict) else None
    if best in saved_steps(folder):
        return best
    if best != -1:  # -1: no epoch has ended yet
        missing = f"{folder / str(best)} is missing" if isinstance(best, int) else f"{file} does not name them"
        print(f"warning: {missing}: using the weights of step {step}, not the best", file=sys.stderr, flush=True)
    return step


class Weights(NamedTuple):
    """The weights in a checkpoint; see `restore_weights`.

    Attributes:
      params: parameter tree.
      constants: {collection: tree} of the model's other collections, or {}.
      ema: EMA of the parameters, a tree like `params`, or {}.
    """

    params: Params
    constants: Variables
    ema: Params


def restore_weights(folder: Path, step: int) -> Weights:
    """Restores the weights of a checkpoint onto the first device of this process, without the optimizer state.

    It needs neither the config nor the model: the checkpoint has names, shapes and dtypes. ::

        folder = Path("runs/digits/checkpoints")
        weights = restore_weights(folder, best_step(folder, saved_steps(folder)[-1]))

    Args:
      folder: folder of the checkpoints.
      step: step of a finished checkpoint.

    Raises:
      DamagedCheckpointError: the files have changed, or are not a checkpoint of a run.
      RunFailedError: the disk fails, or permission is denied.
      UsageError: the system cannot read it now for another reason.
    """
    refuse_backslash(folder)
    place = cast("epath.Path", _state_folder(folder, step).absolute())
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        try:
            check_manifest(folder / str(step), "state")
            stored = handler.metadata(place).tree
            device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            trees = {name: stored.get(name) or {} for name in Weights._fields}
            wanted = {
                name: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), tree)
                for name, tree in trees.items()
                if tree
            }
            arguments = ocp.args.PyTreeRestore(
                wanted,
                restore_args=jax.tree.map(lambda leaf: ocp.ArrayRestoreArgs(sharding=leaf.sharding), wanted),
                partial_restore=True,
            )
            return Weights(**{**trees, **handler.restore(place, args=arguments)})
        except Exception as error:  # Orbax may raise anything on arbitrary files
            if passing := _passing_reason(error):
                kind = RunFailedError if find_system_error(error) else UsageError
                raise kind(_not_now(folder / str(step), passing)) from error
            reason = first_line(error)[:200]
            raise DamagedCheckpointError(
                f"checkpoint {folder / str(step)} cannot be read: its files are damaged ({reason})"
            ) from None


def _state_folder(folder: Path, step: int) -> Path:
    return folder / str(step) / "state"


def _progress_folder(folder: Path, step: int) -> Path:
    return folder / str(step) / "progress"


def _metrics_file(folder: Path, step: int) -> Path:
    return folder / str(step) / "metrics" / "metrics"


def _names_the_best(folder: Path, step: int) -> bool:
    """Whether a checkpoint records which one is best.

    Raises:
      RunFailedError: the system cannot read it now.
    """
    try:
        check_manifest(folder / str(step), "metrics")
        return isinstance(json.loads(_metrics_file(folder, step).read_text())["best_step"], int)
    except (ValueError, KeyError, TypeError):
        return False
    except OSError as error:
        if reason := _passing_reason(error):
            raise RunFailedError(_not_now(folder / str(step), reason)) from error
        return False


def _not_now(checkpoint: Path, reason: str) -> str:
    return f"checkpoint {checkpoint} cannot be read now: {reason}"


class _NewestAndBest:
    """Orbax preservation policy: keeps the newest two checkpoints and the best ones that they name."""

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> list[bool]:
        """Returns whether to keep each of the checkpoints, which are sorted by step."""
        del context
        kept = {info.step for info in checkpoints[-2:]}
        kept |= {(info.metrics or {}).get("best_step", -1) for info in checkpoints[-2:]}
        return [info.step in kept for info in checkpoints]


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its calls to jax's preemption service, which belongs to `StopRequest`.

    The service expects one increasing counter. Orbax calls it with the step, also from its own thread, and would break
    that order.
    """

    def reached_preemption(self, step: int) -> bool:
        """Always False."""
        del step
        return False


class Checkpoints:
    """The checkpoints of one run; a context manager that closes them.

    Saving is asynchronous; `wait` or `close` finishes it. A full or failing disk inside the context, whatever is being
    written, becomes an error that says which checkpoint is kept.

    Args:
      directory: folder of the checkpoints; created if missing.
      fall_back: set the newest checkpoint aside if it does not record which one is best.

    Raises:
      DamagedCheckpointError: the newest checkpoint does not record this, and `fall_back` is off or it is the only one.
    """

    def __init__(self, directory: Path, *, fall_back: bool = False):
        refuse_backslash(directory)
        self._directory = directory.absolute()
        processes.on_first(self._refuse_odd_files)
        self._saving = 0  # step that is being saved
        self._failure: RunFailedError | None = None  # the first one: later errors of Orbax follow from it
        processes.on_first(lambda: self._set_unnamed_aside(fall_back))
        # Created here, so that all processes raise an error: in Orbax, one creates it and the others would wait.
        processes.on_first(lambda: make_folder(self._directory))
        self._handlers = {"state": ocp.StandardCheckpointHandler(), "progress": ocp.JsonCheckpointHandler()}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_NewestAndBest(),
            best_fn=lambda metrics: metrics["best_step"],  # without it Orbax does not store metrics
            best_mode="max",
            # Not in the background: a folder that cannot be created must fail now, not when a thread times out.
            async_options=ocp.AsyncOptions(
                create_directories_asynchronously=False, post_finalization_callback=self._before_it_gets_its_name
            ),
        )
        # With explicit handlers, the metadata of a checkpoint can be read before restoring it.
        self._manager = _Manager(
            self._directory, options=options, item_names=tuple(self._handlers), item_handlers=self._handlers
        )

    def latest_step(self) -> int | None:
        """Returns the step of the newest finished checkpoint; None if there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Returns the steps of the finished checkpoints, oldest first."""
        return saved_steps(self._directory)

    def set_aside_after(self, step: int) -> None:
        """Renames the (damaged) checkpoints after a step to ``STEP.damaged``."""

        def move() -> None:
            for damaged in (s for s in self.steps() if s > step):
                self._set_aside(damaged)

        processes.on_first(move)
        self._manager.reload()

    def _set_aside(self, step: int) -> None:
        folder = self._directory / str(step)
        shutil.rmtree(f"{folder}.damaged", ignore_errors=True)
        folder.rename(f"{folder}.damaged")

    def _refuse_odd_files(self) -> None:
        """Refuses pipes and devices beside the checkpoints; `check_manifest` refuses those inside a checkpoint."""
        for path in self._directory.iterdir() if self._directory.is_dir() else ():
            try:
                if not path.is_dir():
                    check_regular(path)
            except OSError as error:
                raise UsageError(f"{path} cannot be read ({error.strerror}); remove it") from None

    def _set_unnamed_aside(self, fall_back: bool) -> None:
        """Sets checkpoints aside that do not record which one is best: Orbax cannot open a folder with one of them."""
        steps = self.steps()
        unnamed = [step for step in steps if not _names_the_best(self._directory, step)]
        if unnamed and unnamed[-1] == steps[-1]:
            whole = [step for step in steps if step not in unnamed]
            damage = self._damage(steps[-1], f"--fall_back resumes from step {whole[-1]}" if whole else "")
            if not (fall_back and whole):
                raise damage
            print(f"{damage}; set aside")
        for step in unnamed:
            if step != steps[-1]:
                print(f"checkpoint {self._directory / str(step)} is damaged; set aside")
            self._set_aside(step)

    def _damage(self, step: int, remedy: str = "", reason: str = "its files are damaged") -> DamagedCheckpointError:
        folder = self._directory / str(step)
        return DamagedCheckpointError(
            f"checkpoint {folder} cannot be read: {reason}; {remedy or 'use a new --workdir'}"
        )

    def save(self, state: TrainState, progress: dict[str, object], step: int, best_step: int) -> None:
        """Starts to save a step; does nothing if it is saved already.

        Args:
          state: state after the step.
          progress: `Position` as JSON.
          step: the step.
          best_step: step with the best weights.

        Raises:
          RunFailedError: the disk is full or fails, or an earlier save failed. Finished checkpoints do not change.
        """
        if step == self.latest_step():
            return
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        with _SavingErrors(self):
            self._manager.wait_until_finished()
            self._saving = step
            self._manager.save(step, args=arguments, metrics={"best_step": best_step}, force=True)

    def _before_it_gets_its_name(self) -> None:
        """Checks that the new checkpoint can be opened, and writes its manifest.

        Orbax calls it in its own thread, after all files are in the temporary folder and before its rename.
        """
        if not processes.is_first():
            return
        (written,) = self._directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            if not jax.tree.leaves(handler.metadata(cast("epath.Path", written / "state")).tree):
                raise OSError("what was saved cannot be opened")
        write_manifest(written, self._saving)

    def restore(self, step: int, like: TrainState, remedy: str = "") -> tuple[TrainState, dict[str, object]]:
        """Restores the state and the progress of a step.

        Args:
          step: step of a finished checkpoint.
          like: state with the shapes and shardings to restore onto; its arrays may be abstract.
          remedy: what to do about damage, for the error message; '' = resume from the previous checkpoint, if any.

        Raises:
          DamagedCheckpointError: the files have changed.
          UsageError: the checkpoint does not fit `like`.
          RunFailedError: the system cannot read it now.
        """
        return processes.on_all(lambda: self._read(step, like, remedy))

    def _read(self, step: int, like: TrainState, remedy: str) -> tuple[TrainState, dict[str, object]]:
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        folder = self._directory / str(step)
        earlier = [s for s in self.steps() if s < step]
        if not remedy and earlier:
            remedy = f"--fall_back resumes from step {earlier[-1]}"
        if not folder.is_dir():
            raise self._damage(step, remedy, "it does not exist")
        try:
            check_manifest(folder, "state", "progress")
            # Not by the manager, which would wait for the other processes: one of them may have failed to read.
            handlers = self._handlers
            arrays, progress = (
                cast("epath.Path", place(self._directory, step)) for place in (_state_folder, _progress_folder)
            )
            if _shapes(handlers["state"].metadata(arrays).tree) != _shapes(abstract):
                raise UsageError(f"checkpoint {folder} cannot be read: it is of another model; use a new --workdir")
            state = handlers["state"].restore(arrays, args=ocp.args.StandardRestore(abstract))
            return state, handlers["progress"].restore(progress, args=ocp.args.JsonRestore())
        except (ValueError, KeyError, TypeError, OSError) as error:
            if processes.has_lost_another(error):
                raise
            reason = _passing_reason(error)
            if reason:
                raise RunFailedError(_not_now(folder, reason)) from error
            raise self._damage(step, remedy) from error

    def wait(self) -> None:
        """Waits until all saves are on disk."""
        with _SavingErrors(self):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for all saves and ends Orbax's threads."""
        self.wait()
        with _SavingErrors(self):
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None or not processes.has_lost_another(error):  # a save would wait for the lost process
            self.close()
        if isinstance(error, OSError) and (failed := find_system_error(error)):  # from files other than checkpoints
            raise RunFailedError(describe_system_error(failed, f"; {self._kept()}")) from error

    def _kept(self) -> str:
        steps = self.steps()
        return f"the checkpoint of step {steps[-1]} is kept" if steps else "there is no checkpoint yet"


def _shapes(tree: object) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Returns {path: shape}; dicts equal dataclasses, and lists equal tuples."""

    def names(path: KeyPath) -> tuple[str, ...]:
        return tuple(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)

    return {names(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _passing_reason(error: Exception) -> str:
    """Returns why the system cannot read a file now, and the remedy; '' if the file itself is at fault."""
    if failed := find_system_error(error):
        return describe_system_error(failed)
    remedy = "; remove the cause and start again"
    numbered = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's message
    code = int(numbered[1]) if numbered else getattr(error, "errno", None)
    if isinstance(error, MemoryError):
        return f"there is no memory left{remedy}"
    if code is not None:
        return "" if code in (errno.ENOENT, errno.ENOTDIR) else os.strerror(code) + remedy
    passing = re.match(r"RESOURCE_EXHAUSTED|UNAVAILABLE|PERMISSION_DENIED|DEADLINE_EXCEEDED|ABORTED", str(error))
    return first_line(error)[:200] + remedy if passing else ""


class _SavingErrors:
    """Turns Orbax's errors on writing into one line."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not isinstance(error, Exception):
            return
        if processes.has_lost_another(error):
            raise RunFailedError(processes.LOST) from error
        of = self._checkpoints
        _remove_unfinished(of._directory)
        if of._failure is None:
            failed, kept = find_system_error(error), f"; {of._kept()}"
            if failed:
                failed.filename = None  # a temporary file; the message names the folder
            said = (
                describe_system_error(failed, kept)
                if failed
                else f"{first_line(error)[:200]}{kept}. Start the run again"
            )
            of._failure = RunFailedError(f"cannot save into {of._directory}: {said}")
        raise of._failure from error


def _remove_unfinished(directory: Path) -> None:
    """Removes the remains of a failed save, to free disk space.

    TensorStore's threads may still be writing there, so it tries again for a short time.
    """
    for pause in (0, 0.05, 0.1, 0.2, 0.4, 0.8):
        time.sleep(pause)
        left = list(directory.glob("*.orbax-checkpoint-tmp*")) if directory.is_dir() else []
        if pause and not left:
            return
        for unfinished in left:
            shutil.rmtree(unfinished, ignore_errors=True)
