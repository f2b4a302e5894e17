"""`jaxvit probe`: tests how much the frozen features of a model tell about the classes of a data set."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jaxvit.cli import command_line
from jaxvit.config.files import load_config_file
from jaxvit.config.for_images import choose, data_name
from jaxvit.config.keys import set_value
from jaxvit.config.plan import dataset_of
from jaxvit.config.reader import ConfigReader
from jaxvit.errors import DONE, UsageError
from jaxvit.exports.converted import read_conversion, write_conversion
from jaxvit.files import local_path, make_writable, write_json
from jaxvit.shown import terminal
from jaxvit.trained.load import CHECKPOINTS, WEIGHTS, Loaded, load
from jaxvit.trained.probe import KINDS, NEIGHBOURS, features_of, few, probe
from jaxvit.weights.hugging_face import fetch, is_address, weights_path

_EXAMPLES = f"""examples:
  jaxvit probe runs/cifar10 --data=photos                      logistic regression on the features of runs/cifar10
  jaxvit probe runs/cifar10 --data=photos --shots=10           learns from ten images of each class
  jaxvit probe runs/cifar10 --data=photos --kind=nearest       a vote of the {NEIGHBOURS} nearest training images
  jaxvit probe deit.safetensors --data=photos --out=deit.json  weights of another project, see jaxvit convert

The features are the input of the model's head (jaxvit embed writes them); no weight of the model changes. The data is
cut into train, validation and test as by jaxvit train --data. The strength of the regularisation is chosen on the
validation images. docs/finetune.md compares a probe with fine-tuning.
"""


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code.

    Raises:
      UsageError: unknown run, file or data, or too few images.
    """
    options = _parse(argv)
    out = Path(options.out) if options.out else None
    if out and out.suffix.lower() != ".json":
        raise UsageError(f"--out={out}: the name must end in .json")
    if out:
        make_writable(out.parent, f"choose another folder for --out={out}")
    with _loaded(options) as loaded:
        side = loaded.image_shape[0]
        config = load_config_file("photos")
        if options.data_dir:
            set_value(config, "data.dir", options.data_dir)
        chosen = choose(config, data_name(options.data), weights_side=lambda _: side)
        for line in () if options.json else chosen.lines[:-1]:  # the last is on the training of a model
            print(terminal(line), flush=True)
        for phrase in chosen.warnings:
            print(terminal(f"warning: {phrase}"), file=sys.stderr, flush=True)
        get, dataset = ConfigReader(chosen.config), dataset_of(chosen.config)
        train, validation, test = (dataset.read(get(f"data.{part}", str)) for part in ("train", "validation", "test"))
        train = few(train, options.shots, options.draw) if options.shots else train
        how = {"batch_size": options.batch_size, "devices": options.devices}
        inside, outside = features_of(loaded, train, **how), features_of(loaded, test, **how)
        decides = features_of(loaded, validation, **how) if options.kind == "linear" else None
        found = probe(options.kind, inside, outside, decides)
    facts = {"model": options.run, "data": dataset.name, "shots": options.shots, "draw": options.draw}
    facts |= dataclasses.asdict(found)
    if out:
        write_json(out, facts, with_checksum=True)
    if options.json:
        print(json.dumps(facts))
        return DONE
    choice = (
        f"C={found.strength:g} chosen on {found.chosen_on}" if found.kind == "linear" else f"{found.strength:g} votes"
    )
    print(
        f"{found.kind} probe: accuracy {found.top1:.2%} (95 %: {found.low:.2%} to {found.high:.2%}) of "
        f"{found.count:,} test images; learned from {found.train_count:,} images of {found.classes} classes, "
        f"{found.features} features, {choice}"
    )
    return DONE


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = command_line.Parser("probe", "Tests the frozen features of a model on a data set.", _EXAMPLES)
    parser.add_argument(
        "run",
        nargs="?",
        default="",
        type=weights_path,
        metavar="RUN",
        help="a run's folder, a file, or hf://owner/name",
    )
    parser.add_argument("--data", default="", metavar="PATH", help="photos, a table or a data set, as for jaxvit train")
    parser.add_argument("--kind", choices=KINDS, default="linear", help="linear (default) or nearest")
    parser.add_argument("--shots", type=int, default=0, metavar="K", help="training images of each class; 0 = all")
    parser.add_argument("--draw", type=int, default=0, metavar="N", help="number of the draw of these images")
    parser.add_argument("--checkpoint", choices=CHECKPOINTS, default="best", help="checkpoint of a run (default: best)")
    parser.add_argument("--weights", choices=WEIGHTS, default="chosen", help="as for jaxvit evaluate")
    parser.add_argument("--own_code", action="store_true", help="as for jaxvit evaluate")
    parser.add_argument("--batch_size", type=int, default=0, help="batch size (default: as in the run)")
    parser.add_argument("--devices", type=int, default=0, help="number of devices; 0 = all")
    parser.add_argument("--data_dir", default="", type=local_path, metavar="DIR", help="TFDS directory")
    parser.add_argument(
        "--out", default="", type=local_path, metavar="FILE", help="write the result to this .json file"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options, rest = parser.parse_known_args(argv)
    parser.refuse_unknown(rest)
    if not options.run:
        raise UsageError("RUN is missing: name a run's folder or a file of weights; see jaxvit probe --help")
    if not options.data:
        raise UsageError("--data is missing: name the images to probe on, such as --data=photos")
    for name in ("shots", "draw", "batch_size", "devices"):
        if not 0 <= getattr(options, name) < 2**31:
            raise UsageError(f"--{name}={getattr(options, name)}: must be 0 or more")
    return options


@contextlib.contextmanager
def _loaded(options: argparse.Namespace) -> Iterator[Loaded]:
    """The model; a file of another project is converted into a folder for as long as it is used."""
    if Path(options.run).is_dir():
        yield load(options.run, checkpoint=options.checkpoint, weights=options.weights, own_code=options.own_code)
        return
    conversion = read_conversion(fetch(options.run) if is_address(options.run) else Path(options.run))
    for line in () if options.json else conversion.lines():
        print(terminal(line), flush=True)
    with tempfile.TemporaryDirectory(prefix="jaxvit-probe-") as folder:
        write_conversion(conversion, Path(folder) / "model")
        yield load(Path(folder) / "model")
