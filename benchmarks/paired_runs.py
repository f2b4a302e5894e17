"""Compares trained models image by image: accuracies, multiply-adds, and paired 95 % intervals of their differences.

    python benchmarks/paired_runs.py OUT vit=runs/vit merge=runs/vit@merge:r=8 new=runs/vit16 --pairs new:vit new:merge
    python benchmarks/paired_runs.py OUT few=runs/elastic@4 alone=runs/learned4 --pairs few:alone
    python benchmarks/paired_runs.py OUT all=runs/elastic "two=runs/elastic@4,16<.3" --pairs two:all

After `@`: a number of learned tokens, a way to reduce tokens, or `A,B<P`, a cascade whose threshold is chosen on
validation for a drop of P points. `benchmarks/fewer_tokens.sh` trains and compares all models of docs/tokens.md.
Of n images, b are right only with the first model and c only with the second: the difference is (b - c) / n, with a
standard error of sqrt(b + c - (b - c)² / n) / n. Writes OUT.json and OUT.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxvit.files import write_text
from jaxvit.models.count import count_macs
from jaxvit.trained.cascade import parse_cascade
from jaxvit.trained.evaluate import evaluate_cascade, evaluate_source, read_split
from jaxvit.trained.load import load


def measure(text: str, split: str) -> tuple[dict[str, Any], np.ndarray]:
    """(row, whether each image is right) of 'RUN' or 'RUN@how'."""
    run, _, how = text.partition("@")
    loaded = load(run)
    name, source = read_split(loaded, split)
    if "<" in how:
        stages, _, drop = how.partition("<")
        cascade = parse_cascade(loaded, stages, 0.0)
        chosen_on = read_split(loaded, "validation")[1]
        found, outcomes = evaluate_cascade(cascade, source, chosen_on, max_drop=float(drop) / 100, split=name)
        macs, note = found["mean_macs"], f"threshold {found['threshold']:.4f}, {found['again']:.1%} asked again"
    else:
        loaded = loaded.with_tokens(int(how)) if how.isdigit() else loaded.reduced(how)
        found, outcomes = evaluate_source(loaded, source, split=name)
        macs, note = count_macs(loaded.model, loaded.input_shape)["all"], getattr(loaded.model, "reduce", "none")
    result = Path(run) / "result.json"
    minutes = json.loads(result.read_text()).get("seconds", {}).get("train", 0.0) / 60 if result.exists() else 0.0
    row = {"model": text, "n": found["count"], "top1": found["top1"], "loss": found["loss"], "macs": macs}
    return {**row, "note": "" if note == "none" else note, "training_minutes": minutes}, outcomes.rank == 0


def paired(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """The difference of the shares of right answers, with its interval."""
    n, gained, lost = len(second), int(np.sum(first & ~second)), int(np.sum(second & ~first))
    difference = (gained - lost) / n
    half = 1.96 * math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return {"difference": difference, "low": difference - half, "high": difference + half}


def page(rows: dict[str, dict[str, Any]], pairs: list[dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    lines = ["| model | images | top-1 | multiply-adds | training, minutes | |", "|---|--:|--:|--:|--:|---|"]
    for name, row in rows.items():
        cells = [name, f"{row['n']:,}", f"{row['top1']:.2%}", f"{row['macs']:,.0f}", f"{row['training_minutes']:.1f}"]
        lines.append(f"| {' | '.join(cells)} | {row['note']} |")
    if pairs:
        lines += ["", "| first | second | difference in points (95 %, paired) | multiply-adds |", "|---|---|--:|--:|"]
    for pair in pairs:
        a, b = pair["first"], pair["second"]
        points = f"{100 * pair['difference']:+.2f} ({100 * pair['low']:+.2f} to {100 * pair['high']:+.2f})"
        lines.append(f"| {a} | {b} | {points} | {rows[a]['macs'] / rows[b]['macs']:.1%} |")
    return "\n".join([*lines, "", datetime.date.today().isoformat(), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="path of the two files, without ending")
    parser.add_argument("models", nargs="+", metavar="NAME=RUN[@HOW]")
    parser.add_argument("--pairs", nargs="*", default=[], metavar="FIRST:SECOND")
    parser.add_argument("--split", default="", help="split to evaluate (default: test)")
    options = parser.parse_args()
    rows, right = {}, {}
    for text in options.models:
        name, _, model = text.partition("=")
        rows[name], right[name] = measure(model, options.split)
        print(name, rows[name], flush=True)
    named = [pair.split(":") for pair in options.pairs]
    pairs = [{"first": a, "second": b, **paired(right[a], right[b])} for a, b in named]
    write_text(options.out.with_suffix(".json"), json.dumps({"models": rows, "pairs": pairs}, indent=1))
    write_text(options.out.with_suffix(".md"), page(rows, pairs))
    print(page(rows, pairs))


if __name__ == "__main__":
    main()
