"""`jaxvit compile`: compiles the training step for accelerators that are not here; memory, kernels, collectives."""

from __future__ import annotations

import json
from pathlib import Path

from jaxvit import errors
from jaxvit.cli import command_line
from jaxvit.errors import UsageError
from jaxvit.files import local_path, make_writable

_EXAMPLES = """examples:
  jaxvit compile --model=tutorial_cct --topology=v5e                     one TPU v5e
  jaxvit compile --model=vit_b16 --topology=v5e:4x4 --batch=1024 --dtype=bfloat16 --fsdp=4
  jaxvit compile --config=digits --topology=h100x8 --config.train.batch_size=64 --json
  jaxvit compile --model=cct_14_7x2_224 --topology=h200 --dump=hlo       keeps the program as text

Nothing runs on an accelerator, and none is needed: XLA compiles for it on this machine. TPUs need pip install
'jaxvit[tpu]', NVIDIA's GPUs 'jaxvit[cuda13]'. All numbers are for one chip and one step. The estimate takes the chip's
published rates (jaxvit/ahead/chips.py): no real step is faster. The exit code is 1 if the step does not fit into
memory. docs/accelerators.md explains each figure.
"""


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code.

    Raises:
      UsageError: unknown model, config, key or topology, incompatible values, or a compiler that is not installed.
      RunFailedError: the compiler fails.
    """
    parser = command_line.Parser("compile", "Compiles the training step for accelerators that are not here.", _EXAMPLES)
    parser.add_argument("--model", default="", metavar="NAME", help="a model, on synthetic images")
    parser.add_argument(
        "--config", default="", metavar="NAME[:VARIANT]", help="a config instead of --model, such as digits:vit"
    )
    parser.add_argument("--topology", default="", metavar="CHIPS", help="v5e, v5e:4x4, v5p:4x4x4, h100x8, h200, …")
    parser.add_argument("--fsdp", type=int, metavar="N", help="chips that share one copy of the parameters")
    parser.add_argument("--batch", type=int, metavar="N", help="batch size of all chips (default: the document's)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="", help="compute dtype (default: the model's)"
    )
    parser.add_argument("--synthetic", action="store_true", help="use synthetic images even if the data set exists")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--dump", type=local_path, metavar="DIR", help="write the program as text to DIR")
    options, rest = parser.parse_known_args(argv)
    if bool(options.model) == bool(options.config):
        raise UsageError("name a model or a config: --model=NAME or --config=NAME; see jaxvit compile --help")
    if not options.topology:
        raise UsageError("--topology is missing; name chips, such as --topology=v5e:4x4; see jaxvit compile --help")
    for name in ("batch", "fsdp"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UsageError(f"--{name}={value}: must be 1 or more")

    from jaxvit.ahead.topology import parse_topology, prepare_environment, refuse_missing_compiler

    prepare_environment()
    topology = parse_topology(options.topology)
    refuse_missing_compiler(topology)

    from jaxvit.ahead.compiling import compile_ahead
    from jaxvit.ahead.page import show
    from jaxvit.speed.subject import configure

    if options.fsdp:
        rest = [*rest, f"--config.train.fsdp={options.fsdp}"]
    config, overrides, origin, unknown = configure(
        options.model, options.config, rest, batch=options.batch or 0, dtype=options.dtype
    )
    parser.refuse_unknown(unknown)
    dump = Path(options.dump) if options.dump else None
    if dump:
        make_writable(dump, "name another folder")
    found = compile_ahead(config, topology, overrides=overrides, synthetic=options.synthetic, origin=origin, dump=dump)
    if options.json:
        print(json.dumps(found), flush=True)
    else:
        show(found)
    return errors.DONE if found["fits"] else errors.SOME_INPUTS_FAILED
