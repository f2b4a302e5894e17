"""Measures how fast images that are too large to be kept decoded reach the training loop, against a bare loop.

    python benchmarks/decoding.py OUT                       500×375 JPEGs to 224×224, from a folder, tar and Parquet
    python benchmarks/decoding.py OUT --pixels=1200 --images=256

The bare loop decodes bytes in memory with `jaxvit.data.decoding.decode`, in one process for each core, and does nothing
else, so its speed is the most that the cores can decode. The streams are those of training (`StreamFeed`, batch 16),
with threads and with processes. Bare loop and streams take turns, so that other work on the machine slows both alike.
The table has medians over the turns, OUT/decoding.json all of them. The second share compares images per second of CPU
time, which other work on the machine changes little; it shows the cost of a stream, but not whether it uses all cores.
`load` is the machine's load average over one minute, before the first turn.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import statistics
import sys
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from jaxvit.data import stored
from jaxvit.data.ahead import cores
from jaxvit.data.batches import TrainOrder
from jaxvit.data.decoding import decode
from jaxvit.data.feed import StreamFeed
from jaxvit.data.sources import open_dataset
from jaxvit.files import write_json

CLASSES, BATCH, SIDE = 4, 16, 224


def photo(number: int, pixels: int) -> bytes:
    """A JPEG of quality 90 with the frequencies of a photo: noise whose strength falls with the frequency."""
    rng = np.random.default_rng(number)
    height, width = pixels * 3 // 4, pixels
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    strength = 1 / np.maximum(frequency, 1 / width)
    spectrum = strength[..., None] * np.exp(2j * np.pi * rng.random((*strength.shape, 3)))
    image = np.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))
    image = 128 + 45 * (image - image.mean()) / image.std()
    file = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=90)
    return file.getvalue()


def make_sets(folder: Path, images: int, pixels: int) -> dict[str, str]:
    """Writes the same images as a folder, as tar shards and as Parquet; returns {layout: name of the data set}."""
    names = {
        "folder": f"image_folder:{folder / 'folder'}",
        "tar": f"tar:{folder / 'tar'}/*.tar",
        "parquet": f"parquet:{folder / 'parquet'}/*.parquet",
    }
    if folder.exists():
        return names
    import pyarrow as pa
    import pyarrow.parquet as pq

    with multiprocessing.get_context("spawn").Pool(cores()) as pool:
        data = pool.starmap(photo, [(i, pixels) for i in range(images)])
    for number, one in enumerate(data):
        file = folder / "folder" / "train" / f"class{number % CLASSES}" / f"{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(one)
    for kind in ("tar", "parquet"):
        (folder / kind).mkdir()
    shards = 4
    for shard in range(shards):
        own = range(shard, images, shards)
        with tarfile.open(folder / "tar" / f"train-{shard}.tar", "w") as archive:
            for number in own:
                for ending, content in (("jpg", data[number]), ("cls", str(number % CLASSES).encode())):
                    info = tarfile.TarInfo(f"{number:05d}.{ending}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        rows = [{"bytes": data[number], "path": f"{number:05d}.jpg"} for number in own]
        table = pa.table({"image": rows, "label": [number % CLASSES for number in own]})
        pq.write_table(table, folder / "parquet" / f"train-{shard:05d}-of-{shards:05d}.parquet", row_group_size=100)
    return names


def decode_all(files: list[bytes]) -> None:
    """The bare loop."""
    for data in files:
        decode(data, 3, (SIDE, SIDE))


class Bare:
    """The bare loop in one process for each core. The processes stay, and keep the bytes of their images."""

    def __init__(self, files: list[bytes]):
        context, parts = multiprocessing.get_context("spawn"), cores()
        self._count, self._pipes, self._processes = len(files), [], []
        for part in range(parts):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, files[part::parts]), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        self()

    def __call__(self) -> tuple[float, float]:
        """Images per second, summed over the processes, each with its own clock; and images per second of CPU time."""
        for pipe in self._pipes:
            pipe.send(True)
        answers = [pipe.recv() for pipe in self._pipes]
        rate = sum(images / wall for images, wall, _ in answers)
        return rate, self._count / sum(cpu for *_, cpu in answers)

    def close(self) -> None:
        """Ends the processes."""
        for pipe in self._pipes:
            pipe.send(False)


def _serve(pipe: multiprocessing.connection.Connection, files: list[bytes]) -> None:
    # In the main thread, glibc would return the memory of each image to the system, which takes a quarter longer.
    with ThreadPoolExecutor(1) as pool:
        while pipe.recv():
            wall, cpu = time.perf_counter(), time.process_time()
            pool.submit(decode_all, files).result()
            pipe.send((len(files), time.perf_counter() - wall, time.process_time() - cpu))


def cpu_seconds() -> float:
    """CPU time of this process and of its processes that decode for the stream."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        if child.name.startswith("grain"):
            words = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    return total


