"""`jaxvit evaluate`: how good a trained model is, class by class, on any split, from its run's folder alone."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import jax

from jaxvit import command_line, scores
from jaxvit.config import data_dir
from jaxvit.data import image_folder
from jaxvit.data.sources import Dataset, Source, StreamedSource, is_own, open_dataset
from jaxvit.errors import UsageError
from jaxvit.inference import Outcomes, Predictor
from jaxvit.loading import CHECKPOINTS, WEIGHTS, Loaded, load
from jaxvit.plan import dataset_of
from jaxvit.run_directory import make_writable, read_environment, write_json

PARTS = ("train", "validation", "test")

_EXAMPLES = """examples:
  jaxvit evaluate --workdir=runs/digits                              the run's test split, its best weights
  jaxvit evaluate --workdir=runs/digits --split=validation --checkpoint=latest
  jaxvit evaluate --workdir=runs/digits --split='test[:100]' --json  any split in TFDS notation
  jaxvit evaluate --workdir=runs/cifar --data=image_folder:photos --split=train   other images of the same classes

Into RUN/evaluation/ go test.json (everything), test.csv (a row for each class), test_confusion.csv and test_images.csv
(a row for each image, in the order of the split).
"""


def main(argv: list[str]) -> int:
    """The verb.

    Raises:
      UsageError: no such run, split or data.
    """
    parser = command_line.Parser("evaluate", "Evaluates a trained model on a split of labelled images.", _EXAMPLES)
    add_run_options(parser)
    parser.add_argument(
        "--split", default="", help="train, validation or test as the run used them, or TFDS notation (default: test)"
    )
    parser.add_argument("--data", default="", metavar="NAME", help="another data set of the same classes")
    parser.add_argument("--out", default="", metavar="DIR", help="where the files go (default: RUN/evaluation)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the tables")
    options, rest = parser.parse_known_args(argv)
    parser.refuse_unknown(rest)
    loaded = load_run(options)
    split, source = read_split(loaded, options.split, options.data, options.data_dir)
    folder = Path(options.out) if options.out else loaded.workdir / "evaluation"
    make_writable(folder, "name another with --out=DIR")
    found, outcomes = evaluate(loaded, source, split=split, batch_size=options.batch_size, devices=options.devices)
    file = folder / _file_name(found, options)
    scores.write_tables(found, outcomes, file)
    write_json(file.with_name(f"{file.name}.json"), found)
    if options.json:
        print(json.dumps(found))
    else:
        _show(found, file)
    return 0


def add_run_options(parser: command_line.Parser) -> None:
    """The flags that every verb on a trained model has."""
    parser.add_argument("--workdir", default="", metavar="RUN", help="the run's folder")
    parser.add_argument("--checkpoint", choices=CHECKPOINTS, default="best", help="(default: best on validation)")
    parser.add_argument(
        "--weights", choices=WEIGHTS, default="chosen", help="chosen: averaged ones where the run keeps them (default)"
    )
    parser.add_argument("--batch_size", type=int, default=0, help="images at a time (default: the run's)")
    parser.add_argument("--devices", type=int, default=0, help="how many to use (default: all)")
    parser.add_argument("--data_dir", default="", metavar="DIR", help="TFDS directory (else the run's, TFDS_DATA_DIR)")
    parser.add_argument(
        "--own_code",
        action="store_true",
        help="run the code that the run's files name, 'module:Class': a model or data set outside this package",
    )


def load_run(options: Any) -> Loaded:
    """The model of a verb's `--workdir`, `--checkpoint` and `--weights`."""
    if not options.workdir:
        raise UsageError("--workdir is missing: name the folder of a run, such as --workdir=runs/digits")
    if options.batch_size < 0:
        raise UsageError(f"--batch_size={options.batch_size}: must be 1 or more; 0 = the run's")
    if not 0 <= options.devices <= jax.local_device_count():
        raise UsageError(f"--devices={options.devices}: there are {jax.local_device_count()}; 0 = all")
    return load(options.workdir, checkpoint=options.checkpoint, weights=options.weights, own_code=options.own_code)


def read_split(
    loaded: Loaded, split: str = "", data: str = "", directory: str = ""
) -> tuple[str, Source | StreamedSource]:
    """(name, images) of a split: one that the run used, any other of its data set, or one of another data set.

    Args:
      loaded: the trained model.
      split: 'train', 'validation' or 'test' as the run's config has them, or TFDS notation; '' = test, or where the
        run has none, validation.
      data: another data set's name; '' = the run's.
      directory: the TFDS directory; '' = the run's, else the usual one.

    Raises:
      UsageError: there is no such data or split, or other classes.
    """
    config = loaded.config.copy_and_resolve_references()
    if directory:
        config.data.dir = directory
    named = {part: config.data[part] for part in PARTS}
    if not split and not data and not (named["test"] or named["validation"]):
        raise UsageError(f"{loaded.workdir}: this run has neither a test nor a validation split; name one with --split")
    split = split or ("test" if named["test"] or data else "validation")
    if split in PARTS and not data and not named[split]:
        raise UsageError(f"--split={split}: this run has none; name images in TFDS notation, such as --split='test'")
    if not data and is_own(config.data.name) and not loaded.own_code:
        raise UsageError(
            f"{loaded.workdir}: its data set '{config.data.name}' is code outside this package, and to open it runs "
            f"module {config.data.name.partition(':')[0]}; if you trust that, say so by --own_code, in Python by "
            "load(…, own_code=True)"
        )
    dataset = _other(data, config, loaded.image_shape) if data else dataset_of(config)
    if dataset.class_names != loaded.class_names:
        theirs, ours = (
            ", ".join(names[:4]) + ", …" * (len(names) > 4) for names in (dataset.class_names, loaded.class_names)
        )
        raise UsageError(f"{dataset.name}: its classes ({theirs}) are not those of the model ({ours})")
    expression = split if data else named.get(split, split)
    dataset.count(expression, "--split")
    source = dataset.read(expression)
    if source.image_shape != loaded.image_shape:
        raise UsageError(
            f"{source.name}: images of {_size(source.image_shape)}, and the model was trained on "
            f"{_size(loaded.image_shape)}; export them with `jaxvit data export` at that size"
        )
    if not data:
        _compare(loaded, expression, source)
    return split, source


