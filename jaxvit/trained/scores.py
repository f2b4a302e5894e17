"""Computes the metrics of `jaxvit evaluate` from the outcomes of a split's images.

Precision, recall, F1 and the confusion matrix come from scikit-learn. Expected calibration error: Guo et al. 2017
(arXiv:1706.04599), section 2, with bins of equal width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from jaxvit.errors import UsageError
from jaxvit.files import check_regular, write_csv
from jaxvit.trained.inference import Outcomes

BINS = 15  # number of confidence bins, as in the paper
_LONGEST_CELL = 4096  # bytes that are read of a file to tell whether it is a table of ours


def score(outcomes: Outcomes, class_names: Sequence[str], *, places: int) -> dict[str, Any]:
    """Computes the metrics of a split.

    Args:
      outcomes: outcomes of its images, at least one.
      class_names: K names.
      places: number of the model's outputs, K or more. Predictions beyond K are wrong; each such output that is
        predicted gets a separate row.

    Returns:
      A dict of JSON values; fractions, not percentages: count, loss, top1, top5 (topk with k = `places` for fewer than
      5 outputs); precision, recall and f1, each {'macro', 'weighted'} over the classes that occur; keras, the
      micro-averaged precision and recall at threshold 1/2 as reported by Keras; ece; calibration, a row per confidence
      bin; per_class, a row per class; confusion [true][predicted]; most_confused, pairs of classes; class_names, the
      names of the rows of per_class and confusion.
    """
    o = outcomes
    names = [*class_names]
    # Outputs beyond the classes are shown only if one of them is predicted.
    used = max(len(names), int(o.predicted.max(initial=0)) + 1)
    names += [f"(no class {i})" for i in range(len(names), used)]
    classes = np.arange(used)
    precision, recall, f1, support = precision_recall_fscore_support(
        o.labels, o.predicted, labels=classes, zero_division=0.0
    )
    occurring = support > 0
    weights = support[occurring] / support.sum()
    confusion = confusion_matrix(o.labels, o.predicted, labels=classes)
    confident = o.confidence > 0.5
    confident_right = int((o.label_probability > 0.5).sum())
    bins = calibration(o)

    def averages(values: np.ndarray) -> dict[str, float]:
        here = values[occurring]
        return {"macro": float(here.mean()), "weighted": float((here * weights).sum())}

    return {
        "count": len(o),
        "loss": float(o.loss.mean()),
        "top1": float((o.rank < 1).mean()),
        "top5": float((o.rank < min(5, places)).mean()),
        "precision": averages(precision),
        "recall": averages(recall),
        "f1": averages(f1),
        "keras": {
            "precision": confident_right / int(confident.sum()) if confident.any() else 0.0,
            "recall": confident_right / len(o),
        },
        "ece": float(sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / len(o)),
        "calibration": bins,
        "per_class": [
            {"name": n, "count": int(c), "precision": float(p), "recall": float(r), "f1": float(f)}
            for n, c, p, r, f in zip(names, support, precision, recall, f1, strict=True)
        ],
        "most_confused": most_confused(confusion, names),
        "confusion": confusion.tolist(),
        "class_names": names,
    }


def calibration(outcomes: Outcomes, bins: int = BINS) -> list[dict[str, Any]]:
    """Returns from, to, count, mean confidence and accuracy of each confidence bin that contains images."""
    # The bins are (a, b], as in the paper: the last one includes a confidence of 1.
    place = np.clip(np.ceil(outcomes.confidence * bins).astype(int) - 1, 0, bins - 1)
    right = outcomes.rank < 1
    return [
        {
            "from": i / bins,
            "to": (i + 1) / bins,
            "count": int(inside.sum()),
            "confidence": float(outcomes.confidence[inside].mean()),
            "accuracy": float(right[inside].mean()),
        }
        for i in range(bins)
        if (inside := place == i).any()
    ]


def most_confused(confusion: np.ndarray, names: Sequence[str], pairs: int = 10) -> list[dict[str, Any]]:
    """Returns the off-diagonal cells with the most images, largest first."""
    wrong = confusion * (1 - np.eye(len(confusion), dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:pairs]
    cells = (np.unravel_index(i, wrong.shape) for i in order)
    return [
        {
            "true": names[true],
            "predicted": names[predicted],
            "count": int(wrong[true, predicted]),
            "share": float(wrong[true, predicted] / confusion[true].sum()),
        }
        for true, predicted in cells
        if wrong[true, predicted]
    ]


def _require_no_other_table(file: Path, columns: Sequence[str]) -> None:
    """Raises UsageError if a file is there whose first line does not begin with the first column."""
    try:
        check_regular(file)
        with file.open("rb") as stream:
            there = stream.readline(_LONGEST_CELL).decode(errors="replace").strip()
    except FileNotFoundError:
        return
    if there and there.split(",")[0] != columns[0]:
        raise UsageError(f"{file} is there already, and is another table; name another folder with --out=DIR")


def write_tables(scores: dict[str, Any], outcomes: Outcomes, file: Path, image_files: Sequence[str] = ()) -> list[Path]:
    """Writes FILE.csv (a row for each class), FILE_confusion.csv and FILE_images.csv (a row for each image).

    Args:
      scores: result of `score`.
      outcomes: outcomes of the images.
      file: path without extension.
      image_files: file of each image of the split, for a column `file`; empty = no such column.

    Returns:
      The paths of the three files.

    Raises:
      UsageError: one of them is there and is another table, by its first column; nothing is written.
    """
    names, per_class = scores["class_names"], scores["per_class"]
    # Class names may occur twice, so rows are sequences instead of dicts.
    matrix = [[name, *row] for name, row in zip(names, scores["confusion"], strict=True)]
    o = outcomes
    of_image = (o.index, o.labels, o.predicted, o.confidence, o.label_probability, o.loss)
    images = [
        [int(i), *image_files[i : i + 1], names[true], names[predicted], *(f"{value:.6g}" for value in values)]
        for i, true, predicted, *values in zip(*of_image, strict=True)
    ]
    named = ["index", *(["file"] if len(image_files) else [])]
    tables = {
        "": (list(per_class[0]), per_class),
        "_confusion": (["true \\ predicted", *names], matrix),
        "_images": ([*named, "true", "predicted", "confidence", "true_class_probability", "loss"], images),
    }
    files = {file.with_name(f"{file.name}{suffix}.csv"): table for suffix, table in tables.items()}
    for target, (columns, _) in files.items():
        _require_no_other_table(target, columns)
    for target, (columns, rows) in files.items():
        write_csv(target, columns, rows)
    return list(files)
