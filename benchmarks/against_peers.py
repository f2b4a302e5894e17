"""Compares the speed of jaxvit with Keras and PyTorch: training step, one image, and a batch, on one machine.

    python benchmarks/against_peers.py [--models NAME …] [--peers NAME …] [--rounds 5] [--seconds 4] [--amp]
                                       [--out benchmarks/RESULTS.md]

All frameworks run the same arithmetic on the same random images, which are already on the device: see
`benchmarks/peers`. Each framework has its own process. In every round each is timed for some seconds, in rotating
order, so that a slow phase of the machine affects all of them. The first two calls of a turn are not timed. Medians are
compared.

Do not use the machine meanwhile. The results are also written as CSV, and as JSON: if the program is started again, it
resumes with the next model. `pip install -e .[bench]` installs the frameworks; missing ones are skipped and named.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peers.timing import MissingPackageError, Worker, WorkerError
from peers.worker import PEERS
from peers.workloads import WORKLOADS

from jaxvit.devices.hardware import machine
from jaxvit.speed.timing import spread

OURS = "jaxvit"
MEASURES = {
    "train": "Training step: forward, backward, update",
    "infer_one": "Inference, one image",
    "infer_batch": "Inference, a batch",
}
MOST_RUNS = 200  # calls of a measure in a round, at most
SETTLE = 2  # untimed calls at the start of a turn: memory of an idle process may have been paged out
PAUSE = 0.3  # seconds for the previous worker to become idle

Results = dict[
    str, Any
]  # results of a model. peer -> facts at its start, and measure -> summary; or the reason why there is none


def command(measure: str, model: str, count: int) -> str:
    if measure == "train":
        return f"train {count}"
    return f"infer {1 if measure == 'infer_one' else WORKLOADS[model].batch} {count}"


def time_model(model: str, peers: Iterable[str], rounds: int, seconds: float, options: tuple[str, ...]) -> Results:
    """Times all peers of a model in turns."""
    results: Results = {}
    with contextlib.ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for peer in peers:
            try:
                workers[peer] = stack.enter_context(contextlib.closing(Worker(peer, model, options)))
                results[peer] = workers[peer].start
                print(f"  {peer}: first step after {results[peer]['first_step_s']:.1f} s", flush=True)
            except MissingPackageError as missing:
                results[peer] = {"none": f"{missing} is not installed"}
                print(f"  {peer}: skipped, {missing} is not installed", flush=True)
            except WorkerError as error:
                results[peer] = {"none": str(error)}
                print(f"  {peer}: {error}", flush=True)

        counts: dict[tuple[str, str], int] = {}
        times: dict[tuple[str, str], list[float]] = {}

        def ask(peer: str, measure: str, count: int) -> list[float]:
            """Returns the times; [] from a worker that has failed."""
            if peer not in workers:
                return []
            try:
                return workers[peer].ask(command(measure, model, count))["ms"]
            except WorkerError as error:
                results[peer] = {"none": f"{measure}: {error}"}
                print(f"  {peer}: {measure}: {error}", flush=True)
                del workers[peer]
                return []

        for peer in list(workers):
            for measure in MEASURES:
                ask(peer, measure, 1)  # compiles
                warm = ask(peer, measure, 3)
                if warm:
                    counts[peer, measure] = max(1, min(MOST_RUNS, round(1e3 * seconds / min(warm))))
        order = list(workers)
        for i in range(rounds):
            for measure in MEASURES:
                for peer in order:
                    time.sleep(PAUSE)
                    found = ask(peer, measure, counts.get((peer, measure), 1) + SETTLE)
                    times.setdefault((peer, measure), []).extend(found[SETTLE:])
            order = order[1:] + order[:1]
            print(f"  round {i + 1} of {rounds}", flush=True)
        for peer in workers:
            results[peer] |= {measure: spread(times[peer, measure]) for measure in MEASURES}
    return results


class Store:
    """The results so far, in a JSON file.

    Args:
      path: path of the file.
      settings: settings and machine; a file with other settings is refused.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self._path = path
        self.known: dict[str, Any] = {"settings": settings, "models": {}}
        if path.exists():
            self.known = json.loads(path.read_text())
            differing = [key for key in settings if self.known["settings"].get(key) != settings[key]]
            if differing:
                sys.exit(f"{path} has another {', '.join(differing)}: move it away, or choose another --out")

    def has(self, model: str, peers: Iterable[str]) -> bool:
        return set(peers) <= set(self.known["models"].get(model, {}).get("peers", {}))

    def put(self, model: str, peers: Results, load: float) -> None:
        """Stores the results of a model, with the load of the machine before the measurement."""
        date = datetime.date.today().isoformat()
        self.known["models"][model] = {"date": date, "load_before": load, "peers": peers}
        new = self._path.with_suffix(".json.new")
        new.write_text(json.dumps(self.known, indent=1) + "\n")
        new.replace(self._path)


