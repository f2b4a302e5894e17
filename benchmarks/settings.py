"""Measures the effect of each setting in docs/performance.md on training steps, timed in turns on a CPU.

    python benchmarks/settings.py [MODEL …] [--rounds 3] [--seconds 3]

Each setting runs in its own process. Do not use the machine meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time

from against_peers import PAUSE, SETTLE
from peers.timing import Worker
from peers.workloads import WORKLOADS

MODELS = (
    *("tutorial_fashion_vit", "tutorial_fashion_fast_vit", "tutorial_mini_vit_tl4", "tutorial_shiftvit"),
    "tutorial_cct",
)
# name -> arguments of the worker, variables of its environment
SETTINGS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "default": ((), {}),
    # jaxvit does not override a value set by the user; this one keeps jaxlib's default.
    "jaxlib's choice of libraries": ((), {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=+reduce"}),
    "pages of 4 KiB": ((), {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}),
    "plain implementations": (("--implementations", "plain"), {}),
}


def measure(model: str, rounds: int, seconds: float) -> dict[str, float]:
    """{setting: median milliseconds of a training step}."""
    times: dict[str, list[float]] = {name: [] for name in SETTINGS}
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker("jaxvit", model, options, variables))
            for name, (options, variables) in SETTINGS.items()
        }
        counts = {}
        for name, worker in workers.items():
            warm = worker.ask("train 3")["ms"]
            counts[name] = max(1, round(1e3 * seconds / min(warm)))
        order = list(workers)
        for _ in range(rounds):
            for name in order:
                time.sleep(PAUSE)
                times[name] += workers[name].ask(f"train {counts[name] + SETTLE}")["ms"][SETTLE:]
            order = order[1:] + order[:1]
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    unknown = [model for model in options.models if model not in WORKLOADS]
    if unknown:
        parser.error(f"there is no {unknown[0]!r}; models: {', '.join(WORKLOADS)}")
    print(f"| model | {' | '.join(f'{name}, ms' for name in SETTINGS)} |")
    print(f"|---|{'---|' * len(SETTINGS)}")
    for model in options.models:
        found = measure(model, options.rounds, options.seconds)
        print(f"| `{model}` | {' | '.join(f'{ms:.4g}' for ms in found.values())} |", flush=True)


if __name__ == "__main__":
    main()