def _other(name: str, config: Any, image_shape: tuple[int, ...]) -> Dataset:
    side = config.data.side
    if name.startswith(image_folder.PREFIX) and image_shape[0] == image_shape[1]:
        side = image_shape[0]  # files of any size are brought to the model's
    return open_dataset(name, data_dir(config.data.dir), on_error=config.data.on_error, side=side)


def _compare(loaded: Loaded, expression: str, source: Source | StreamedSource) -> None:
    """Warns where a split that the run used is not what it was."""
    used = read_environment(loaded.workdir)["data"]
    for part in PARTS:
        then = used.get(part, {}).get("sha256")
        if then and loaded.config.data[part] == expression and then != source.fingerprint["sha256"]:
            print(f"warning: {source.name}: these are not the images that the run used for {part}", file=sys.stderr)
            return


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def evaluate(
    loaded: Loaded, source: Source | StreamedSource, *, split: str = "test", batch_size: int = 0, devices: int = 0
) -> tuple[dict[str, Any], Outcomes]:
    """Evaluates on every image of a split, once.

    Args:
      loaded: the trained model.
      source: labelled images.
      split: its name, for the result.
      batch_size: images at a time; 0 = as the run's evaluation. It changes no result but by rounding.
      devices: how many; 0 = all.

    Returns:
      (split, data, checkpoint step, weights and everything of `jaxvit.scores.score`; what was said of each image).
    """
    config = loaded.config
    predictor = Predictor(loaded, batch_size or config.eval.batch_size or config.train.batch_size, devices)
    outcomes = predictor.outcomes(source)
    facts = {"split": split, "data": source.name, "step": loaded.step, "weights": loaded.weights}
    return {**facts, **scores.score(outcomes, loaded.class_names, places=predictor.places)}, outcomes


def _file_name(found: dict[str, Any], options: Any) -> str:
    words = [options.data, found["split"], options.checkpoint if options.checkpoint != "best" else ""]
    words.append(options.weights if options.weights != "chosen" else "")
    return "_".join(re.sub(r"\W+", "_", word).strip("_") for word in words if word)


def _show(found: dict[str, Any], file: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    rows = sorted(found["per_class"], key=lambda row: row["f1"]) if len(found["per_class"]) > 30 else found["per_class"]
    title = f"{found['data']}, {found['count']:,} images" + (", the 30 worst classes" if len(rows) > 30 else "")
    table = Table(title=escape(title))
    table.add_column("class")
    for heading in ("images", "precision", "recall", "F1"):
        table.add_column(heading, justify="right")
    for row in rows[:30]:
        values = (f"{100 * row[name]:.2f}" for name in ("precision", "recall", "f1"))
        table.add_row(escape(row["name"]), f"{row['count']:,}", *values)
    table.add_section()
    for kind in ("macro", "weighted"):
        table.add_row(f"mean, {kind}", "", *(f"{100 * found[n][kind]:.2f}" for n in ("precision", "recall", "f1")))
    console.print(table)
    if len(found["class_names"]) <= 12:
        console.print(_confusion(found))
    if found["most_confused"]:
        print("most often taken for another:")
        for pair in found["most_confused"][:5]:
            share = f"{100 * pair['share']:.1f} % of {pair['true']}"
            print(f"  {pair['true']} taken for {pair['predicted']}: {pair['count']:,} ({share})")
    right = f"{round(found['top1'] * found['count']):,} of {found['count']:,} images"
    print(f"accuracy {100 * found['top1']:.2f}% ({right}), top-5 {100 * found['top5']:.2f}%")
    print(f"loss {found['loss']:.4f}, expected calibration error {100 * found['ece']:.2f}%")
    keras = found["keras"]
    print(f"Keras precision {100 * keras['precision']:.2f}%, recall {100 * keras['recall']:.2f}% (micro, above 1/2)")
    print(
        f"weights of step {found['step']:,} ({found['weights']}); files: {file}.json, .csv, _confusion.csv, _images.csv"
    )


def _confusion(found: dict[str, Any]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="true class by row, predicted by column")
    table.add_column("")
    for name in found["class_names"]:
        table.add_column(escape(name[:8]), justify="right")
    for i, (name, row) in enumerate(zip(found["class_names"], found["confusion"], strict=True)):
        cells = (f"[bold]{n}[/bold]" if i == j else (str(n) if n else "·") for j, n in enumerate(row))
        table.add_row(escape(name), *cells)
    return table


if __name__ == "__main__":
    command_line.run(main)
