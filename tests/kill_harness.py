"""Kills a real run repeatedly at random times, and compares the result with an uninterrupted run.

    python tests/kill_harness.py --kills=50

Most kills wait until this start has begun to train, and then up to two epochs: they fall on steps, evaluations and
saves. One in five comes at any moment of the start before. After every kill: the newest finished checkpoint and the
best that it names can be read. In the end: the same result and the same metrics, line by line and to the last digit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxvit.files import read_json

HERE = Path(__file__).parent
# Epochs of 38 steps, so that there is training between the saves; all writers that need nothing else are on.
SETTINGS = {
    "data__train": "train[:600]",
    "data__validation": "train[600:630]",
    "checkpoint__every": "12 steps",
    "log__every": "5 steps",
    "optim__ema_decay": 0.9,
}
EPOCHS_A_KILL = 3  # so that a run is not at its end before all kills have fallen


def train_process(workdir: Path, settings: dict[str, Any], duration: str, devices: int = 1) -> subprocess.Popen:
    """A real training process on the tiny config."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    file = workdir.parent / f"{workdir.name}_config.py"
    changes = {**settings, "train__duration": duration, "optim__schedule": "constant", "optim__warmup": "0 steps"}
    file.write_text(
        f"import sys; sys.path.insert(0, {str(HERE)!r})\nfrom tiny import tiny_config\n"
        f"def get_config(): return tiny_config(**{changes!r})\n"
    )
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(HERE.parent),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-m", "jaxvit", "train", f"--config={file}", f"--workdir={workdir}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def check_checkpoints(workdir: Path) -> None:
    """Raises if the newest finished checkpoint or the best one that it names is incomplete."""
    import orbax.checkpoint as ocp

    folder = workdir / "checkpoints"
    steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []
    if not steps:
        return
    best = json.loads((folder / str(steps[-1]) / "metrics" / "metrics").read_text())["best_step"]
    assert best in steps or best == -1, f"step {steps[-1]} names {best} as the best, and there are {steps}"
    for step in {steps[-1], best} - {-1}:
        with ocp.StandardCheckpointer() as reader:
            reader.restore(folder / str(step) / "state")


def run_harness(folder: Path, kills: int, seed: int, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Trains once uninterrupted and once with kills; returns what happened and whether the results are equal."""
    chance = random.Random(seed)
    whole, killed = folder / "whole", folder / "killed"
    duration = f"{EPOCHS_A_KILL * kills + 2} epochs"
    say(f"an untouched run of {duration}")
    _, err = train_process(whole, SETTINGS, duration).communicate()
    assert (whole / "result.json").exists(), err
    seconds = json.loads((whole / "result.json").read_text())["seconds"]
    epoch = (seconds["train"] + seconds["eval"] + seconds["save"]) / (EPOCHS_A_KILL * kills + 2)
    fell, start_up = Counter(), 5.0
    while sum(fell.values()) < kills:
        starts, left = _starts(killed), _unfinished(killed)
        started = time.monotonic()
        process = train_process(killed, SETTINGS, duration)
        if sum(fell.values()) % 5 == 4:
            _wait(process, lambda: False, chance.uniform(0.0, start_up))
        else:
            # Its own entry is what a start writes last before it trains.
            _wait(process, lambda starts=starts: _starts(killed) > starts, 600.0)
            start_up = time.monotonic() - started
            _wait(process, lambda: False, chance.uniform(0.0, 2 * epoch))
        if process.poll() is not None:
            out, err = process.communicate()
            raise AssertionError(f"exit {process.returncode} after {dict(fell)}: {out[-500:]}{err[-500:]}")
        process.kill()
        process.communicate()
        saving = _unfinished(killed) - left
        where = "saving" if saving else "training" if _starts(killed) > starts else "before the first step"
        fell[where] += 1
        check_checkpoints(killed)
        say(f"kill {sum(fell.values())} of {kills}: newest checkpoint {_newest(killed)}, {where}")
    process = train_process(killed, SETTINGS, duration)
    _, err = process.communicate()
    assert process.returncode == 0, err
    results = [read_json(d / "result.json") for d in (whole, killed)]
    for result in results:
        result.pop("seconds")
    lines = [(d / "metrics.jsonl").read_text() for d in (whole, killed)]
    differing = [key for key in results[0] if results[0][key] != results[1].get(key)]
    return {
        "kills": sum(fell.values()),
        "fell": dict(fell),
        "starts that reached training": _starts(killed),
        "seconds an epoch": round(epoch, 3),
        "equal": results[0] == results[1] and lines[0] == lines[1],
        "different in the result": differing,
        "metrics lines": lines[0].count("\n"),
    }


def _wait(process: subprocess.Popen, until: Callable[[], bool], seconds: float) -> None:
    """Waits until a condition is true, the process has ended, or a timeout."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None and not until():
        time.sleep(min(0.005, max(end - time.monotonic(), 0.0)))


def _starts(workdir: Path) -> int:
    file = workdir / "environment.json"
    return len(json.loads(file.read_text())["starts"]) if file.exists() else 0


def _unfinished(workdir: Path) -> set[tuple[str, int]]:
    """Interrupted saves, identified by the creation time of the folder; it remains until the step is saved again."""
    return {(p.name, p.stat().st_ino) for p in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")}


def _newest(workdir: Path) -> int:
    folder = workdir / "checkpoints"
    return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0) if folder.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        report = run_harness(Path(folder), options.kills, options.seed, lambda line: print(line, flush=True))
    print(json.dumps({**report, "seconds": round(time.monotonic() - started)}))
    sys.exit(0 if report["equal"] else 1)


if __name__ == "__main__":
    main()
