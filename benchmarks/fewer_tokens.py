"""Measures a trained model with fewer tokens, without training: accuracy, multiply-adds and speed of the whole curve.

    python benchmarks/fewer_tokens.py runs/vit results/fewer_tokens [--files] [--split=test] [--ways merge:r=8]

Each way (merging r tokens per block for every r; keeping a share of the tokens by attention, by norm and at random) is
evaluated on the same images as the whole model. The interval of a difference in accuracy is paired: of n images, b are
right only with fewer tokens and c only without, so the difference is (b - c) / n with a standard error of
sqrt(b + c - (b - c)² / n) / n. Images per second at batch 128 are measured in turns. With --files, ways at about 70 %
of the multiply-adds are also exported to ONNX, and one image and 32 are timed in jax and in onnxruntime.

Writes OUT.json and OUT.md. Other work on the machine disturbs the times, not the accuracies.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvit.devices import hardware, quiet
from jaxvit.errors import UsageError
from jaxvit.files import write_text
from jaxvit.models.count import count_macs
from jaxvit.speed.timing import spread, stopwatch, time_in_turns
from jaxvit.trained.evaluate import evaluate_source, read_split
from jaxvit.trained.load import Loaded, load

BATCH = 128
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5)


def ways(loaded: Loaded) -> list[str]:
    """All values of r that fit the model, and some shares to keep."""
    found = []
    for r in range(1, 1000):
        try:
            loaded.reduced(f"merge:r={r}")
        except UsageError:
            break
        found.append(f"merge:r={r}")
    by = [f"prune:keep={share}{rule}" for rule in ("", ",by=norm", ",by=random") for share in SHARES]
    for text in by:
        try:
            loaded.reduced(text)
        except UsageError:
            return found
    return found + by


def paired(fewer: np.ndarray, whole: np.ndarray) -> tuple[float, float, float]:
    """(difference of the shares of right answers, lower and upper end of its 95 % interval), by image."""
    n, gained, lost = len(whole), int(np.sum(fewer & ~whole)), int(np.sum(whole & ~fewer))
    difference = (gained - lost) / n
    half = 1.96 * math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return difference, difference - half, difference + half


def measure(loaded: Loaded, split: str, chosen: list[str]) -> list[dict[str, Any]]:
    """Accuracy and multiply-adds of every way, the whole model first."""
    name, source = read_split(loaded, split)
    base, outcomes = evaluate_source(loaded, source, split=name)
    macs = count_macs(loaded.model, loaded.input_shape)["all"]
    rows = [
        {"reduce": "none", "macs": macs, "share": 1.0, "top1": base["top1"], "loss": base["loss"], "n": base["count"]}
    ]
    for text in chosen or ways(loaded):
        fewer = loaded.reduced(text)
        found, others = evaluate_source(fewer, source, split=name)
        difference, low, high = paired(others.rank == 0, outcomes.rank == 0)
        rows.append(
            {
                "reduce": text,
                "macs": found["macs"],
                "share": found["macs"] / macs,
                "top1": found["top1"],
                "loss": found["loss"],
                "n": found["count"],
                "difference": difference,
                "low": low,
                "high": high,
            }
        )
        print(f"{text}: {found['top1']:.2%}, {found['macs'] / macs:.1%} of the multiply-adds", flush=True)
    return rows


def speeds(loaded: Loaded, rows: list[dict[str, Any]], rounds: int, seconds: float) -> None:
    """Adds images per second at batch 128 to the rows of merging."""
    images = np.random.default_rng(0).integers(0, 256, (BATCH, *loaded.image_shape), dtype=np.uint8)

    def repeated(model: Loaded) -> Any:
        def run(count: int) -> None:
            for _ in range(count):
                found = model.logits(images)
            jax.block_until_ready(found)

        return stopwatch(run)

    timed = [row for row in rows if row["reduce"] == "none" or row["reduce"].startswith("merge")]
    models = {row["reduce"]: loaded.reduced("" if row["reduce"] == "none" else row["reduce"]) for row in timed}
    times = time_in_turns({name: repeated(model) for name, model in models.items()}, rounds, seconds)
    whole = float(np.median(times["none"]))
    for row in timed:
        row["ms"] = spread(times[row["reduce"]], 1e3)
        row["images_per_s"] = BATCH / float(np.median(times[row["reduce"]]))
        row["faster"] = whole / float(np.median(times[row["reduce"]]))


def latencies(workdir: str, rows: list[dict[str, Any]], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Measured ms of one image and of 32, in jax and onnxruntime: the whole model, and 70 % of its multiply-adds."""
    from jaxvit.exports.write import export
    from jaxvit.speed.files import measure_files
    from jaxvit.speed.steps import Effort

    loaded, found = load(workdir), []
    for kind in ("none", "merge:macs=.7", "prune:macs=.7"):
        fewer = loaded if kind == "none" else loaded.reduced(kind)
        with tempfile.TemporaryDirectory() as folder:
            files = export(fewer, "onnx", out=folder)
            reduce = "" if kind == "none" else fewer.model.reduce
            for each in measure_files(files, workdir, Effort(rounds, seconds), reduce=reduce):
                macs = count_macs(fewer.model, fewer.input_shape)["all"]
                found.append({"reduce": reduce or "none", "format": each["format"], "macs": macs, **each["batches"]})
    return found


