"""Kills a real run at random moments, again and again, and compares what comes out with a run that nobody touched.

    python tests/kill_harness.py --kills=50

After every kill: the newest finished checkpoint and the best that it names can be read. In the end: the same result
and the same metrics, line by line and to the last digit.
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
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Long enough that kills spread over training, evaluation and saving; a save every other step and an epoch of four.
SETTINGS = {
    "checkpoint__every": "2 steps",
    "log__every": "2 steps",
    "optim__ema_decay": 0.9,
    "log__writers": ("jsonl",),
}


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
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-m", "jaxvit.train", f"--config={file}", f"--workdir={workdir}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def check_checkpoints(workdir: Path) -> None:
    """Raises unless the newest finished checkpoint and the best that it names are whole."""
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


def run_harness(folder: Path, kills: int, seed: int, duration: str = "10 epochs") -> dict[str, Any]:
    """Trains once untouched and once under kills; returns what happened and whether the two are equal."""
    chance = random.Random(seed)
    whole, killed = folder / "whole", folder / "killed"
    _, err = train_process(whole, SETTINGS, duration).communicate()
    assert (whole / "result.json").exists(), err
    first_line = _seconds_until(killed, duration)
    done, finished_early = 0, 0
    while done < kills:
        process = train_process(killed, SETTINGS, duration)
        try:
            # From before the first step to after the last.
            process.communicate(timeout=chance.uniform(0.5, 1.3) * first_line)
            if process.returncode == 0:  # it came to its end first: take the result away and go on killing
                finished_early += 1
                _forget_the_end(killed)
                continue
            raise AssertionError(f"exit {process.returncode}")
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        done += 1
        check_checkpoints(killed)
    process = train_process(killed, SETTINGS, duration)
    _, err = process.communicate()
    assert process.returncode == 0, err
    results = [json.loads((d / "result.json").read_text()) for d in (whole, killed)]
    for result in results:
        result.pop("seconds")
    lines = [(d / "metrics.jsonl").read_text() for d in (whole, killed)]
    starts = len(json.loads((killed / "environment.json").read_text())["starts"])
    return {
        "kills": done,
        "starts that reached training": starts,
        "came to the end before the kill": finished_early,
        "equal": results[0] == results[1] and lines[0] == lines[1],
        "metrics lines": lines[0].count("\n"),
    }


def _seconds_until(workdir: Path, duration: str) -> float:
    """How long a start takes until it has trained a little, measured once and then undone by the kill."""
    started = time.monotonic()
    process = train_process(workdir, SETTINGS, duration)
    while not (workdir / "metrics.jsonl").exists() or (workdir / "metrics.jsonl").stat().st_size < 400:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    return time.monotonic() - started


def _forget_the_end(workdir: Path) -> None:
    """Back to the start: without result and checkpoints, the run has all of its way to go again."""
    import shutil

    (workdir / "result.json").unlink()
    for checkpoint in (workdir / "checkpoints").iterdir():
        shutil.rmtree(checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        report = run_harness(Path(folder), options.kills, options.seed)
    print(json.dumps({**report, "seconds": round(time.monotonic() - started)}))
    sys.exit(0 if report["equal"] else 1)


if __name__ == "__main__":
    main()
