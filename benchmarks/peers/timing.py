"""The protocol between the driver and the worker processes that it times.

Frameworks cannot share a process, so each framework runs each model in its own worker. All workers of a model are alive
at the same time and are timed in turns. A worker reads one command per line and answers with one JSON object per line:

| command | answer |
|---|---|
| (at the start) | `{"peer", "model", "parameters", "device", "versions", "prepare_s", "first_step_s"}` |
| `train 5` | `{"ms": [five numbers], "loss": of the last step}` |
| `infer 1 5` | `{"ms": [five numbers]}`, batches of one image |
| `quit` | none; the process ends |

On failure, the answer is `{"error": "one line"}`. A worker whose framework is not installed prints `missing: NAME`
instead of its first answer and exits.
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
    """A framework that runs a workload. `name` is its name on the command line."""

    name: str

    def prepare(self, workload: Workload) -> None:
        """Creates the model, the optimizer state and one batch of data, on the device."""

    def parameters(self) -> int:
        """Number of trainable parameters."""

    def train_step(self) -> Any:
        """Runs one step: forward, backward, update. Blocks until done; returns the loss, convertible by float()."""

    def infer(self, batch: int) -> Any:
        """Logits of a batch, without dropout. Blocks until done."""

    def device(self) -> str:
        """Description of the device."""

    def versions(self) -> dict[str, str]:
        """Versions of the framework and its main dependencies."""


def milliseconds(run: Callable[[], Any], count: int) -> tuple[list[float], Any]:
    """Times of `count` consecutive calls, and the last result."""
    times, result = [], None
    for _ in range(count):
        began = time.perf_counter()
        result = run()
        times.append(round(1e3 * (time.perf_counter() - began), 4))
    return times, result


def serve(peer: Peer, commands: TextIO, answers: TextIO) -> None:
    """Answers commands until 'quit' or end of input."""
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
    """A command failed; the argument is a one-line reason."""


class Worker:
    """A worker process, as seen by the driver. Use it in a with statement.

    Args:
      peer, model: framework and model.
      options: further arguments of the worker.
      variables: environment variables that override this process's.

    Raises:
      MissingPackageError: the peer's framework is not installed.
      WorkerError: the worker did not start.
    """

    def __init__(
        self, peer: str, model: str, options: tuple[str, ...] = (), variables: Mapping[str, str] | None = None
    ):
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        # No compilation caches: they would hide the compile time.
        self._kept = tempfile.TemporaryDirectory(prefix="jaxvit-peer-", ignore_cleanup_errors=True)
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | dict(variables or {})
        environment["TORCHINDUCTOR_CACHE_DIR"] = self._kept.name
        # Huge pages for all frameworks, as in the jaxvit command.
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
          WorkerError: the command failed.
        """
        with contextlib.suppress(BrokenPipeError):  # the worker has exited: `_read` reports it
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
