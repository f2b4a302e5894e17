"""All figures of a run, and the page that shows them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxvit.data.sources import Source, StreamedSource
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.figures import evaluation, maps
from jaxvit.figures.architecture import draw_architecture
from jaxvit.figures.history import draw_history
from jaxvit.figures.images import draw_patches
from jaxvit.figures.predictions import caption, draw_predictions
from jaxvit.figures.shift_animation import draw_shift_animation
from jaxvit.figures.shift_block import draw_shift_block
from jaxvit.figures.token_learner import draw_token_learner
from jaxvit.files import make_writable, write_text
from jaxvit.models import ShiftViT, ViT
from jaxvit.run.folder import read_result
from jaxvit.shown import page, terminal
from jaxvit.trained import introspection
from jaxvit.trained.evaluate import evaluate_source, read_split
from jaxvit.trained.inference import Outcomes
from jaxvit.trained.load import Loaded
from jaxvit.training.journal import read_jsonl

GRID = 30  # images in a grid of predictions
FIELD_IMAGES = 16  # that a receptive field is the mean over


class _ReportedRun:
    """A run, with what several figures need worked out once."""

    def __init__(
        self, loaded: Loaded, folder: Path, split: str, examples: int, data_dir: str, batch_size: int, devices: int
    ):
        self.loaded, self.folder = loaded, folder
        self._split, self._examples, self._data_dir = split, examples, data_dir
        self._batch_size, self._devices = batch_size, devices
        self.name = f"{loaded.config.model.name} on {loaded.config.data.name}"

    @cached_property
    def source(self) -> Source | StreamedSource:
        return read_split(self.loaded, self._split, "", self._data_dir)[1]

    @cached_property
    def evaluation(self) -> tuple[dict[str, Any], Outcomes]:
        return evaluate_source(
            self.loaded, self.source, split=self._split, batch_size=self._batch_size, devices=self._devices
        )

    @cached_property
    def examples(self) -> tuple[np.ndarray, list[str]]:
        """(uint8 images, class names): the first of each class, in the order of the split, then the next of any."""
        _, labels, good = self.source.batch(np.arange(min(len(self.source), 1000)))
        readable = np.flatnonzero(good)
        firsts = readable[np.sort(np.unique(labels[readable], return_index=True)[1])]
        rows = np.concatenate([firsts, np.setdiff1d(readable, firsts)])[: self._examples]
        return self.source.batch(rows)[0], [self.source.class_names[label] for label in labels[rows]]

    @cached_property
    def recorded(self) -> introspection.Recorded:
        return introspection.record(self.loaded, self.examples[0])

    def maps(self, weights_BKN: np.ndarray, names: list[str], file: str, title: str, **settings: Any) -> list[Path]:
        """Draws weights over places, 0..1, as maps over the examples.

        Raises:
          UsageError: the weights are not over the places that the model cuts the image into.
        """
        grid = self.recorded.grid
        if grid is None or math.prod(grid) != weights_BKN.shape[-1]:
            raise UsageError(f"{weights_BKN.shape[-1]} weights, and it is not known where in the image they belong")
        return maps.draw_maps(
            self.loaded.pictures(self.examples[0]),
            weights_BKN.reshape(*weights_BKN.shape[:2], *grid),
            names,
            self.folder / file,
            covered=self.recorded.covered,
            rows=self.examples[1],
            title=title,
            **settings,
        )


def draw_run(
    loaded: Loaded,
    folder: Path,
    *,
    split: str = "",
    examples: int = 6,
    data_dir: str = "",
    batch_size: int = 0,
    devices: int = 0,
) -> Path:
    """Draws every figure that fits the model into a folder; returns the page that shows them.

    A figure that cannot be drawn, because the data is not there or scores are not finite, is left out with a line on
    stderr.

    Args:
      loaded: the run's model.
      folder: made when missing.
      split: whose images, see `jaxvit.evaluate`; '' = test, or where the run has none, validation.
      examples: images in the figures of what the model looks at.
      data_dir: TFDS directory; '' = the run's, else the usual one.
      batch_size: images at a time; 0 = as the run's evaluation.
      devices: how many; 0 = all.

    Raises:
      UsageError: the folder cannot be written.
    """
    make_writable(folder, "copy the run to where you may write")
    reported = _ReportedRun(loaded, folder, split, examples, data_dir, batch_size, devices)
    shown: list[tuple[str, Path]] = []
    missing: dict[str, list[str]] = {}
    for name, (draw, text) in FIGURES.items():
        try:
            files = draw(reported)
        except (UsageError, RunFailedError) as error:  # scores that are not finite: its curves are wanted then
            missing.setdefault(str(error), []).append(name)
            continue
        pictures = [file for file in files if file.suffix in (".png", ".gif")]
        for file in pictures:  # of several layers each is told apart
            layer = f" Here: {file.stem.removeprefix(f'{name}_')}." if len(pictures) > 1 else ""
            shown.append((text + layer, file))
    for reason, names in missing.items():
        print(terminal(f"left out: {', '.join(names)}: {reason}"), file=sys.stderr)
    index = folder / "index.html"
    write_text(index, _page(reported.name, shown))
    return index


def _history(reported: _ReportedRun) -> list[Path]:
    workdir = reported.loaded.workdir
    records = read_jsonl(workdir / "metrics.jsonl")
    if not records:
        return []
    best = 0
    if reported.loaded.config.data.validation and (workdir / "result.json").exists():
        best = read_result(workdir)["best_epoch"]
    smoothing = reported.loaded.config.train.label_smoothing
    return draw_history(records, reported.folder / "history", best, reported.name, smoothing)


def _predictions(reported: _ReportedRun) -> list[Path]:
    rows = np.arange(min(GRID, len(reported.evaluation[1])))
    return _grid(reported, rows, "predictions", f"{reported.name}: the first images of {reported.source.name}")


def _mistakes(reported: _ReportedRun) -> list[Path]:
    outcomes = reported.evaluation[1]
    wrong = np.flatnonzero(outcomes.rank > 0)
    rows = wrong[np.argsort(-outcomes.confidence[wrong], kind="stable")][:GRID]
    return _grid(reported, rows, "mistakes", f"{reported.name}: the most confident mistakes") if len(rows) else []


def _grid(reported: _ReportedRun, rows: np.ndarray, file: str, title: str) -> list[Path]:
    found, outcomes = reported.evaluation
    names = found["class_names"]
    images = reported.source.batch(outcomes.index[rows])[0]
    captions = [
        caption(
            names[outcomes.predicted[row]],
            outcomes.confidence[row],
            bool(outcomes.rank[row] < 1),
            names[outcomes.labels[row]],
        )
        for row in rows
    ]
    return draw_predictions(list(images), captions, reported.folder / file, title)


def _confusion(reported: _ReportedRun) -> list[Path]:
    return evaluation.draw_confusion(reported.evaluation[0], reported.folder / "confusion")


def _calibration(reported: _ReportedRun) -> list[Path]:
    return evaluation.draw_calibration(reported.evaluation[0], reported.folder / "calibration")


def _patches(reported: _ReportedRun) -> list[Path]:
    patch = getattr(reported.loaded.model, "patch", 0)
    if not patch or getattr(reported.loaded.model, "tokenizer", "patch") != "patch":
        return []
    images, names = reported.examples
    return draw_patches(reported.loaded.pictures(images[:1])[0], patch, reported.folder / "patches", names[0])


def _architecture(reported: _ReportedRun) -> list[Path]:
    loaded = reported.loaded
    return draw_architecture(loaded.model, loaded.input_shape, reported.folder / "architecture", reported.name)


def _shift_block(reported: _ReportedRun) -> list[Path]:
    model = reported.loaded.model
    if not isinstance(model, ShiftViT):
        return []
    return draw_shift_block(model, reported.folder / "shift_block", f"{reported.name}: the shift block")


def _shift(reported: _ReportedRun) -> list[Path]:
    model = reported.loaded.model
    if not isinstance(model, ShiftViT) or model.shift == "none":
        return []
    groups = model.divisions if model.groups == "count" else model.dim // model.divisions  # of the first stage
    border = model.shift == "border"
    return [draw_shift_animation(reported.folder / "shift.gif", groups=groups, pixels=model.pixels, border=border)]


def _token_learner(reported: _ReportedRun) -> list[Path]:
    loaded = reported.loaded
    if not isinstance(loaded.model, ViT) or loaded.model.learner == "none":
        return []
    title = f"{reported.name}: TokenLearner"
    return draw_token_learner(loaded.model, loaded.input_shape, reported.folder / "token_learner", title)


def _token_maps(reported: _ReportedRun) -> list[Path]:
    files = []
    for step in (step for step in _steps(reported) if step.kind == "learn"):
        tokens = step.weights.shape[1]
        weights = np.concatenate([step.weights, step.weights.sum(axis=1, keepdims=True)], axis=1)
        weights = _relative(weights)  # the sum lies far above the others
        names = [*(f"token {i + 1}" for i in range(tokens)), "sum"]
        title = f"{reported.name}: where {step.name} looks ({step.weighting})"
        files += reported.maps(
            weights, names, f"token_maps_{step.name}", title, scale="weight, relative to the largest of the map"
        )
    return files


def _token_fuser(reported: _ReportedRun) -> list[Path]:
    files = []
    for step in (step for step in _steps(reported) if step.kind == "fuse"):
        weights = step.weights.swapaxes(1, 2)
        names = [f"token {i + 1}" for i in range(weights.shape[1])]
        title = f"{reported.name}: how much of each token {step.name} gives to each place (0 to 1)"
        files += reported.maps(weights, names, f"token_fuser_{step.name}", title, scale="weight")
    return files


def _pool_weights(reported: _ReportedRun) -> list[Path]:
    recorded = reported.recorded
    if recorded.pool is None or recorded.grid is None or recorded.pool.shape[-1] != np.prod(recorded.grid):
        return []
    return reported.maps(
        _relative(recorded.pool),
        ["weights"],
        "pool_weights",
        f"{reported.name}: the places that the scores are made of",
    )


def _rollout(reported: _ReportedRun) -> list[Path]:
    pool = getattr(reported.loaded.model, "pool", "")
    if not any(step.kind == "attention" for step in _steps(reported)) or reported.recorded.grid is None:
        return []
    try:
        rollout = introspection.attention_rollout(reported.recorded, pool)[:, None]
    except ValueError as error:  # a model of one's own
        raise UsageError(f"attention rollout: {error}") from None
    return reported.maps(_relative(rollout), ["rollout"], "attention_rollout", f"{reported.name}: attention rollout")


def _relative(weights_BKN: np.ndarray) -> np.ndarray:
    """To the largest of each map."""
    return weights_BKN / np.maximum(weights_BKN.max(axis=2, keepdims=True), 1e-12)


def _steps(reported: _ReportedRun) -> tuple[introspection.RecordedStep, ...]:
    return reported.recorded.steps


def _positions(reported: _ReportedRun) -> list[Path]:
    found = introspection.position_similarities(reported.loaded)
    if found is None:
        return []
    similarities, grid = found
    title = f"{reported.name}: similarity of each place's position with all others"
    return maps.draw_positions(similarities, grid, reported.folder / "positions", title)


def _receptive_field(reported: _ReportedRun) -> list[Path]:
    images, _, good = reported.source.batch(np.arange(min(FIELD_IMAGES, len(reported.source))))
    fields = introspection.receptive_fields(reported.loaded, images[good])
    if not fields:
        return []
    title = f"{reported.name}: what the middle of each stage's map sees, mean of {good.sum()} images"
    return maps.draw_receptive_fields(fields, reported.folder / "receptive_field", title)


Draw = Callable[[_ReportedRun], list[Path]]
FIGURES: dict[str, tuple[Draw, str]] = {
    "history": (_history, "Learning curves; the dashed line marks the epoch of the best weights."),
    "predictions": (_predictions, "The first images of the split, under what the model says of them."),
    "mistakes": (_mistakes, "The mistakes that the model is most sure of."),
    "confusion": (_confusion, "Confusion matrix: true classes by row, predicted by column."),
    "calibration": (_calibration, "Is it right as often as it is sure? Bars on the dashed line would be perfect."),
    "patches": (_patches, "An image as the model cuts it."),
    "architecture": (_architecture, "The model, drawn from its modules; the bars show how many tokens there are."),
    "shift_block": (_shift_block, "The shift block: which channels move where, stage by stage."),
    "shift": (_shift, "The shift, group by group of channels."),
    "token_learner": (_token_learner, "How tokens are learned, with this model's sizes."),
    "token_maps": (_token_maps, "TokenLearner: where each learned token looks, and all of them together."),
    "token_fuser": (_token_fuser, "TokenFuser: how the learned tokens are spread over the places again."),
    "pool_weights": (_pool_weights, "Pooling: how much each place counts in the scores."),
    "attention_rollout": (_rollout, "Attention rollout: how much of each place reaches the scores through attention."),
    "positions": (_positions, "Positions: each little map shows how similar one place's position is to all others."),
    "receptive_field": (_receptive_field, "Receptive field: how strongly each pixel moves the middle of each stage."),
}


def _page(title: str, shown: list[tuple[str, Path]]) -> str:
    """A page without scripts; pictures link to their SVG where there is one."""
    parts = []
    for text, file in shown:
        vector = file.with_suffix(".svg")
        target = vector.name if vector.exists() else file.name
        parts.append(
            f'<figure><a href="{page(target)}"><img src="{page(file.name)}" alt="{page(text)}">'
            f"</a><figcaption>{page(text)}</figcaption></figure>"
        )
    style = (
        "body{font-family:sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
        "img{max-width:100%;max-height:90vh}figure{margin:2.5rem 0}figcaption{margin-top:.5rem;color:#444}"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{page(title)}</title>'
        f"<style>{style}</style></head>\n<body><h1>{page(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
