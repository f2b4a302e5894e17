"""Hooks: the user's own functions, called at the end of each epoch with the state and the epoch's metrics.

A hook is ``function(state, metrics)``. All hooks are called after the epoch's evaluation and before its checkpoint, in
the order of ``config.train.hooks``, in every process of a run, and separately for each of several seeds that train
together.

- `state` is the `jaxvit.training.state.TrainState` on the devices: ``state.params``, ``state.ema``, ``state.step``. The
  next training step donates its arrays, so a hook must copy what it keeps: ``jax.device_get(state.params)``. A hook
  cannot change the state of the run.
- `metrics` is a dict: ``step``; ``epoch``, counted from 1; ``train``, ``validation`` and ``validation_ema``, each a
  dict like a line of metrics.jsonl, or empty; ``learning_rate`` of the last step; ``is_best`` and ``best_epoch`` by
  validation; ``seed``; ``workdir``, the run folder.
- A hook returns None or False to continue, and True or a reason (str) to end the training like early stopping: the
  state is saved and the test follows.

If a hook raises, the state is saved and the run ends. The same command calls all hooks for this epoch again and
continues. After a kill, training resumes from the last checkpoint. So a hook is called at least once per epoch, not
exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxvit import own_code
from jaxvit.devices import processes
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.training.state import TrainState


def check_hooks(names: tuple[object, ...]) -> tuple[str, ...]:
    """Returns the names if each is the name of a function with two parameters.

    Raises:
      UsageError: a name is not.
    """
    checked: list[str] = []
    for name in names:
        if not isinstance(name, str) or ":" not in name:
            raise UsageError(
                f"config.train.hooks={names}: {name!r} names no function; write ('package.module:function',), with the "
                "comma"
            )
        function = own_code.load_function(name, "train.hooks")
        if not own_code.takes(function, None, None):
            found = own_code.parameter_names(function)
            raise UsageError(f"config.train.hooks='{name}': must take (state, metrics); it takes {found}")
        checked.append(name)
    return tuple(checked)


class Hooks:
    """The hooks of one run.

    Args:
      names: names of the functions, checked by `check_hooks`.
      seed: seed of the run, for the metrics.
      workdir: folder of the run, for the metrics.
    """

    def __init__(self, names: tuple[str, ...], *, seed: int, workdir: Path):
        self._functions = {name: own_code.load_function(name, "train.hooks") for name in names}
        self._facts = {"seed": seed, "workdir": str(workdir)}

    def __bool__(self) -> bool:
        return bool(self._functions)

    def __call__(self, state: TrainState, metrics: Mapping[str, object]) -> str:
        """Calls all, in every process of the run; returns why the training shall end, '' to go on.

        Raises:
          RunFailedError: one of them failed, in one of the processes: in all of them.
        """
        said = processes.gather_strings(lambda: "; ".join(filter(None, self._reasons(state, metrics))))
        return next(filter(None, said), "")

    def _reasons(self, state: TrainState, metrics: Mapping[str, object]) -> list[str]:
        reasons = []
        for name, function in self._functions.items():
            try:
                answer = function(state, {**metrics, **self._facts})
            except (Exception, SystemExit) as error:  # user code may raise anything
                raise _failure(name, metrics, f"fails: {own_code.explain(error)}") from error
            if answer is not None and not isinstance(answer, bool | np.bool_ | str):
                kind = type(answer).__name__
                raise _failure(name, metrics, f"returns a {kind}; it must return nothing, True or a reason (str)")
            if answer:
                reasons.append(f"hook {name}" + (f": {' '.join(answer.split())}" if isinstance(answer, str) else ""))
        return reasons


def _failure(name: str, metrics: Mapping[str, object], what: str) -> RunFailedError:
    return RunFailedError(
        f"config.train.hooks: '{name}' at the end of epoch {metrics['epoch']:g} (step {metrics['step']:,}) {what}; the "
        "state is saved: mend the hook, and the same command calls it again and resumes"
    )
