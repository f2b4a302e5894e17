"""Cross-validation: one run for each fold, and their mean and standard deviation.

The folder ``fold_K`` is the same as that of a single run with ``data.fold=K``. The runs are trained one after another.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from ml_collections import ConfigDict

from jaxvit.config.keys import set_value
from jaxvit.config.plan_types import Plan
from jaxvit.config.reader import ConfigReader
from jaxvit.data.dataset import Dataset
from jaxvit.devices import processes
from jaxvit.errors import RunFailedError
from jaxvit.run.assembly import Assembly
from jaxvit.run.execution import execute
from jaxvit.run.folder import RunDirectory, checkpoint_folder, finished_result
from jaxvit.run.messages import print_result
from jaxvit.run.program import StartOptions
from jaxvit.run.result_types import Result
from jaxvit.run.seeds import combine, open_run
from jaxvit.training.checkpoint import saved_steps
from jaxvit.training.stopping import StopRequest


def config_of_fold(config: ConfigDict, fold: int) -> ConfigDict:
    """Returns the config of the single run with one of the folds as its test split."""
    config = copy.deepcopy(config)
    set_value(config, "data.fold", fold)
    return config


def train_folds(
    run: RunDirectory,
    prepare: Callable[[ConfigDict], tuple[Dataset, Plan, Assembly]],
    options: StartOptions,
    stop: StopRequest,
) -> Result:
    """Trains one run per fold, writes their combined result and returns it.

    Args:
      run: open folder of the run of all folds, which contains the folders of the folds.
      prepare: makes data set, plan and parts of a fold's run from its config.
      options: options of this start.
      stop: request to stop or pause.
    """
    folds = ConfigReader(run.config)("data.folds", int)
    folders = [run.path / f"fold_{fold}" for fold in range(folds)]
    run.note_extension(max(max(saved_steps(checkpoint_folder(folder)), default=0) for folder in folders))
    results: dict[int, Result] = {}
    for fold, folder in enumerate(folders):
        print(f"fold {fold} ({fold + 1} of {folds})", flush=True)
        config = config_of_fold(run.config, fold)
        finished = processes.broadcast_from_first(lambda config=config, folder=folder: finished_result(folder, config))
        if finished is None:
            dataset, plan, assembly = processes.on_all(lambda config=config: prepare(config))
            with open_run(folder, config) as single:
                try:
                    finished = execute(single, plan, assembly, dataset, options, stop, whole=run)
                except RunFailedError as error:
                    raise RunFailedError(f"fold {fold}: {error}") from error
        results[fold] = finished
    result = combine(results, run, of="fold")
    processes.on_first(lambda: run.write_result(result))
    print_result(result, run.path)
    return result