def ratios(models: dict[str, Any], measure: str) -> dict[str, dict[str, float]]:
    """{model: {peer: our time / its time}}, for models that both have run."""
    found = {}
    for model, entry in models.items():
        medians = {peer: got[measure]["median"] for peer, got in entry["peers"].items() if measure in got}
        ours = medians.pop(OURS, None)
        if ours is not None and medians:
            found[model] = {peer: ours / theirs for peer, theirs in medians.items()}
    return found


def fastest(row: dict[str, float]) -> str:
    """The fastest peer in a row of `ratios`."""
    return max(row, key=row.__getitem__)


def means(by_model: dict[str, dict[str, float]]) -> dict[str, tuple[float, int]]:
    """{peer: (geometric mean of `ratios`, number of models)}; 'fastest' stands for each model's fastest peer."""
    values: dict[str, list[float]] = {}
    for row in by_model.values():
        for peer, ratio in [*row.items(), ("fastest", row[fastest(row)])]:
            values.setdefault(peer, []).append(ratio)
    return {peer: (statistics.geometric_mean(each), len(each)) for peer, each in values.items()}


def table(models: dict[str, Any], peers: list[str], measure: str) -> list[str]:
    """Rows of a Markdown table: milliseconds, the fastest peer, and our time divided by its time."""
    by_model = ratios(models, measure)
    lines = [
        f"| model | batch | {' | '.join(peers)} | fastest other | {OURS} / fastest other |",
        f"|---|---|{'---|' * len(peers)}---|---|",
    ]
    for model, entry in models.items():
        cells = []
        for peer in peers:
            got = entry["peers"].get(peer, {}).get(measure)
            cells.append(f"{got['median']:.4g} ({got['q1']:.4g}–{got['q3']:.4g})" if got else "–")
        row = by_model.get(model)
        cells += [fastest(row), f"**{row[fastest(row)]:.2f}**"] if row else ["–", "–"]
        batch = 1 if measure == "infer_one" else WORKLOADS[model].batch
        lines.append(f"| `{model}` | {batch} | {' | '.join(cells)} |")
    found = means(by_model)
    cells = ["1" if p == OURS else f"{found[p][0]:.2f} ({found[p][1]})" if p in found else "–" for p in peers]
    cells += ["", f"**{found['fastest'][0]:.2f}** ({found['fastest'][1]})" if found else "–"]
    lines.append(f"| geometric mean of {OURS} / peer (number of models) | | {' | '.join(cells)} |")
    return lines


def said(models: dict[str, Any]) -> list[str]:
    """The results as lines for a terminal: geometric means for each measure, and each model's fastest peer."""
    lines = []
    for measure in MEASURES:
        by_model = ratios(models, measure)
        found = means(by_model)
        if not found:
            continue
        shown = ", ".join(f"{peer} {mean:.2f} ({count})" for peer, (mean, count) in found.items())
        lines.append(f"{measure}: geometric mean of {OURS} / peer (number of models): {shown}")
        for model, row in by_model.items():
            lines.append(f"  {model}: fastest other {fastest(row)}, {OURS} / peer {row[fastest(row)]:.2f}")
    return lines


