"""Writers for experiment trackers, Weights & Biases and MLflow; each is a `Writer` of `jaxvit.training.journal`.

A failing tracker never ends the training. `reach_trackers` checks the connection before the run folder is created.
Later, records that the tracker does not accept are kept and sent again with the next record. metrics.jsonl always has
all records.

The run folder stores the id of the tracker's run, so that a resumed run adds to the same one.
"""

from __future__ import annotations

import abc
import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias, cast

from jaxvit.errors import StoppedError, UsageError, first_line
from jaxvit.files import read_regular, write_text
from jaxvit.shown import terminal

Record: TypeAlias = "Mapping[str, float | str | None]"  # as `jaxvit.training.journal.Record`

TRACKERS = ("wandb", "mlflow")
_OFFLINE = ("offline", "dryrun", "disabled")
# By default, MLflow waits ten minutes for a missing server. Values that the user has set are kept.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
_PARAMS_AT_ONCE = 100
_LONGEST_KEY = 250


def reach_trackers(names: Iterable[str], workdir: Path) -> None:
    """Checks that the trackers among `names` can be reached.

    Args:
      names: writers from ``config.log.writers``, checked by `check_writers`.
      workdir: folder of the run; may not exist yet.

    Raises:
      UsageError: no user is logged in, the server cannot be reached, or it does not know the run to resume.
    """
    for name in names:
        if name == "wandb":
            with _one_line(name, "`wandb login` logs in, WANDB_MODE=offline keeps all of it here"):
                _reach_wandb()
        if name == "mlflow":
            remedy = "MLFLOW_TRACKING_URI says where the server or database is, such as sqlite:///mlflow.db"
            with _one_line(name, remedy), _quiet():
                _reach_mlflow(_stored_id(workdir, name))


@contextlib.contextmanager
def _one_line(name: str, remedy: str) -> Iterator[None]:
    """Turns any exception of a tracker's library into one line."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)[:300]}"
        raise UsageError(
            f"config.log.writers: '{name}' cannot be used ({reason}); {remedy}; or leave it out"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the dozens of log lines that MLflow prints when it prepares a new database."""
    import logging

    before = logging.root.manager.disable
    if not os.environ.get("JAXVIT_VERBOSE"):
        logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _reach_wandb() -> None:
    os.environ.setdefault("WANDB_SILENT", "true")  # this module prints the location of the run
    import wandb  # pyright: ignore[reportMissingImports]  (optional)

    mode = os.environ.get("WANDB_MODE", "")
    settings = wandb.setup().settings
    if mode in _OFFLINE or getattr(settings, "mode", "") in _OFFLINE:
        return
    # On a terminal, it asks for the key.
    if not wandb.login(verify=True):
        raise UsageError(
            "config.log.writers: 'wandb': nobody is logged in; `wandb login` logs in, WANDB_MODE=offline keeps all of "
            "it here; or leave it out"
        )


def _reach_mlflow(run_id: str) -> None:
    for variable, value in _PATIENCE.items():
        os.environ.setdefault(variable, value)
    import mlflow  # pyright: ignore[reportMissingImports]  (optional)

    client = mlflow.MlflowClient()
    if run_id:
        client.get_run(run_id)
    else:
        client.search_experiments(max_results=1)


def _stored_id(workdir: Path, name: str) -> str:
    """Returns the id of the tracker's run from an earlier start; '' if there is none."""
    file = workdir / f"{name}_run_id"
    if not file.exists():
        return ""
    try:
        return read_regular(file, 1000).decode().strip()
    except (OSError, ValueError) as error:  # a pipe, another text
        reason = getattr(error, "strerror", None) or "it contains no id"
        raise UsageError(f"{file} cannot be read ({reason}); delete it, and a new run of {name} begins") from None


