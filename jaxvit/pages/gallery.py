"""Draws all figures of a run, and an HTML page that shows them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxvit.data.parts import Source, StreamedSource
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.figures import evaluation, maps
from jaxvit.figures.architecture import draw_architecture
from jaxvit.figures.groups import draw_groups
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
FIELD_IMAGES = 16  # images over which a receptive field is averaged


class _RunFigures:
    """A run and the results that several figures share, each computed once, when it is first needed."""

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
        """(uint8 images, class names): the first image of each class, in split order, then further images."""
        _, labels, good = self.source.batch(np.arange(min(len(self.source), 1000)))
        readable = np.flatnonzero(good)
        firsts = readable[np.sort(np.unique(labels[readable], return_index=True)[1])]
        rows = np.concatenate([firsts, np.setdiff1d(readable, firsts)])[: self._examples]
        return self.source.batch(rows)[0], [self.source.class_names[label] for label in labels[rows]]

    @cached_property
    def recorded(self) -> introspection.Recorded:
        return introspection.record(self.loaded, self.examples[0])

    def maps(self, weights_BKN: np.ndarray, names: list[str], file: str, title: str, **settings: Any) -> list[Path]:
        """Draws weights in [0, 1] over the tokens as maps, overlaid on the example images.

        Raises:
          UsageError: the number of weights is not the number of tokens of the image.
        """
        grid = self.recorded.grid
        if grid is None or math.prod(grid) != weights_BKN.shape[-1]:
            raise UsageError(f"{weights_BKN.shape[-1]} weights, which do not match the model's grid of tokens")
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
    """Draws every figure that applies to the model; returns the HTML page that shows them.

    A figure that cannot be drawn, because the data set is missing or logits are not finite, is skipped with a line on
    stderr.

    Args:
      loaded: the trained model.
      folder: folder to write to; created if missing.
      split: split to evaluate, see `jaxvit.evaluate`; '' = test, or validation if the run has no test split.
      examples: number of images in the figures of what the model looks at.
      data_dir: TFDS directory; '' = the one used in training, else the default.
      batch_size: images in a batch; 0 = as in the run's evaluation.
      devices: number of devices; 0 = all.

    Raises:
      UsageError: the folder cannot be written.
    """
    make_writable(folder, "copy the run to where you may write")
    run = _RunFigures(loaded, folder, split, examples, data_dir, batch_size, devices)
    shown: list[tuple[str, Path]] = []
    missing: dict[str, list[str]] = {}
    for name, (draw, text) in FIGURES.items():
        try:
            files = draw(run)
        except (UsageError, RunFailedError) as error:  # logits not finite: the other figures are still useful
            missing.setdefault(str(error), []).append(name)
            continue
        pictures = [file for file in files if file.suffix in (".png", ".gif")]
        for file in pictures:  # a figure for each of several layers: name the layer
            layer = f" Here: {file.stem.removeprefix(f'{name}_')}." if len(pictures) > 1 else ""
            shown.append((text + layer, file))
    for reason, names in missing.items():
        print(terminal(f"left out: {', '.join(names)}: {reason}"), file=sys.stderr)
    index = folder / "index.html"
    write_text(index, _page(run.name, shown))
    return index


def _history(run: _RunFigures) -> list[Path]:
    workdir = run.loaded.workdir
    records = read_jsonl(workdir / "metrics.jsonl")
    if not records:
        return []
    best = 0
    if run.loaded.config.data.validation and (workdir / "result.json").exists():
        best = read_result(workdir)["best_epoch"]
    smoothing = run.loaded.config.train.label_smoothing
    return draw_history(records, run.folder / "history", best, run.name, smoothing)


def _predictions(run: _RunFigures) -> list[Path]:
    rows = np.arange(min(GRID, len(run.evaluation[1])))
    return _grid(run, rows, "predictions", f"{run.name}: the first images of {run.source.name}")


def _mistakes(run: _RunFigures) -> list[Path]:
    outcomes = run.evaluation[1]
    wrong = np.flatnonzero(outcomes.rank > 0)
    rows = wrong[np.argsort(-outcomes.confidence[wrong], kind="stable")][:GRID]
    return _grid(run, rows, "mistakes", f"{run.name}: the most confident mistakes") if len(rows) else []


def _grid(run: _RunFigures, rows: np.ndarray, file: str, title: str) -> list[Path]:
    found, outcomes = run.evaluation
    names = found["class_names"]
    images, files = run.source.batch(outcomes.index[rows])[0], run.source.files
    captions = [
        caption(
            names[outcomes.predicted[row]],
            outcomes.confidence[row],
            bool(outcomes.rank[row] < 1),
            names[outcomes.labels[row]],
            files[outcomes.index[row]] if files else "",
        )
        for row in rows
    ]
    return draw_predictions(list(images), captions, run.folder / file, title)


def _confusion(run: _RunFigures) -> list[Path]:
    return evaluation.draw_confusion(run.evaluation[0], run.folder / "confusion")


def _calibration(run: _RunFigures) -> list[Path]:
    return evaluation.draw_calibration(run.evaluation[0], run.folder / "calibration")


def _patches(run: _RunFigures) -> list[Path]:
    patch = getattr(run.loaded.model, "patch", 0)
    if not patch or getattr(run.loaded.model, "tokenizer", "patch") != "patch":
        return []
    images, names = run.examples
    return draw_patches(run.loaded.pictures(images[:1])[0], patch, run.folder / "patches", names[0])


def _architecture(run: _RunFigures) -> list[Path]:
    loaded = run.loaded
    return draw_architecture(loaded.model, loaded.input_shape, run.folder / "architecture", run.name)


def _shift_block(run: _RunFigures) -> list[Path]:
    model = run.loaded.model
    if not isinstance(model, ShiftViT):
        return []
    return draw_shift_block(model, run.folder / "shift_block", f"{run.name}: the shift block")


def _shift(run: _RunFigures) -> list[Path]:
    model = run.loaded.model
    if not isinstance(model, ShiftViT) or model.shift == "none":
        return []
    groups = model.divisions if model.groups == "count" else model.dim // model.divisions  # in the first stage
    border = model.shift == "border"
    return [draw_shift_animation(run.folder / "shift.gif", groups=groups, pixels=model.pixels, border=border)]


def _token_learner(run: _RunFigures) -> list[Path]:
    loaded = run.loaded
    if not isinstance(loaded.model, ViT) or loaded.model.learner == "none":
        return []
    title = f"{run.name}: TokenLearner"
    return draw_token_learner(loaded.model, loaded.input_shape, run.folder / "token_learner", title)


def _token_maps(run: _RunFigures) -> list[Path]:
    files = []
    for step in (step for step in _steps(run) if step.kind == "learn"):
        tokens = step.weights.shape[1]
        weights = np.concatenate([step.weights, step.weights.sum(axis=1, keepdims=True)], axis=1)
        weights = _relative(weights)  # the sum is far larger than the single maps
        names = [*(f"token {i + 1}" for i in range(tokens)), "sum"]
        title = f"{run.name}: where {step.name} looks ({step.weighting})"
        files += run.maps(
            weights, names, f"token_maps_{step.name}", title, scale="weight, relative to the largest of the map"
        )
    return files


def _token_fuser(run: _RunFigures) -> list[Path]:
    files = []
    for step in (step for step in _steps(run) if step.kind == "fuse"):
        weights = step.weights.swapaxes(1, 2)
        names = [f"token {i + 1}" for i in range(weights.shape[1])]
        title = f"{run.name}: how much of each token {step.name} adds to each position (0 to 1)"
        files += run.maps(weights, names, f"token_fuser_{step.name}", title, scale="weight")
    return files


def _pool_weights(run: _RunFigures) -> list[Path]:
    recorded = run.recorded
    if recorded.pool is None or recorded.grid is None or recorded.pool.shape[-1] != np.prod(recorded.grid):
        return []
    return run.maps(
        _relative(recorded.pool), ["weights"], "pool_weights", f"{run.name}: weights of the positions in the pooling"
    )


def _rollout(run: _RunFigures) -> list[Path]:
    pool = getattr(run.loaded.model, "pool", "")
    if not any(step.kind == "attention" for step in _steps(run)) or run.recorded.grid is None:
        return []
    try:
        rollout = introspection.attention_rollout(run.recorded, pool)[:, None]
    except ValueError as error:  # a user's model
        raise UsageError(f"attention rollout: {error}") from None
    return run.maps(_relative(rollout), ["rollout"], "attention_rollout", f"{run.name}: attention rollout")


def _merged_tokens(run: _RunFigures) -> list[Path]:
    model, grid = run.loaded.model, run.recorded.grid
    if getattr(model, "reduce", "none") == "none" or grid is None:
        return []
    places = introspection.merged_places(run.loaded, run.examples[0])
    places = {name: found for name, found in places.items() if found.shape[1] == math.prod(grid)}
    if not places:
        return []
    return draw_groups(
        run.loaded.pictures(run.examples[0]),
        np.stack([*places.values()], axis=1),
        grid,
        [*places],
        run.folder / "merged_tokens",
        covered=run.recorded.covered,
        rows=run.examples[1],
        title=f"{run.name}: {model.reduce}",
    )


def _relative(weights_BKN: np.ndarray) -> np.ndarray:
    """Scales each map to a maximum of 1."""
    return weights_BKN / np.maximum(weights_BKN.max(axis=2, keepdims=True), 1e-12)


def _steps(run: _RunFigures) -> tuple[introspection.Step, ...]:
    return run.recorded.steps


def _positions(run: _RunFigures) -> list[Path]:
    found = introspection.position_similarities(run.loaded)
    if found is None:
        return []
    similarities, grid = found
    title = f"{run.name}: similarity of each position embedding to all others"
    return maps.draw_positions(similarities, grid, run.folder / "positions", title)


def _receptive_field(run: _RunFigures) -> list[Path]:
    images, _, good = run.source.batch(np.arange(min(FIELD_IMAGES, len(run.source))))
    fields = introspection.receptive_fields(run.loaded, images[good])
    if not fields:
        return []
    title = f"{run.name}: receptive field of the centre of each stage, mean of {good.sum()} images"
    return maps.draw_receptive_fields(fields, run.folder / "receptive_field", title)


Draw = Callable[[_RunFigures], list[Path]]
FIGURES: dict[str, tuple[Draw, str]] = {
    "history": (_history, "Learning curves; the dashed line marks the epoch of the best weights."),
    "predictions": (_predictions, "The first images of the split, with the model's predictions."),
    "mistakes": (_mistakes, "The most confident mistakes."),
    "confusion": (_confusion, "Confusion matrix: true classes by row, predicted by column."),
    "calibration": (
        _calibration,
        "Calibration: accuracy against confidence. Bars that end on the dashed line are perfectly calibrated.",
    ),
    "patches": (_patches, "An image cut into patches."),
    "architecture": (_architecture, "Architecture of the model; the bars show the number of tokens."),
    "shift_block": (_shift_block, "The shift block: which channels shift where, for each stage."),
    "shift": (_shift, "The shift of each group of channels, animated."),
    "token_learner": (_token_learner, "TokenLearner (and TokenFuser, if used) with this model's sizes."),
    "token_maps": (_token_maps, "TokenLearner: the attention map of each learned token, and their sum."),
    "token_fuser": (_token_fuser, "TokenFuser: how the learned tokens are mapped back to the positions."),
    "pool_weights": (_pool_weights, "Pooling: the weight of each position."),
    "attention_rollout": (
        _rollout,
        "Attention rollout: how much of each position reaches the logits through attention.",
    ),
    "merged_tokens": (
        _merged_tokens,
        "Patches that were merged to one token have one colour; patches that were removed are black.",
    ),
    "positions": (
        _positions,
        "Position embeddings: each small map shows the similarity of one position to all others.",
    ),
    "receptive_field": (
        _receptive_field,
        "Receptive field: how strongly each pixel influences the centre of each stage's feature map.",
    ),
}


def _page(title: str, shown: list[tuple[str, Path]]) -> str:
    """An HTML page without scripts; each image links to its SVG if there is one."""
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