def report(known: dict[str, Any]) -> str:
    """The Markdown page."""
    settings, models = known["settings"], known["models"]
    every = [peer for peer in PEERS if any(peer in entry["peers"] for entry in models.values())]
    peers = [p for p in every if any("parameters" in entry["peers"].get(p, {}) for entry in models.values())]
    dates = sorted({entry["date"] for entry in models.values()})
    found = [got for entry in models.values() for got in entry["peers"].values() if "versions" in got]
    versions = {name: version for got in found for name, version in got["versions"].items()}
    loads = [entry["load_before"] for entry in models.values()]
    devices = sorted({got["device"] for got in found})
    lines = [
        "# Speed against Keras and PyTorch",
        "",
        "Milliseconds, median (quartiles). The last column and the last row are jaxvit's time divided by the other's:",
        "below 1, jaxvit is faster. `benchmarks/against_peers.py` writes this page and describes the method. The other",
        "frameworks' models are in `benchmarks/peers`. They have equal parameters and, as `benchmarks.peers.check`",
        "shows, equal logits. jaxvit's step also computes metrics and norms; the others compute only the loss.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in settings["machine"].items()),
        f"| device | {', '.join(devices)} |",
        f"| precision | {'bfloat16, weights float32' if settings['amp'] else 'float32'} |",
        f"| versions | {', '.join(f'{name} {version}' for name, version in sorted(versions.items()))} |",
        *(f"| `{name}` | {value or 'not set'} |" for name, value in settings.get("environment", {}).items()),
        "| all frameworks | huge pages for the allocator, unless the environment sets them; float32 products on GPUs "
        "use TF32, the default of JAX and TensorFlow |",
        f"| date | {' to '.join(dict.fromkeys([dates[0], dates[-1]]))} |",
        f"| load before a model | {min(loads):g} to {max(loads):g} processes |",
        f"| rounds | {settings['rounds']}, {settings['seconds']:g} s for each measurement |",
    ]
    for measure, title in MEASURES.items():
        lines += ["", f"## {title}", "", *table(models, peers, measure)]
    lines += ["", "## First step, in seconds: compiling with an empty cache, and one step", ""]
    lines += [f"| model | {' | '.join(peers)} |", f"|---|{'---|' * len(peers)}"]
    for model, entry in models.items():
        first = [entry["peers"].get(peer, {}).get("first_step_s") for peer in peers]
        lines.append(f"| `{model}` | {' | '.join('–' if s is None else f'{s:.1f}' for s in first)} |")
    absent = [(m, p, got["none"]) for m, entry in models.items() for p, got in entry["peers"].items() if "none" in got]
    if absent:
        reasons: dict[tuple[str, str], list[str]] = {}
        for model, peer, why in absent:
            reasons.setdefault((peer, why), []).append(f"`{model}`")
        lines += ["", "## Not timed", ""]
        lines += [f"- {peer} ({why}): {', '.join(names)}" for (peer, why), names in reasons.items()]
    return "\n".join(lines) + "\n"


def write_csv(known: dict[str, Any], path: Path) -> None:
    """One row for each model, peer and measure."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["model", "peer", "measure", "batch", "median_ms", "q1_ms", "q3_ms", "count", "first_step_s"])
        for model, entry in known["models"].items():
            for peer, got in entry["peers"].items():
                for measure in MEASURES:
                    if measure in got:
                        batch = 1 if measure == "infer_one" else WORKLOADS[model].batch
                        times = [got[measure][key] for key in ("median", "q1", "q3", "count")]
                        rows.writerow([model, peer, measure, batch, *times, got["first_step_s"]])


def write_tables(known: dict[str, Any], page: Path) -> None:
    """The Markdown page, and the CSV file beside it."""
    page.write_text(report(known))
    write_csv(known, page.with_suffix(".csv"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(WORKLOADS), choices=tuple(WORKLOADS), metavar="NAME")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=tuple(PEERS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="duration of a measurement in a round")
    parser.add_argument("--amp", action="store_true", help="compute in bfloat16, keep weights in float32")
    parser.add_argument("--compile_mode", default="default", help="mode of torch.compile; 'reduce-overhead' suits GPUs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "RESULTS.md")
    options = parser.parse_args()

    settings = {key: getattr(options, key) for key in ("rounds", "seconds", "amp", "compile_mode")}
    settings["environment"] = {name: os.environ.get(name, "") for name in ("GLIBC_TUNABLES", "XLA_FLAGS")}
    store = Store(options.out.with_suffix(".json"), {**settings, "machine": machine()})
    words = (*(["--amp"] if options.amp else []), "--compile_mode", options.compile_mode)
    for model in options.models:
        if store.has(model, options.peers):
            print(f"{model}: known", flush=True)
            continue
        print(f"{model}:", flush=True)
        load = round(os.getloadavg()[0], 2)
        store.put(model, time_model(model, options.peers, options.rounds, options.seconds, words), load)
        write_tables(store.known, options.out)
    write_tables(store.known, options.out)
    print("\n".join(said({model: store.known["models"][model] for model in options.models})))
    print(f"written: {options.out}", flush=True)


if __name__ == "__main__":
    main()
