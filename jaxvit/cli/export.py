"""`jaxvit export`: writes a trained model as files that run without jaxvit."""

from __future__ import annotations

from jaxvit.cli import command_line
from jaxvit.cli.options import add_run_options, load_run
from jaxvit.errors import DONE
from jaxvit.exports.formats import FORMATS, formats_named
from jaxvit.exports.write import export_files
from jaxvit.files import local_path
from jaxvit.trained.weights import KINDS

_EXAMPLES = """examples:
  jaxvit export --workdir=runs/digits                               model.stablehlo: jax runs it, on CPU, GPU, TPU
  jaxvit export --workdir=runs/digits --to=onnx,hub --out=digits    model.onnx; and a folder with a model card to give away
  jaxvit export --workdir=runs/digits --to=stablehlo --dtype=int8   a quarter of the size; says what it costs in accuracy

Every file takes uint8 images of the run's size, any number at once, and gives probabilities; resizing and normalising
are inside, and so are the class names. Beside each file lies a short script that runs it, without jaxvit but for hub/,
which is for jaxvit.load. Before a file gets its name it is run so in a fresh process and compared, on 32 images, with the
model of the same weights; one that differs by 1e-4 or more is thrown away. `jaxvit benchmark --file=FILE` measures it.
"""  # noqa: E501


def main(argv: list[str]) -> int:
    """The verb.

    Raises:
      UsageError: no such run or format, or a format whose packages are missing.
      RunFailedError: a file cannot be written, does not run, or disagrees with the model.
    """
    parser = command_line.Parser("export", "Writes a trained model as files that run without jaxvit.", _EXAMPLES)
    add_run_options(parser)
    parser.add_argument("--to", default="stablehlo", metavar="FORMATS", help=f"{', '.join(FORMATS)}; several: a,b")
    parser.add_argument("--dtype", choices=KINDS, default="float32", help="of the stored weights (default: float32)")
    parser.add_argument(
        "--out", default="", type=local_path, metavar="DIR", help="where the files go (default: RUN/export)"
    )
    parser.add_argument("--dry_run", action="store_true", help="say what would be written; write nothing")
    options, rest = parser.parse_known_args(argv)
    parser.refuse_unknown(rest)
    kinds = formats_named(options.to)
    loaded = load_run(options)
    export_files(
        loaded,
        kinds,
        dtype=options.dtype,
        out=options.out,
        data_dir=options.data_dir,
        batch_size=options.batch_size,
        devices=options.devices,
        dry_run=options.dry_run,
    )
    return DONE
