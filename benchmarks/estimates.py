"""Compares measured steps with estimates of the compiled program: python benchmarks/estimates.py --topology=h200 FILE…

Each FILE has the JSON lines of `jaxvit benchmark --json`, measured on such a chip. The same step is compiled for the
chip (docs/accelerators.md), on the CPU of any machine with the compiler: `pip install 'jaxvit[cuda13]'` or
`'jaxvit[tpu]'`. Prints a table: measured and estimated milliseconds, their ratio, and kernels.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main() -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--topology", required=True, help="the chip of the measurements, such as h200")
    options = parser.parse_args()

    from jaxvit.ahead.topology import parse_topology, prepare_environment

    prepare_environment()

    from jaxvit.ahead.compiling import compile_ahead
    from jaxvit.errors import RunFailedError, UsageError
    from jaxvit.speed.subject import configure

    topology = parse_topology(options.topology)
    print("| model | batch | measured ms | estimated ms | ratio | kernels |\n|---|---|---|---|---|---|")
    code = 0
    for measured in (one for file in options.files for one in results(file)):
        given = measured["overrides"]
        words = [f"--config.{key}={value}" for key, value in given.items() if key != "train.batch_size"]
        try:
            config, overrides, origin, _ = configure(measured["model"], "", words, batch=measured["batch"])
            found = compile_ahead(config, topology, overrides=overrides, synthetic=True, origin=origin)
        except (RunFailedError, UsageError) as error:
            print(f"{measured['model']}: {error}", file=sys.stderr, flush=True)
            code = 1
            continue
        time, estimate = measured["train_ms_per_step"], found["estimate_ms"] or float("nan")
        cells = (measured["model"], measured["batch"], f"{time:.3g}", f"{estimate:.3g}", f"{time / estimate:.2f}")
        print(f"| {' | '.join(map(str, cells))} | {found['kernels']} |", flush=True)
    return code


def results(file: Path) -> list[dict]:
    """The results of `jaxvit benchmark` in a file; other lines are skipped."""
    found = [json.loads(line) for line in file.read_text().splitlines() if line.startswith("{")]
    return [one for one in found if "train_ms_per_step" in one]


if __name__ == "__main__":
    sys.exit(main())
