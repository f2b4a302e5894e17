"""How a driver talks with the processes that it times.

Frameworks cannot share a process, so each model of each framework runs in a worker of its own. All workers of a model
are alive together and are timed turn by turn. A worker reads a command a line and answers with a JSON object a line:

| command | answer |
|---|---|
| (at the start) | `{"peer", "model", "parameters", "device", "versions", "prepare_s", "first_step_s"}` |
| `train 5` | `{"ms": [five numbers], "loss": of the last step}` |
| `infer 1 5` | `{"ms": [five numbers]}`, batches of one image |
| `quit` | none; the process ends |

A failure is answered with `{"error": "one line"}`. A worker whose framework is not installed says `missing: NAME` in
place of its first answer and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from .workloads import Workload

MISSING = "missing: "
ROOT = Path(__file__).resolve().parents[2]


class MissingPackageError(Exception):
    """The framework of a peer is not installed; its argument is the package's name."""


class Peer(Protocol):
    """A framework that runs a workload. `name` is what the command line calls it."""

    name: str

    def prepare(self, workload: Workload) -> None:
        """Makes the model, the optimizer's state and one batch of data, all where the steps will want them."""

    def parameters(self) -> int:
        """Trainable numbers of the model."""

    def train_step(self) -> Any:
        """One step: forward, backward, update. Returns when it is done, with the loss as something float() takes."""

    def infer(self, batch: int) -> Any:
        """Logits of a batch of so many images, without noise. Returns when they are there."""

    def device(self) -> str:
        """What it runs on, in words."""

    def versions(self) -> dict[str, str]:
        """The framework's version, and those of what it stands on."""


def milliseconds(run: Callable[[], Any], count: int) -> tuple[list[float], Any]:
    """Times of `count` runs one after the other, and the last result."""
    times, result = [], None
    for _ in range(count):
        began = time.perf_counter()
        result = run()
        times.append(round(1e3 * (time.perf_counter() - began), 4))
    return times, result


def serve(peer: Peer, commands: TextIO, answers: TextIO) -> None:
    """Answers commands until 'quit' or the end of the input."""
    for line in commands:
        words = line.split()
        if words == ["quit"]:
            return
        try:
            answer = _answer(peer, words)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)


def _answer(peer: Peer, words: list[str]) -> dict[str, Any]:
    match words:
        case ["train", count]:
            times, loss = milliseconds(peer.train_step, int(count))
            return {"ms": times, "loss": float(loss)}
        case ["infer", batch, count]:
            return {"ms": milliseconds(lambda: peer.infer(int(batch)), int(count))[0]}
    return {"error": f"no command {' '.join(words)!r}; there are 'train N', 'infer BATCH N', 'quit'"}


class WorkerError(Exception):
    """A worker could not do what it was told; its argument says why in a line."""


class Worker:
    """The driver's end of a worker process. To be used in a with statement.

    Args:
      peer, model: what it runs.
      options: further words of its command line.
      variables: of its environment, in place of this process's.

    Raises:
      MissingPackageError: the peer's framework is not installed.
      WorkerError: it did not start.
    """

    def __init__(
        self, peer: str, model: str, options: tuple[str, ...] = (), variables: Mapping[str, str] | None = None
    ):
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        # A compiled program kept from an earlier run would hide what compiling costs.
        self._kept = tempfile.TemporaryDirectory(prefix="jaxvit-peer-", ignore_cleanup_errors=True)
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | dict(variables or {})
        environment["TORCHINDUCTOR_CACHE_DIR"] = self._kept.name
        # As `jaxvit` starts itself where Linux waits to be asked for huge pages; for all of them alike.
        environment.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.worker", "--peer", peer, "--model", model, *options],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            self.start = self._read()
        except BaseException:
            self.close()
            raise

    def ask(self, command: str) -> dict[str, Any]:
        """Sends a command and waits for the answer.

        Raises:
          WorkerError: it failed.
        """
        with contextlib.suppress(BrokenPipeError):  # it has ended: reading says so
            print(command, file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if line.startswith(MISSING):
            raise MissingPackageError(line.removeprefix(MISSING).strip())
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            last = next((said for said in reversed(self._log.read().splitlines()) if said.strip()), "no message")
            raise WorkerError(f"ended with code {code}: {last.strip()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()
        self._kept.cleanup()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
