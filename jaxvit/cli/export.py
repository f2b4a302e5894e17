"""`jaxvit export`: exports a trained model to files that run without jaxvit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxvit.cli import command_line
from jaxvit.cli.options import add_run_options, load_run
from jaxvit.errors import DONE, UsageError
from jaxvit.exports.formats import FORMATS, formats_named
from jaxvit.exports.layout import AUTHORS, export_layout
from jaxvit.exports.write import export_files
from jaxvit.files import local_path
from jaxvit.shown import terminal
from jaxvit.trained.load import load
from jaxvit.weights.pretrained import ORIGINS
from jaxvit.weights.stored import KINDS

_EXAMPLES = """examples:
  jaxvit export --workdir=runs/digits                               model.stablehlo, for jax on CPU, GPU and TPU
  jaxvit export --workdir=runs/digits --to=onnx,hub --out=digits    model.onnx, and a folder with a model card to share
  jaxvit export --workdir=runs/digits --to=stablehlo --dtype=int8   a quarter of the size; prints the loss of accuracy
  jaxvit export --workdir=runs/digits --to=page --beside=runs/cct   page.html: two models in a browser, without a server
  jaxvit export --workdir=runs/vit --to=model.safetensors --layout=timm      weights in the names of another project

Each file maps a batch of uint8 images, of any batch size, to probabilities. Resizing, normalization and class names are
included. A short script beside the file runs it without jaxvit; hub/ is meant for jaxvit.load, and a page needs none.
Each file is checked before it is moved into place: a fresh process runs it on 32 images, and a file whose probabilities
differ from the model's by 1e-4 or more is deleted. `jaxvit benchmark --file=FILE` measures its speed.
"""


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code.

    Raises:
      UsageError: unknown run or format, or a required package is not installed.
      RunFailedError: a file cannot be written, does not run, or differs from the model.
    """
    parser = command_line.Parser("export", "Exports a trained model to files that run without jaxvit.", _EXAMPLES)
    add_run_options(parser)
    parser.add_argument("--to", default="stablehlo", metavar="FORMATS", help=f"{', '.join(FORMATS)}; several: a,b")
    parser.add_argument(
        "--dtype",
        choices=KINDS,
        default="",
        help="dtype of the stored weights (default: float32; for a page alone, the first that fits into 15 MB)",
    )
    parser.add_argument(
        "--beside", default="", metavar="RUNS", help="for a page: further runs to show beside it; several: a,b"
    )
    parser.add_argument(
        "--out", default="", type=local_path, metavar="DIR", help="folder for the files (default: RUN/export)"
    )
    parser.add_argument(
        "--layout",
        default="",
        metavar="PROJECT",
        help=f"write the weights alone, to --to=FILE, as another project: {', '.join((AUTHORS, *ORIGINS))}",
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would be written; write nothing")
    options, rest = parser.parse_known_args(argv)
    parser.refuse_unknown(rest)
    if options.layout:
        return _weights_alone(options)
    kinds = formats_named(options.to)
    loaded = load_run(options)
    others = [
        load(local_path(name), checkpoint=options.checkpoint, weights=options.weights, own_code=options.own_code)
        for name in options.beside.split(",")
        if options.beside
    ]
    export_files(
        loaded,
        kinds,
        dtype=options.dtype,
        out=options.out,
        beside=others,
        data_dir=options.data_dir,
        batch_size=options.batch_size,
        devices=options.devices,
        dry_run=options.dry_run,
    )
    return DONE


def _weights_alone(options: Any) -> int:
    if options.dtype not in ("", "float32"):
        raise UsageError(f"--dtype={options.dtype}: with --layout, weights are float32")
    if "/" in options.to:
        raise UsageError(f"--to={options.to}: with --layout, --to is a name; name its folder with --out=DIR")
    loaded = load_run(options)
    file = (Path(options.out) if options.out else loaded.workdir / "export") / options.to
    origin, arguments = export_layout(loaded, file, options.layout, dry_run=options.dry_run)
    print(terminal(f"{file}: weights of step {loaded.step:,} as in {origin.title}"))
    if arguments:
        said = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        print(terminal(f"the file does not tell, so give its code: {said}"))
    print("dry run: nothing was written" if options.dry_run else "read back: every bit is the model's")
    return DONE
