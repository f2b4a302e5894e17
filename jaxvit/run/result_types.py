"""Types of the JSON files of a run folder: result.json and environment.json."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class Metrics(TypedDict):
    """Metrics on the test split. An empty dict if there is no test split.

    `std` and `n` belong to the result of several seeds or folds: sample standard deviations, and the number of runs.
    """

    loss: float
    top1: float
    top5: float
    precision: float
    recall: float
    count: int
    macro_f1: NotRequired[float]
    balanced_accuracy: NotRequired[float]
    std: NotRequired[dict[str, float]]
    n: NotRequired[int]


class Result(TypedDict):
    """The result of a run, or of several seeds or folds, whose own results are then under `seeds` or `folds`.

    `weights` is 'ema' or 'model', `weights_of` 'best', 'last' or, for several runs, 'mixed'.
    """

    test: Metrics
    validation: dict[str, float]
    weights: str
    weights_of: str
    params: int
    steps: int
    best_epoch: int
    stopped_early: bool
    seconds: dict[str, float]
    config_hash: str
    data: NotRequired[dict[str, Split]]
    extensions: NotRequired[list[dict[str, object]]]
    seeds: NotRequired[list[Result]]
    folds: NotRequired[list[Result]]
    seed: NotRequired[int]
    fold: NotRequired[int]


# {'sha256': …, 'split': …, …}: the fingerprint of a split.
Split = dict[str, object]


class Environment(TypedDict):
    """The fingerprints of the splits, and a description of the machine and software of each start."""

    data: dict[str, Split]
    starts: list[dict[str, object]]
