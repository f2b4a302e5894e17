"""Measures exported files, and the original model for comparison: `jaxvit benchmark --file=…`."""

from __future__ import annotations

import contextlib
import math
import runpy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvit.errors import RunFailedError, UsageError, first_line
from jaxvit.exports.formats import format_of
from jaxvit.exports.model import ExportModel
from jaxvit.shown import markdown
from jaxvit.speed.steps import Effort
from jaxvit.speed.timing import Runner, spread, stopwatch, time_in_turns
from jaxvit.trained.load import load

BATCHES = (1, 32)
ORIGINAL = "jitted original"
_MOST_PIXELS = 2**24  # values in one image, over all channels


def measure_files(
    files: Sequence[Path], workdir: str, effort: Effort, *, own_code: bool = False, reduce: str = ""
) -> list[dict[str, Any]]:
    """Measures the latency of exported files, waiting for each batch. Files take turns in this process.

    Args:
      files: files written by `jaxvit export`.
      workdir: the run they were exported from, timed for comparison; '' = none.
      effort: how long to measure.
      own_code: as in `jaxvit.load`.
      reduce: how the run's model merges or removes tokens; see `jaxvit.trained.load.Loaded.reduced`.

    Returns:
      A dict for each file, the original model first: file, format, batches {batch: ms}, spread {batch: median,
      quartiles, count}; and with `workdir`, ratios {batch: ms divided by the original's ms}.

    Raises:
      UsageError: a file does not exist or has no known format, or the package that runs it is not installed.
      RunFailedError: a file does not run.
    """
    runs: dict[str, tuple[str, Callable[[np.ndarray], Any]]] = {}
    shape: tuple[int, ...] | None = None
    if workdir:
        loaded = load(workdir, own_code=own_code).reduced(reduce)
        shape = loaded.image_shape
        runs[ORIGINAL] = ("jax", ExportModel.of(loaded, "float32").compiled())
    for path in files:
        kind = format_of(path)
        kind.check()
        words = {"own_code": own_code} if kind.name == "hub" else {}
        with _explained(path):
            call, facts = runpy.run_path(str(kind.loader))["load"](str(path), **words)
            its_shape = tuple(int(side) for side in facts["image_shape"])
            if len(its_shape) != 3 or not 0 < math.prod(its_shape) <= _MOST_PIXELS:
                raise ValueError(f"image_shape {its_shape}")
        if shape and its_shape != shape:
            raise UsageError(
                f"{path} takes images of {list(its_shape)}, the file before it {list(shape)}: measure them separately"
            )
        shape = its_shape
        runs[str(path)] = (kind.name, call)
    rng = np.random.default_rng(0)
    images = {batch: rng.integers(0, 256, (batch, *(shape or ())), dtype=np.uint8) for batch in BATCHES}
    for name, (_, call) in runs.items():
        with _explained(Path(name)):
            for batch in BATCHES:
                call(images[batch])
    things: dict[str, Runner] = {
        f"{name} {batch}": stopwatch(_repeated(call, images[batch]))
        for name, (_, call) in runs.items()
        for batch in BATCHES
    }
    times = time_in_turns(things, effort.rounds, effort.seconds)
    found = []
    for name, (kind_name, _) in runs.items():
        spreads = {str(batch): spread(times[f"{name} {batch}"], 1e3) for batch in BATCHES}
        medians = {batch: value["median"] for batch, value in spreads.items()}
        found.append({"file": name, "format": kind_name, "batches": medians, "spread": spreads})
    if workdir:
        first = found[0]["batches"]
        for each in found:
            each["ratios"] = {batch: round(ms / first[batch], 3) for batch, ms in each["batches"].items()}
    return found


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns any error that a library raises for a file into a one-line message."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)[:200]}"
        raise RunFailedError(f"{path} cannot be run ({reason}); export it again") from error


def _repeated(call: Callable[[np.ndarray], Any], images: np.ndarray) -> Callable[[int], None]:
    def run(count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(call(images))  # no-op for NumPy arrays, which other runtimes return

    return run


def table(found: Sequence[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| file | format | " + " | ".join(f"batch {b}, ms (quartiles)" for b in BATCHES) + " | against the original |"
    ]
    lines.append(f"|---|---|{'---|' * len(BATCHES)}---|")
    for each in found:
        cells = [f"{s['median']:.4g} ({s['q1']:.4g}–{s['q3']:.4g})" for s in each["spread"].values()]
        ratios = ", ".join(f"{ratio:.2f}" for ratio in each.get("ratios", {}).values()) or "–"
        lines.append(f"| {markdown(each['file'])} | {each['format']} | {' | '.join(cells)} | {ratios} |")
    return "\n".join(lines) + "\n"


def page(found: Sequence[dict[str, Any]], circumstances: Mapping[str, Any]) -> str:
    """The table with machine, versions and date below it."""
    about = circumstances["machine"]
    where = f"{about['processor']}, {about['cores']} cores, {about['memory']}; {about['system']}"
    of = ", ".join(f"{name} {version}" for name, version in circumstances["versions"].items())
    return f"{table(found)}\n{where}; {of}; {circumstances['date']}\n"