def page(rows: list[dict[str, Any]], files: list[dict[str, Any]], about: str) -> str:
    """The measurements as Markdown."""
    lines = [
        "| tokens | multiply-adds | share | top-1 | difference in points (95 %, paired) | images/s | times as fast |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [f"`{row['reduce']}`", f"{row['macs']:,}", f"{row['share']:.1%}", f"{row['top1']:.2%}"]
        cells.append(
            f"{100 * row['difference']:+.2f} ({100 * row['low']:+.2f} to {100 * row['high']:+.2f})"
            if "difference" in row
            else "–"
        )
        cells += [f"{row['images_per_s']:,.0f}", f"{row['faster']:.2f}"] if "faster" in row else ["–", "–"]
        lines.append(f"| {' | '.join(cells)} |")
    if files:
        lines += ["", "| tokens | runs in | multiply-adds | one image, ms | 32 images, ms |", "|---|---|--:|--:|--:|"]
        lines += [
            f"| `{each['reduce']}` | {each['format']} | {each['macs']:,} | {each['1']:.3g} | {each['32']:.3g} |"
            for each in files
        ]
    return "\n".join([*lines, "", about, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a run of a ViT or CCT")
    parser.add_argument("out", type=Path, help="path of the two files, without ending")
    parser.add_argument("--split", default="", help="split to evaluate (default: test)")
    parser.add_argument(
        "--ways", nargs="*", default=[], help="these only, such as merge:r=8 (default: the whole curve)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each timing")
    parser.add_argument("--seconds", type=float, default=1.0, help="duration of a turn")
    parser.add_argument("--files", action="store_true", help="also time exported files; needs jaxvit[onnx]")
    options = parser.parse_args()
    loaded = load(options.run)
    rows = measure(loaded, options.split, options.ways)
    with quiet.asked():
        speeds(loaded, rows, options.rounds, options.seconds)
        files = latencies(options.run, rows, options.rounds, options.seconds) if options.files else []
    machine = hardware.machine()
    about = (
        f"{rows[0]['n']:,} images; {machine['processor']}, {machine['cores']} cores; jax {jax.__version__}; "
        f"{datetime.date.today().isoformat()}"
    )
    write_text(options.out.with_suffix(".json"), json.dumps({"rows": rows, "files": files, "about": about}, indent=1))
    write_text(options.out.with_suffix(".md"), page(rows, files, about))
    print(page(rows, files, about))


if __name__ == "__main__":
    main()
