"""What a row's runs took, against the row with the document's recipe: multiply-adds, images and updates."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxvit.errors import UsageError
from jaxvit.reproduce.rows import Row
from jaxvit.reproduce.table import newest
from jaxvit.training.journal import read_jsonl

_MORE = 1.005  # ratios from here on are shown: less is printed as 1.00


@dataclass(frozen=True)
class Effort:
    """What one run took.

    Attributes:
      multiply_adds: of one image's forward pass.
      images: trained on, each as often as it was seen.
      updates: of the parameters.
    """

    multiply_adds: float
    images: float
    updates: float


def efforts_of(lines: Sequence[Mapping[str, str]], results: Path) -> dict[str, Effort]:
    """{name in results/metrics: effort} of the runs that have metrics there; of damaged ones none."""
    found = {}
    for line in lines:
        if not line["metrics"]:
            continue
        try:
            epochs = [one for one in read_jsonl(results / "metrics" / line["metrics"]) if one["split"] == "train"]
            if epochs:
                images = sum(one["count"] for one in epochs)
                found[line["metrics"]] = Effort(float(line["multiply_adds"]), images, epochs[-1]["step"])
        except (UsageError, KeyError, TypeError) as error:
            print(f"without its images and updates: metrics/{line['metrics']}: {error}", flush=True)
    return found


def told_effort(
    row: Row,
    runs: Sequence[dict[str, str]],
    lines: Sequence[dict[str, str]],
    document_row: Row,
    form: str,
    efforts: Mapping[str, Effort],
) -> str:
    """A sentence on what `runs` of a row took, where that is more than the document's row took; else ''.

    The ratios are of means over runs of the same form. All are told where one of them is above 1.
    """
    others = newest(lines, document_row, form)
    mine = [efforts[run["metrics"]] for run in runs if run["metrics"] in efforts]
    theirs = [efforts[run["metrics"]] for run in others if run["metrics"] in efforts]
    if not mine:
        return ""
    if not theirs:
        return f"multiply-adds, images and updates are not compared with {document_row.name}, which was not run so"

    def ratio(name: str) -> float:
        return statistics.fmean(getattr(e, name) for e in mine) / statistics.fmean(getattr(e, name) for e in theirs)

    counted, images, updates = map(ratio, ("multiply_adds", "images", "updates"))
    if max(counted, images, updates) < _MORE:
        return ""
    return (
        f"it takes {counted:.2f} times the multiply-adds an image, {images:.2f} times the images and "
        f"{updates:.2f} times the updates of {document_row.name}: {counted * images:.2f} times its multiply-adds in all"
    )
