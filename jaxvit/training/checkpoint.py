"""Checkpoints: the newest two and the best, through Orbax, each a folder named by its step.

Which one is best stands in the newest checkpoint, so that both move in one atomic rename: whatever instant a run is
killed at, the newest finished checkpoint and the best that it names are there. (Orbax's own keep-the-best option
deletes the newest one when it is not among the best, and a run could then not continue.) The last but one is kept, with
the best that it names, for the day when the newest turns out to be damaged.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxvit.errors import RunFailedError, UsageError
from jaxvit.training.state import TrainState


class _NewestAndBest:
    """Orbax preservation policy: the newest two checkpoints, and those that they name as the best."""

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        kept = {info.step for info in checkpoints[-2:]}
        kept |= {(info.metrics or {}).get("best_step", -1) for info in checkpoints[-2:]}
        return [info.step in kept for info in checkpoints]


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: made when missing. Saving is asynchronous; `wait` or `close` finishes it.
    """

    def __init__(self, directory: Path):
        self._directory = directory.absolute()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_NewestAndBest(),
            best_fn=lambda metrics: metrics["best_step"],  # without it Orbax does not store metrics
            best_mode="max",
            # Made at once: a folder that cannot be made must fail now, not when a background thread gives up waiting.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options, item_names=("state", "progress"))

    def latest_step(self) -> int | None:
        """Step of the newest finished checkpoint."""
        return self._manager.latest_step()

    def discard_newest(self) -> int | None:
        """Moves a damaged newest checkpoint out of the way, to ``STEP.damaged``; returns the newest that is left."""
        newest = self._manager.latest_step()
        folder = self._directory / str(newest)
        shutil.rmtree(f"{folder}.damaged", ignore_errors=True)
        folder.rename(f"{folder}.damaged")
        self._manager.reload()
        return self.latest_step()

    def save(self, state: TrainState, progress: dict[str, Any], step: int, best_step: int) -> None:
        """Starts to save; nothing happens when this step is saved already.

        Raises:
          RunFailedError: the disk is full, or an earlier save failed. Finished checkpoints are untouched.
        """
        if step == self.latest_step():
            return
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress))
        with _SavingErrors(self):
            self._manager.save(step, args=arguments, metrics={"best_step": best_step}, force=True)

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and the progress of a step, onto the shapes and shardings of `like` (arrays, real or abstract).

        Raises:
          UsageError: it does not fit `like`, or its files are damaged.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=arguments)
        except Exception as error:
            other = "Structure mismatch" in str(error) or "not compatible with the stored shape" in str(error)
            reason = "it is of another model" if other else "its files are damaged"
            earlier = [s for s in self._on_disk() if s < step]
            remedy = f"--fall_back goes on from step {earlier[-1]}" if earlier and not other else "use a new --workdir"
            raise UsageError(f"checkpoint {self._directory / str(step)} cannot be read: {reason}; {remedy}") from error
        return restored.state, restored.progress

    def _on_disk(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first: an unfinished one has another name."""
        return sorted(int(p.name) for p in self._directory.iterdir() if p.name.isdigit())

    def wait(self) -> None:
        """Returns when everything saved so far is on disk."""
        with _SavingErrors(self):
            self._manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._manager.close()


class _SavingErrors:
    """Turns what Orbax raises when it cannot write into one line."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception):
            return
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        reason = "the disk is full" if full else str(error).splitlines()[0][:200]
        directory = self._checkpoints._directory
        for unfinished in directory.glob("*.orbax-checkpoint-tmp*") if directory.is_dir() else ():
            shutil.rmtree(unfinished, ignore_errors=True)  # it takes up the room that is missing
        steps = self._checkpoints._on_disk() if directory.is_dir() else []
        state = f"the checkpoint of step {steps[-1]} is kept" if steps else "there is no checkpoint yet"
        raise RunFailedError(
            f"cannot save into {directory}: {reason}; {state}. Make room and start the run again"
        ) from error