class Tracker(abc.ABC):
    """Base class of both trackers: keeps records until the tracker accepts them.

    Args:
      name: 'wandb' or 'mlflow'.
      directory: folder of the run.
    """

    def __init__(self, name: str, directory: Path):
        self._name, self._directory = name, directory
        self._waiting: list[Record] = []
        self._told = False

    def _keep_id(self, run_id: str, where: str) -> None:
        write_text(self._directory / f"{self._name}_run_id", run_id)
        where = re.sub(r"//[^@/]*@", "//", where)  # an address of a database may have a password
        print(terminal(f"{self._name}: {where}"), flush=True)

    @abc.abstractmethod
    def _send(self, step: int, values: dict[str, float]) -> None: ...

    @abc.abstractmethod
    def _end(self, error: BaseException | None) -> None: ...

    def write(self, record: Record) -> None:
        """Sends a record, after those that were not accepted earlier."""
        self._waiting.append(record)
        try:
            while self._waiting:
                first = self._waiting[0]
                numbers = {k: v for k, v in first.items() if k not in ("step", "split") and isinstance(v, int | float)}
                self._send(
                    cast(int, first["step"]), {f"{first['split']}/{name}": value for name, value in numbers.items()}
                )
                del self._waiting[0]
        except Exception as error:
            self._tell(f"metrics of step {first['step']} are not taken", error)

    def flush(self) -> None:
        """Does nothing: the trackers send in the background."""
        return None

    def close(self) -> None:
        """Ends the tracker's run; during an exception, as failed or stopped."""
        try:
            self._end(sys.exc_info()[1])
        except Exception as error:
            self._tell("its run is not closed", error)
        if self._waiting:
            told = f"{len(self._waiting)} records, from step {self._waiting[0]['step']} on, are in metrics.jsonl only"
            print(f"warning: {self._name}: {told}", file=sys.stderr, flush=True)

    def _tell(self, what: str, error: Exception) -> None:
        """Prints the first failure only: a server may be down for an hour."""
        if not self._told:
            self._told = True
            reason = f"{type(error).__name__}: {first_line(error)[:200]}"
            said = f"warning: {self._name}: {what} ({reason}); the training goes on"
            print(terminal(said), file=sys.stderr, flush=True)


class WeightsAndBiases(Tracker):
    """A run of the installed `wandb`; its own environment variables (WANDB_PROJECT, WANDB_MODE) apply."""

    def __init__(self, directory: Path, name: str, config: Mapping[str, object]):
        super().__init__("wandb", directory)
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb  # pyright: ignore[reportMissingImports]  (optional)

        previous = _stored_id(directory, "wandb") or None
        with _one_line("wandb", "WANDB_MODE=offline keeps all of it here"):
            self._run = wandb.init(
                dir=str(directory), id=previous, name=name, resume="allow", config=dict(config), allow_val_change=True
            )
        self._keep_id(self._run.id, getattr(self._run, "url", None) or f"offline, in {self._run.dir}")
        # A step can have two records, for training and evaluation; W&B's own step counter cannot repeat.
        self._run.define_metric("*", step_metric="step")

    def _send(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def _end(self, error: BaseException | None) -> None:
        self._run.finish(exit_code=0 if error is None else 1)


class MLflow(Tracker):
    """A run of the installed `mlflow`; its own environment variables (MLFLOW_TRACKING_URI, …) apply.

    The config's keys become parameters, which cannot change; keys that a later start has changed become tags.
    """

    def __init__(self, directory: Path, name: str, config: Mapping[str, object]):
        super().__init__("mlflow", directory)
        for variable, value in _PATIENCE.items():
            os.environ.setdefault(variable, value)
        import mlflow  # pyright: ignore[reportMissingImports]  (optional)

        self._mlflow = mlflow
        previous = _stored_id(directory, "mlflow") or None
        with _one_line("mlflow", "look at MLFLOW_TRACKING_URI"), _quiet():
            run = mlflow.start_run(run_id=previous, run_name=None if previous else name)
            self._keep_id(run.info.run_id, f"run {run.info.run_id} in {mlflow.get_tracking_uri()}")
            self._describe(run.data.params, config)

    def _describe(self, there: Mapping[str, str], config: Mapping[str, object]) -> None:
        longest = getattr(self._mlflow.utils.validation, "MAX_PARAM_VAL_LENGTH", 500)
        params = {key[:_LONGEST_KEY]: _cut(str(value), longest) for key, value in _flat(config)}
        new = [(key, value) for key, value in params.items() if key not in there]
        for start in range(0, len(new), _PARAMS_AT_ONCE):
            self._mlflow.log_params(dict(new[start : start + _PARAMS_AT_ONCE]))
        changed = {
            f"config.{key}"[:_LONGEST_KEY]: value for key, value in params.items() if there.get(key, value) != value
        }
        if changed:
            self._mlflow.set_tags(changed)

    def _send(self, step: int, values: dict[str, float]) -> None:
        self._mlflow.log_metrics(values, step=step)

    def _end(self, error: BaseException | None) -> None:
        stopped = isinstance(error, StoppedError | KeyboardInterrupt)
        self._mlflow.end_run("FINISHED" if error is None else "KILLED" if stopped else "FAILED")


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _flat(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
