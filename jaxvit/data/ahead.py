"""Makes batches ahead of their use, in order: in Grain's threads, or in its processes.

Pillow releases Python's lock while it decodes, so threads use several cores; the rest of the work limits them to about
`THREADS_SCALE_TO` cores. Processes have no such limit, but each takes seconds to start and some memory, and has to send
its batches.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import pickle
import signal
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from jaxvit.data.decoding import Damage, DamageReport
from jaxvit.errors import RunFailedError, UsageError

Batch = dict[str, np.ndarray]

BATCHES = 4  # fewest batches to prefetch; bounds the memory
MOST_THREADS = 16
THREADS_SCALE_TO = 4  # a quarter of the work needs the lock, so that more cores wait for it


class Decoder(Protocol):
    """A split that is decoded as it is read, see `jaxvit.data.parts.StreamedSource`."""

    damage: Damage


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_for(wanted: int = 0) -> int:
    """Number of threads to prefetch with: `wanted`, or, if it is 0, one for each core, at most 16."""
    return wanted or max(1, min(MOST_THREADS, cores()))


def processes_for(workers: int) -> int:
    """Number of processes for a value of `data.workers`; 0 = use threads.

    Args:
      workers: the number; 0 = threads on up to 4 cores, else a process for each core; -1 = threads.
    """
    return max(workers, 0) if workers else cores() if cores() > THREADS_SCALE_TO else 0


def in_threads(make: Callable[[int], Any], start: int, stop: int, threads: int = 0) -> Iterator[Any]:
    """Yields ``make(start)``, …, ``make(stop - 1)``, computed ahead by threads.

    Args:
      make: safe to call from several threads at once.
      start, stop: range of its arguments.
      threads: number of threads; 0 = one for each core, at most 16.
    """
    import grain

    threads = threads_for(threads)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(BATCHES, threads))
    return iter(grain.MapDataset.range(start, stop).map(make).to_iter_dataset(options))


def in_processes(
    make: Callable[[int], Batch], source: Decoder, start: int, stop: int, processes: int
) -> Iterator[Batch]:
    """Yields ``make(start)``, …, ``make(stop - 1)``, computed ahead by processes.

    Images that cannot be decoded are reported to `source.damage` of this process, as if it had decoded them.

    Args:
      make: can be pickled; decodes with `source`, which it holds.
      source: the split.
      start, stop: range of the arguments of `make`.
      processes: number of processes.

    Raises:
      RunFailedError: an image cannot be decoded and is not to be skipped, or a process ends by itself.
      UsageError: the split cannot be sent to other processes.
    """
    _close_at_exit()
    batches = _in_processes(make, source, start, stop, processes)
    _open.add(batches)
    return batches


_open: weakref.WeakSet[Generator[Batch, None, None]] = weakref.WeakSet()


@functools.cache
def _close_at_exit() -> None:
    import multiprocessing.util  # its own function at exit ends processes too, and has to run after ours

    del multiprocessing
    atexit.register(_close_all)


@contextlib.contextmanager
def ending_processes() -> Iterator[None]:
    """Ends the processes of all streams after the block: a command that fails leaves without Python's own clean-up."""
    try:
        yield
    finally:
        _close_all()


def _close_all() -> None:
    """Ends the processes before Python takes the modules apart that this needs."""
    for batches in list(_open):
        with contextlib.suppress(ValueError):  # another thread is just using it
            batches.close()


def _in_processes(
    make: Callable[[int], Batch], source: Decoder, start: int, stop: int, processes: int
) -> Generator[Batch, None, None]:
    import grain
    from absl import flags

    processes = max(1, min(processes, stop - start))
    work = _Reporting(make, source)
    try:
        pickle.dumps(work)
    except Exception as error:
        raise UsageError(
            f"config.data.workers: this data set cannot be sent to other processes ({type(error).__name__}); set it to "
            "-1, which decodes in threads"
        ) from None
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads flags, which only absl.app parses
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    dataset = grain.MapDataset.range(start, stop).map(work).to_iter_dataset(options)
    ahead = iter(
        dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=processes, per_worker_buffer_size=1),
            worker_init_fn=partial(_start_worker, os.getpid()),
        )
    )
    with contextlib.closing(ahead):
        try:
            with _without_main():  # the first batch of each process: afterwards all have started
                first = list(itertools.islice(ahead, processes))
            for element in itertools.chain(first, ahead):
                yield _received(element, source.damage)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise RunFailedError(
                "a process that decodes images ended by itself, perhaps for lack of memory; start again with fewer "
                "(--config.data.workers), or with threads (--config.data.workers=-1)"
            ) from error


@dataclass(frozen=True)
class _Element:
    """A batch from another process. Grain sends it through a pipe; arrays that it sees it puts into shared memory.

    (Containers often have only 64 MB of shared memory, and Grain 0.2.18 leaves some behind when a stream ends early.)

    Attributes:
      batch: the batch; {} if there is an error.
      report: the damage that is new since the process's last batch.
      error: an exception that the batch ended with; None = none.
    """

    batch: Batch
    report: DamageReport
    error: Exception | None = None


class _Reporting:
    """Calls `make` in another process, and packs the result with the damage that it found."""

    def __init__(self, make: Callable[[int], Batch], source: Decoder):
        self._make, self._source = make, source

    def __call__(self, i: int) -> _Element:
        damage = self._source.damage
        damage.announced = 0  # the main process announces it
        try:
            batch = self._make(i)
        except (RunFailedError, UsageError) as error:
            return _Element({}, damage.new_report(), error)
        return _Element(batch, damage.new_report())


def _received(element: _Element, damage: Damage) -> Batch:
    damage.take_report(element.report)
    if element.error:
        raise element.error
    return element.batch


def _start_worker(parent: int, index: int, count: int) -> None:
    """Prepares a process that decodes: it leaves signals and the accelerator to the main process, and ends with it."""
    del index, count
    # Ctrl-C, a closed terminal and a scheduler reach all processes. The main one still needs batches until it has
    # saved its state, and then ends the others (Grain kills them).
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    import jax

    jax.config.update("jax_platforms", "cpu")

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(0)  # the main process was killed

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hides the main module while processes start, which would run it again: a script would train once more."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
