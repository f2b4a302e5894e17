"""Prints a dry run: the plan, the model's parameters by part, and the learning-rate curve."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import SupportsFloat

import jax
from rich.console import Console
from rich.table import Table

from jaxvit.config.plan_types import Plan
from jaxvit.ops.trees import Params
from jaxvit.shown import rich
from jaxvit.training.muon import count_on_muon
from jaxvit.training.settings import OPTIMIZERS

CURVE_WIDTH, CURVE_HEIGHT = 64, 8
_BLOCKS = " ▁▂▃▄▅▆▇█"


def print_plan(
    plan: Plan,
    params: Params,
    learning_rate: Callable[[int], SupportsFloat],
    console: Console | None = None,
    weights: Sequence[str] = (),
) -> None:
    """Prints a plan, its parameters and its learning rate.

    Args:
      plan: plan of the run.
      params: parameter tree; may be abstract.
      learning_rate: learning rate of a step.
      console: where to print; None = stdout.
      weights: lines on the weights that the run starts from.
    """
    console = console or Console(highlight=False, soft_wrap=True)
    console.print(_plan_table(plan))
    for line in weights:
        console.print(rich(line))
    on_muon = count_on_muon(params, plan.optim) if plan.optim.name == "muon" else None
    console.print(parameter_table(params, on_muon))
    if on_muon is not None:
        numbers, matrices = (sum(counts) for counts in zip(*on_muon.values(), strict=True))
        console.print(f"on Muon: {numbers:,} parameters in {matrices:,} matrices; the rest is on Adam")
    for line in curve([float(learning_rate(step)) for step in _samples(plan.train.steps)], plan.train.steps):
        console.print(rich(line))
    for phrase in plan.warnings:
        console.print(rich(f"warning: {phrase}"))
    for phrase in plan.without_effect:
        console.print(rich(f"without effect: {phrase}"))
    console.print("dry run: nothing was trained")


def _plan_table(plan: Plan) -> Table:
    table = Table(title="Plan", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for section, values in _sections(plan):
        for name, value in values.items():
            table.add_row(f"{section}{name}", rich(_show(value)))
        table.add_section()
    return table


def _sections(plan: Plan) -> list[tuple[str, dict[str, object]]]:
    seeds = {"seeds": str(plan.seeds), "train.seeds": plan.seeds_run} if plan.seeds else {"seed": plan.seed}
    sections: list[tuple[str, dict[str, object]]] = [
        ("", {**seeds, "config hash": plan.config_hash, "model": plan.model.name})
    ]
    sections.append(("model.", dict(plan.model.attributes)))
    for name in ("data", "augment", "init", "train", "optim"):
        part = getattr(plan, name)
        sections.append((f"{name}.", {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}))
    if plan.optim.name in OPTIMIZERS and plan.optim.name != "muon":
        sections[-1] = ("optim.", {k: value for k, value in sections[-1][1].items() if not k.startswith("muon_")})
    return sections


def _show(value: object) -> str:
    if isinstance(value, tuple) and len(value) > 12:
        return f"{', '.join(map(str, value[:10]))}, … ({len(value)})"
    if isinstance(value, tuple):
        return "×".join(map(str, value)) if value and all(isinstance(v, int) for v in value) else str(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def parameter_table(params: Params, on_muon: Mapping[str, tuple[int, int]] | None = None) -> Table:
    """Makes a table of parameters by part of the model, two levels deep; `on_muon` comes from `count_on_muon`."""
    counts: dict[str, list[int]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [str(getattr(part, "key", part)) for part in path]
        part = counts.setdefault("/".join(names[: min(2, len(names) - 1)] or names), [0, 0])
        part[0] += math.prod(leaf.shape)
        part[1] += (on_muon or {}).get("/".join(names), (0, 0))[0]
    columns = 1 if on_muon is None else 2
    table = Table(title="Parameters", title_justify="left")
    table.add_column("part")
    for heading in ("parameters", "on Muon")[:columns]:
        table.add_column(heading, justify="right")
    for part, numbers in counts.items():
        table.add_row(rich(part), *(f"{number:,}" for number in numbers[:columns]))
    table.add_section()
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    table.add_row("total", *(f"{total:,}" for total in totals[:columns]), style="bold")
    return table


def _samples(steps: int) -> list[int]:
    return [round(i * max(steps - 1, 0) / (CURVE_WIDTH - 1)) for i in range(CURVE_WIDTH)]


def curve(values: list[float], steps: int) -> list[str]:
    """Draws a learning-rate curve in block characters; returns its lines, from the top."""
    top = max(values) or 1.0
    lines = ["Learning rate"]
    for row in range(CURVE_HEIGHT - 1, -1, -1):
        cells = [min(max(value / top * CURVE_HEIGHT - row, 0.0), 1.0) for value in values]
        edge = f"{top:>9.2e} ┤" if row == CURVE_HEIGHT - 1 else f"{0:>9} ┤" if row == 0 else f"{'':>9} │"
        lines.append(edge + "".join(_BLOCKS[round(cell * 8)] for cell in cells))
    lines.append(f"{'':>11}step 0{f'step {steps - 1:,}':>{CURVE_WIDTH - 6}}")
    return lines