class Stream:
    """The stream of a training run, which is already running; a call takes the next batches of it."""

    def __init__(self, name: str, folder: Path, workers: int, batches: int):
        source = open_dataset(name, folder, side=SIDE).read("train")
        steps = 100_000
        order = TrainOrder(len(source), BATCH, 0)
        self._feed = StreamFeed(source, order, BATCH, 1, steps, put_call=dict, workers=workers)
        self._ahead = 8 * max(1, workers) + self._feed.ahead  # Grain keeps several batches of each process
        self._batches, self._step = batches, 0
        self()

    def __call__(self) -> tuple[float, float]:
        """Images per second, and per second of CPU time. Batches prefetched before the turn are taken first.

        Afterwards it waits until the prefetched batches are replaced, so that the bare loop has the cores alone.
        """
        for _ in range(self._ahead):
            self._next()
        started, cpu, images = time.perf_counter(), cpu_seconds(), 0
        for _ in range(self._batches):
            images += self._next()
        rate = images / (time.perf_counter() - started)
        cpu = cpu_seconds() - cpu
        time.sleep(1.5 * self._ahead * BATCH / rate)
        return rate, images / cpu

    def _next(self) -> int:
        call = self._feed(self._step, 1)
        self._step += 1
        return int(np.asarray(call["mask"]).sum())


def lock_share(files: list[bytes]) -> float:
    """Share of the decoding time of one thread that holds Python's lock: a second thread cannot use this time.

    Measured as CPU time outside of the three functions of Pillow that do the work without the lock.
    """
    free = [0.0]

    def timed(function: Callable) -> Callable:
        def call(*arguments, **keywords):
            started = time.thread_time()
            try:
                return function(*arguments, **keywords)
            finally:
                free[0] += time.thread_time() - started

        return call

    from PIL import ImageFile

    plain = Image.Image.resize, Image._getdecoder, ImageFile.ImageFile.load
    Image.Image.resize, ImageFile.ImageFile.load = timed(plain[0]), timed(plain[2])
    try:
        started = time.thread_time()
        decode_all(files)
        total = time.thread_time() - started
    finally:
        Image.Image.resize, ImageFile.ImageFile.load = plain[0], plain[2]
    return 1 - free[0] / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--pixels", type=int, default=500, help="longer side of the JPEGs")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    folder = options.out / f"images-{options.images}-{options.pixels}"
    names = make_sets(folder, options.images, options.pixels)
    stored.CACHE_BYTES = 0  # so that every image is decoded each time
    files = [file.read_bytes() for file in sorted((folder / "folder").rglob("*.jpg"))]
    load, share = os.getloadavg()[0], lock_share(files)
    bare = Bare(files)
    batches = 2 * options.images // BATCH
    size = sum(map(len, files)) / len(files) / 1e3
    print(f"{options.images} JPEGs of {options.pixels} px, {size:.0f} kB, to {SIDE}; {cores()} cores, load {load:.1f}")
    print(f"share of the time under Python's lock: {share:.2f}", flush=True)
    facts = {"images": options.images, "pixels": options.pixels, "cores": cores(), "load": load, "lock_share": share}
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for layout, name in names.items():
        for kind, workers in (("threads", -1), ("processes", cores())):
            stream = Stream(name, folder / "tfds", workers, batches)
            pairs = [(stream(), bare()) for _ in range(options.turns)]
            del stream
            wall, cpu = (statistics.median(one[i] / other[i] for one, other in pairs) for i in (0, 1))
            rate, alone = (statistics.median(pair[i][0] for pair in pairs) for i in (0, 1))
            what = f"{layout}, {kind}"
            print(f"{what:18} {rate:6.0f} images/s; bare loop {alone:6.0f}; {wall:.0%} of it, {cpu:.0%} by CPU time")
            sys.stdout.flush()
            found[what] = {"stream": [pair[0] for pair in pairs], "bare": [pair[1] for pair in pairs]}
            write_json(options.out / "decoding.json", {**facts, "python": sys.version.split()[0], "turns": found})
    bare.close()


if __name__ == "__main__":
    main()
