"""Runs of several processes: joining, work on one process or on all, common errors, leaving.

Every process runs the same program on its own devices. Only process 0 reads and writes the run folder, and it
broadcasts what it reads. An error of any process outside the training loop is raised on all of them, so that no process
waits for one that has ended.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from jaxvit.errors import (
    USAGE,
    DamagedCheckpointError,
    RunFailedError,
    UsageError,
    describe_system_error,
    find_system_error,
    first_line,
)

T = TypeVar("T")

HEARTBEAT_SECONDS = 30  # a process without a heartbeat for this long counts as lost
JOIN_SECONDS = 120
LEAVE_SECONDS = 300  # long enough for process 0 to close a writer that still uploads

LOST = (
    "another process of this run has ended or cannot be reached; what was saved is kept. Start all of them again, with "
    "the same commands"
)

_GONE = re.compile(
    "gloo|connection (closed|reset)|socket closed|coordination|nccl|another task died|heartbeat|peer", re.IGNORECASE
)
_FIRST_BYTES = 2000  # bytes of a message in the first exchange; a second one sends the rest
# Errors that keep their type on all processes. The kind of a message is 1 + the index here, or 0 for no error.
_AGREED_TYPES = (UsageError, DamagedCheckpointError, RunFailedError)


def join(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the processes of a run. Call it before JAX starts a device.

    If the others do not join within JOIN_SECONDS, the process ends with a one-line message and exit code 2.

    Args:
      coordinator: HOST:PORT of process 0; '' = take all three arguments from the environment of the cluster (SLURM,
        Open MPI, Cloud TPU, Kubernetes).
      num_processes: number of processes.
      process_id: index of this process, from 0.

    Raises:
      UsageError: the address of process 0 is unknown or cannot be used.
    """
    if coordinator:
        _check_address(coordinator, num_processes, process_id)
    watch = threading.Timer(JOIN_SECONDS, _give_up)
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator or None,
            num_processes=num_processes if coordinator else None,
            process_id=process_id if coordinator else None,
            initialization_timeout=JOIN_SECONDS + 60,  # JAX aborts after this, so it is longer than our own timeout
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=LEAVE_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise UsageError(_why_not_joined(error, coordinator)) from None
    finally:
        watch.cancel()
    if not is_first():
        sys.stdout = Path(os.devnull).open("w")  # only process 0 prints  # noqa: SIM115


