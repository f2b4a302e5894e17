"""Several processes that are one run: joining, doing something once for all, failing together, leaving.

Every process runs the same program on its own devices. Process 0 alone writes; what it finds out about a run's folder,
and any error of any process before the training, reaches all of them, so that none waits for one that has gone.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from jaxvit.errors import RunFailedError, UsageError

T = TypeVar("T")

# A process that is killed closes its connections, which the others see at once; these are for machines that vanish.
HEARTBEAT_SECONDS = 30
JOIN_SECONDS = 120
LEAVE_SECONDS = 10

LOST = (
    "another process of this run has ended or cannot be reached; what was saved is kept. Start all of them again, with "
    "the same commands"
)

_MESSAGE_BYTES = 2000
_GONE = re.compile(
    "gloo|connection (closed|reset)|socket closed|coordination|nccl|another task died|heartbeat|peer", re.IGNORECASE
)


def join(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the processes of a run; to be called before the first use of a device.

    Args:
      coordinator: HOST:PORT of process 0; '' takes all three from the cluster's own environment (SLURM, Open MPI,
        Cloud TPU, Kubernetes).
      num_processes: how many there are.
      process_id: which this one is, from 0.

    Raises:
      UsageError: nothing says where the others are, or they did not come.
    """
    given = {"coordinator_address": coordinator or None}
    if coordinator:
        if not re.fullmatch(r"\S+:\d+", coordinator):
            raise UsageError(f"--coordinator={coordinator}: write it as HOST:PORT, such as node0:9755")
        if num_processes < 1 or not 0 <= process_id < num_processes:
            raise UsageError(
                f"--num_processes={num_processes} --process_id={process_id}: with --coordinator, say how many "
                "processes there are and which this one is, from 0"
            )
        given |= {"num_processes": num_processes, "process_id": process_id}
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=LEAVE_SECONDS,
        )
    except ValueError as error:
        raise UsageError(
            "--distributed: no cluster's environment was recognised (SLURM, Open MPI, Cloud TPU, Kubernetes); give "
            f"--coordinator=HOST:PORT --num_processes=N --process_id=I ({_line(error)})"
        ) from None
    except RuntimeError as error:
        raise UsageError(
            f"the processes did not find each other within {JOIN_SECONDS} s ({_line(error)}); start all of them, "
            "each with its own --process_id, and see that they reach the coordinator's port"
        ) from None
    if not is_first():
        sys.stdout = Path(os.devnull).open("w")  # what is printed once is printed by process 0  # noqa: SIM115


def count() -> int:
    return jax.process_count()


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def first(work: Callable[[], T]) -> T | None:
    """What process 0 alone does; the others wait for it and get None. Its error is everybody's."""
    return everywhere(work if is_first() else lambda: None)


def everywhere(work: Callable[[], T]) -> T:
    """What each process does; if one of them fails, all raise its error, and nobody waits for it later on."""
    if count() == 1:
        return work()
    value, error = None, None
    try:
        value = work()
    except (UsageError, RunFailedError) as found:
        error = found
    said = np.zeros(1 + _MESSAGE_BYTES, np.uint8)
    if error is not None:
        text = str(error).encode()[:_MESSAGE_BYTES]
        said[0] = 1 if isinstance(error, UsageError) else 2
        said[1 : 1 + len(text)] = np.frombuffer(text, np.uint8)
    # Imported here: it starts devices.
    from jax.experimental import multihost_utils

    for index, (kind, *letters) in enumerate(multihost_utils.process_allgather(said).reshape(count(), -1)):
        if kind:
            if index == jax.process_index():
                raise error
            text = bytes(letters).rstrip(b"\0").decode(errors="ignore")
            raise (UsageError if kind == 1 else RunFailedError)(f"process {index}: {text}")
    return value  # type: ignore[return-value]


def has_lost_another(error: BaseException) -> bool:
    """Whether an error of the device says that another process has gone."""
    return count() > 1 and bool(_GONE.search(str(error)))


def leave() -> None:
    """Leaves together with the others, so that none takes it for a failure; a single process has nothing to do."""
    if jax.distributed.is_initialized():
        try:
            jax.distributed.shutdown()
        except Exception as error:  # the others have gone already
            print(f"jaxvit: left without the other processes ({_line(error)})", file=sys.stderr)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
