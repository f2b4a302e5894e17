"""`jaxvit summary`: shows modules, shapes, parameters, tokens and multiply-adds of a model, without running it."""

import json
from pathlib import Path
from typing import Any

from flax import linen as nn
from rich.table import Table

from jaxvit import own_code
from jaxvit.cli import command_line
from jaxvit.config.key_table import RENAMED
from jaxvit.config.keys import base_config
from jaxvit.config.overrides import parse_model_overrides
from jaxvit.errors import UsageError, first_line
from jaxvit.files import local_path
from jaxvit.models.registry import create_model, input_shape, list_models
from jaxvit.models.summarize import summarize
from jaxvit.pages.terminal import print_table
from jaxvit.shown import rich
from jaxvit.weights.model_json import read_model

_EXAMPLES = """examples:
  jaxvit summary --list                                            the registered names
  jaxvit summary --model=cct_7_3x1_32
  jaxvit summary --model=vit --config.model.dim=64 --image_size=48x64     any attribute and image size
  jaxvit summary --model=tutorial_mini_vit_tl4 --json
  jaxvit summary --workdir=runs/digits                             the model of a run, an export or a conversion
"""


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code.

    Raises:
      UsageError: unknown model, attribute or folder, or incompatible attributes.
    """
    description = "Shows a model's modules, output shapes, parameters, tokens and multiply-adds, without running it."
    parser = command_line.Parser("summary", description, _EXAMPLES)
    parser.add_argument("--model", help="a registered name, a family, or package.module:Class")
    parser.add_argument("--workdir", default="", type=local_path, metavar="RUN", help="folder of a run or an export")
    parser.add_argument("--image_size", default="", help="'96' or '96x64' (rows x columns); default: as published")
    parser.add_argument("--depth", type=int, default=2, help="levels of modules to show; 0 = all (default 2)")
    parser.add_argument("--json", action="store_true", help="one JSON object, with all levels")
    parser.add_argument("--list", action="store_true", help="print the registered names and stop")
    known, rest = parser.parse_known_args(argv)
    if known.list:
        print("\n".join(list_models()))
        return 0
    if known.depth < 0:
        raise UsageError(f"--depth={known.depth}: must be 1 or more; 0 = all")
    if known.workdir:
        if known.model or rest:
            raise UsageError("--workdir names the model: leave out --model and --config.model.…")
        described = read_model(Path(known.workdir), RENAMED)
        known.model, model, published = described.name, described.create(own_code=False), described.input_shape
    elif known.model:
        model, published = _named(known.model, rest, parser)
    else:
        raise UsageError("--model is missing; name one, or see --list")
    size = _size(known.image_size, published)
    try:
        facts = summarize(model, size, name=known.model)
    except Exception as error:
        if ":" in known.model:  # the user's code can raise anything
            shape = "×".join(map(str, size))
            raise UsageError(
                f"model '{known.model}' does not work on images of {shape}: {own_code.explain(error)}"
            ) from error
        if not isinstance(error, ValueError | TypeError | ArithmeticError):
            raise
        raise UsageError(first_line(error)) from None
    if known.json:
        print(json.dumps(facts))
    else:
        _show(facts, known.depth)
    return 0


def _named(name: str, words: list[str], parser: command_line.Parser) -> tuple[nn.Module, tuple[int, ...]]:
    """A model by its name, with overrides, and the (H, W, C) it was published for."""
    try:
        shape = input_shape(name)
        attributes, unknown = _attributes(name, words)
        parser.refuse_unknown(unknown)
        return create_model(name, **attributes), shape
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UsageError(first_line(error)) from None


def _size(text: str, default: tuple[int, ...]) -> tuple[int, int, int]:
    if not text:
        return default[0], default[1], default[2]
    try:
        sides = [int(side) for side in text.split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1 or max(sides) > 10**6:
        raise UsageError(f"--image_size={text} is not a size such as 96 or 96x64")
    return sides[0], sides[-1], default[2]


def _attributes(model: str, words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Parses `--config.model.ATTRIBUTE=value`; returns ({attribute: value}, other arguments)."""
    _, overrides, unknown = parse_model_overrides(base_config(model), words)
    for key in overrides:
        if not key.startswith("model."):
            raise UsageError(f"--config.{key}: only model attributes, --config.model.…, have an effect on a summary")
    return {key.removeprefix("model."): value for key, value in overrides.items()}, unknown


def _show(facts: dict, depth: int) -> None:
    table = Table(title=rich(f"{facts['name']} on {'x'.join(map(str, facts['input']))}, one sample"))
    for heading, side in (("module", "left"), ("type", "left"), ("output", "right"), ("parameters", "right")):
        table.add_column(heading, justify=side)
    for row in facts["layers"]:
        parts = row["path"].split("/") if row["path"] else []
        if depth and len(parts) > depth:
            continue
        label = "  " * (len(parts) - 1) + parts[-1] if parts else "(model)"
        table.add_row(rich(label), rich(row["type"]), " x ".join(map(str, row["output"])), f"{row['params']:,}")
    print_table(table)
    print(f"parameters     {facts['params']:,}")
    if facts["tokens"]:
        print(f"tokens         {_runs(facts['tokens'])}")
    notes = {
        "all": "dense, convolutions, attention, token pooling",
        "keras_profiler": "dense and convolutions only, like the tutorials' counter; no attention",
        "cct": "without products of activations, like the CCT authors",
    }
    for convention, number in facts["macs"].items():
        print(f"multiply-adds  {number:>17,}  {convention}: {notes[convention]}")


def _runs(tokens: list[int]) -> str:
    """Run-length text of the tokens per block: '64 in 3 blocks, 8 in 1 block' for [64, 64, 64, 8]."""
    runs: list[list[int]] = []
    for count in tokens:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    return ", ".join(f"{count} in {blocks} block{'s' * (blocks > 1)}" for count, blocks in runs)