def _check_address(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not (re.fullmatch(r"\S+", host) and re.fullmatch("[0-9]+", port)):
        raise UsageError(f"--coordinator={coordinator}: write it as HOST:PORT, such as node0:9755")
    if not 1 <= int(port) < 65536:
        raise UsageError(f"--coordinator={coordinator}: a port is a number from 1 to 65535")
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise UsageError(
            f"--num_processes={num_processes} --process_id={process_id}: --coordinator needs the number of "
            "processes and the index of this one, from 0"
        )
    if process_id == 0:
        reason = _why_not_ours(int(port))
        if reason:
            raise UsageError(f"--coordinator={coordinator}: {reason}; give all processes another one")


def _why_not_ours(port: int) -> str:
    """Says why process 0 cannot listen on a port, where JAX would crash; '' if no reason is known."""
    for family in (socket.AF_INET6, socket.AF_INET):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a socket of an earlier start may linger
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                probe.bind(("", port))
                return ""
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"port {port} is in use on this machine"
            if error.errno == errno.EACCES:
                return f"port {port} is not open to this user"
    return ""


def _give_up() -> None:
    os.write(2, f"jaxvit: {_not_found()}\n".encode())
    os._exit(USAGE)


def _not_found() -> str:
    return (
        f"the processes did not find each other within {JOIN_SECONDS} s; start all of them, each with its own "
        "--process_id, and check that they can reach the coordinator's port"
    )


def _why_not_joined(error: Exception, coordinator: str) -> str:
    if "before any JAX calls" in str(error) or "only be called once" in str(error):
        return f"a process must join the others once, before JAX starts a device ({_line(error)})"
    if isinstance(error, RuntimeError):
        return f"{_not_found()} ({_line(error)})"
    if coordinator:
        return f"--coordinator={coordinator}: {_line(error)}"
    if "must be defined" in str(error) or "should be defined" in str(error):
        return (
            "--distributed: found no environment of a cluster (SLURM, Open MPI, Cloud TPU, Kubernetes); give "
            f"--coordinator=HOST:PORT --num_processes=N --process_id=I ({_line(error)})"
        )
    return f"--distributed: the cluster's environment cannot be used ({_line(error)})"


def count() -> int:
    """Returns the number of processes of this run."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this is process 0, which writes."""
    return jax.process_index() == 0


def on_first(work: Callable[[], T]) -> T | None:
    """Runs `work` on process 0 and returns its result there, None elsewhere; all processes wait and raise its error."""
    return on_all(work if is_first() else lambda: None)


def broadcast_from_first(work: Callable[[], T]) -> T:
    """Runs `work` on process 0 and broadcasts its result, a JSON value; all processes raise its error."""
    if count() == 1:
        return work()
    return json.loads(_agree(lambda: json.dumps(work()) if is_first() else "")[0])


def on_all(work: Callable[[], T]) -> T:
    """Runs `work` on every process and returns each process's own result; if one fails, all raise its error.

    Calls may be nested: an error that all processes have raised already is not sent again.
    """
    if count() == 1:
        return work()
    value: list[T] = []
    _agree(lambda: value.append(work()) or "")
    return value[0]


def gather_strings(work: Callable[[], str]) -> list[str]:
    """Runs `work` on every process and returns all results, by process; if one fails, all raise its error."""
    return [work()] if count() == 1 else _agree(work)


def _agree(work: Callable[[], str]) -> list[str]:
    """Runs `work` on every process. Returns all results, by process, or raises the error of the first that failed."""
    said, kind, error = "", 0, None
    try:
        said = work()
    except Exception as found:
        if is_agreed(found) or has_lost_another(found):
            raise
        error = found
        if type(found) not in _AGREED_TYPES and (failed := find_system_error(found)):
            error = RunFailedError(describe_system_error(failed, "; what was saved is kept"))
        known = type(error) in _AGREED_TYPES
        kind = 1 + _AGREED_TYPES.index(type(error) if known else RunFailedError)
        said = str(error) if known else f"{type(error).__name__}: {_line(error)}"
    messages = _exchange(kind, said)
    for index, (kind, text) in enumerate(messages):
        if kind:
            if index != jax.process_index() or error is None:
                error = _AGREED_TYPES[kind - 1](f"process {index}: {text}")
            error.agreed = True
            raise error
    return [text for _, text in messages]


def _exchange(kind: int, text: str) -> list[tuple[int, str]]:
    """Sends a message to all processes and returns the messages of all, by process."""
    # Imported here, because it starts the devices.
    from jax.experimental.multihost_utils import process_allgather

    said = text.encode()
    head = np.zeros(5 + _FIRST_BYTES, np.uint8)
    head[:5] = np.frombuffer(bytes([kind]) + len(said).to_bytes(4, "little"), np.uint8)
    head[5 : 5 + len(said)] = np.frombuffer(said[:_FIRST_BYTES], np.uint8)
    heads = [bytes(row) for row in process_allgather(head).reshape(count(), -1)]
    lengths = [int.from_bytes(row[1:5], "little") for row in heads]
    rests = [b""] * len(heads)
    longest = max(lengths) - _FIRST_BYTES
    if longest > 0:
        rest = np.zeros(longest, np.uint8)
        rest[: max(0, len(said) - _FIRST_BYTES)] = np.frombuffer(said[_FIRST_BYTES:], np.uint8)
        rests = [bytes(row) for row in process_allgather(rest).reshape(count(), -1)]
    return [
        (row[0], (row[5:] + rest)[:length].decode()) for row, rest, length in zip(heads, rests, lengths, strict=True)
    ]


def is_agreed(error: BaseException | None) -> bool:
    """Whether all processes have raised this error, or one that caused it."""
    while error is not None:
        if getattr(error, "agreed", False):
            return True
        error = error.__cause__
    return False


def has_lost_another(error: BaseException) -> bool:
    """Whether an error means that another process has ended."""
    if not is_joined():
        return False
    ours = isinstance(error, (UsageError, RunFailedError))
    return LOST in str(error) or bool(not ours and _GONE.search(str(error)))


def is_joined() -> bool:
    """Whether this process has joined a run of several processes and has not left it."""
    return jax.distributed.is_initialized()


def leave() -> None:
    """Disconnects from the other processes at the same time as they do, so that none reports another as failed."""
    if is_joined():
        try:
            jax.distributed.shutdown()
        except Exception as error:  # the others have ended already
            print(f"jaxvit: left without the other processes ({_line(error)})", file=sys.stderr)


def _line(error: BaseException) -> str:
    return first_line(error)[:200]
