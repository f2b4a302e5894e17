"""`jaxvit data`: prepare a data set, look at what training sees of it, take images out of it, measure the input.

jaxvit data prepare cifar10                       fetch, check and write the TFDS directory
jaxvit data prepare cifar10 --from=FILE           the same from a file that is here already; --force: write it anew
jaxvit data show --config=NAME DIR                batch.png and patches.png
jaxvit data export cifar10 --split=test --n=6 DIR images into folders, for `jaxvit predict`
jaxvit data benchmark --config=NAME               images a second, by stage
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxvit.cli import command_line
from jaxvit.config.keys import base_config
from jaxvit.config.overrides import parse_config_arguments, parse_overrides, split_overrides
from jaxvit.config.plan import dataset_of, resolve
from jaxvit.data.augment import flip_key, geometric_transform, mirrored, training_transform
from jaxvit.data.batches import TrainBatches
from jaxvit.data.builders import prepare
from jaxvit.data.preparable import PREPARABLE
from jaxvit.data.prepared import data_dir
from jaxvit.data.sources import Source, open_dataset
from jaxvit.errors import UsageError, is_disk_full, nearest
from jaxvit.figures.images import draw_batch, draw_patches
from jaxvit.run.assembly import assemble
from jaxvit.speed import input as speed
from jaxvit.training.state import derive_key
from jaxvit.training.step import step_keys

ACTIONS = ("prepare", "show", "export", "benchmark")


_EXAMPLES = """examples:
  jaxvit data prepare cifar10                            downloads, checks, writes; TFDS_DATA_DIR says where
  jaxvit data prepare cifar10 --from=cifar-10-binary.tar.gz
  jaxvit data show --config=digits pictures              batch.png: augmented images and their soft labels; patches.png
  jaxvit data show cifar10 pictures --config.augment.policy=trivial
  jaxvit data export cifar10 --split=test --n=6 images   images/CLASS/test_00000.png, …
  jaxvit data export image_folder:pets images --config.data.side=64
  jaxvit data benchmark --config=digits                  images a second of each stage of the input
"""


def _parser() -> command_line.Parser:
    parser = command_line.Parser("data", "Prepares data sets, shows, exports and measures them.", _EXAMPLES)
    parser.add_argument("action", metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("names", nargs="*", metavar="NAME|DIR", help="data set, and the folder to write to")
    parser.add_argument(
        "--config", metavar="NAME[:VARIANT]", help="for show, export, benchmark: a config of jaxvit, or a file"
    )
    parser.add_argument("--data_dir", default="", metavar="DIR", help="TFDS directory (else TFDS_DATA_DIR)")
    parser.add_argument("--from", dest="given", metavar="FILE", help="prepare: the archive, or the folder of the files")
    parser.add_argument("--force", action="store_true", help="prepare: replace what is there")
    parser.add_argument("--split", default="test", help="export: which images, in TFDS notation (default: test)")
    parser.add_argument("--n", type=int, default=16, help="export, show: how many images (default: 16)")
    parser.add_argument("--json", action="store_true", help="benchmark: one JSON object")
    return parser


def main(argv: list[str]) -> int:
    """The verb."""
    parser = _parser()
    overrides, words = split_overrides(argv)
    options, rest = parser.parse_known_intermixed_args(words)
    rest += [word for _, _, word in overrides]
    if options.action not in ACTIONS:
        raise UsageError(
            f"there is no `jaxvit data {options.action}`{nearest(options.action, ACTIONS)}; it has {', '.join(ACTIONS)}"
        )
    if options.n < 1:
        raise UsageError(f"--n={options.n}: must be 1 or more")
    return {"prepare": _prepare, "show": _show, "export": _export, "benchmark": _benchmark}[options.action](
        parser, options, rest
    )


def _prepare(parser: command_line.Parser, options: Any, rest: list[str]) -> int:
    parser.refuse_unknown(rest)
    if not options.names:
        raise UsageError(f"jaxvit data prepare: name a data set: {', '.join(PREPARABLE)}")
    directory = data_dir(options.data_dir)
    for name in options.names:
        if name == "digits":
            if options.force:
                shutil.rmtree(directory / name, ignore_errors=True)
            open_dataset(name, directory)
            print(f"digits: prepared in {directory}")
            continue
        if name not in PREPARABLE:
            raise UsageError(
                f"'{name}' cannot be prepared here{nearest(name, [*PREPARABLE, 'digits'])}; here: "
                f"{', '.join(PREPARABLE)}; any other set: tfds build {name} --file_format=array_record"
            )
        try:
            given = Path(options.given).expanduser() if options.given else None
            prepare(name, directory, given, force=options.force)
        except PermissionError as error:
            raise UsageError(
                f"{directory} cannot be written: {error.strerror}; set --data_dir or TFDS_DATA_DIR"
            ) from None
    return 0


def _export(parser: command_line.Parser, options: Any, rest: list[str]) -> int:
    if len(options.names) != (1 if options.config else 2):
        raise UsageError(
            "jaxvit data export: name a data set and a folder, such as `jaxvit data export cifar10 images`"
        )
    _, dataset, overrides = _configured(options, rest)
    for key in overrides:
        if key not in ("data.name", "data.dir", "data.classes", "data.on_error", "data.side"):
            raise UsageError(f"--config.{key}: an export does not read this key; --split and --n say which images")
    target = Path(options.names[0])
    source = dataset.read(options.split)
    count = min(options.n, len(source))
    images, labels, good = source.batch(np.arange(count))
    with _writing(target):
        for i in np.flatnonzero(good):
            folder = target / source.class_names[labels[i]].replace("/", "_")
            folder.mkdir(parents=True, exist_ok=True)
            stem = "_".join(re.findall(r"\w+", options.split))
            Image.fromarray(images[i].squeeze()).save(folder / f"{stem}_{i:05d}.png")
    more = f" of {len(source):,} (--n takes more)" if len(good) < len(source) else ""
    print(f"{good.sum()} images{more} of {source.name} in {target}")
    return 0


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Turns a folder that cannot be written into one line."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UsageError(f"{target} cannot be written: {error.strerror or error}") from None


def _configured(options: Any, rest: list[str]) -> tuple[Any, Any, dict[str, Any]]:
    """(config, data set, overrides) of --config and the overrides, or of a data set's name."""
    if options.config:
        config, overrides, unknown = parse_config_arguments(options.config, rest)
    else:
        if not options.names:
            raise UsageError("name a data set or give --config=NAME")
        config, overrides, unknown = parse_overrides(base_config(), ["--config.data.name", options.names.pop(0), *rest])
    _parser().refuse_unknown(unknown)
    if options.data_dir:
        config.data.dir = options.data_dir
    return config, dataset_of(config), overrides


def _show(parser: command_line.Parser, options: Any, rest: list[str]) -> int:
    config, dataset, overrides = _configured(options, rest)
    target = Path(options.names[0] if options.names else "pictures")
    plan = resolve(
        config, overrides=[key for key in overrides if key.startswith(("data.", "augment."))], dataset=dataset
    )
    source = dataset.read(plan.data.train)
    count = min(options.n, plan.train.batch_size)
    t, a = plan.train, plan.augment
    batch = TrainBatches(source, t.batch_size, plan.seed, t.last_batch, a.repeats, numbered=a.alternates)[0]
    host, root, step = {**batch}, derive_key(plan.seed, "step"), np.int32(0)
    key, _ = step_keys(root, step)  # of training's first step: the very same batch
    if a.where == "host":
        host["image"] = geometric_transform(a)(key, batch["image"], mirrored(a, flip_key(root), step, batch))
    transform = jax.jit(training_transform(a, len(plan.data.class_names), t.label_smoothing, flips=flip_key(root)))
    images, targets = jax.tree.map(np.asarray, transform(key, step, host))
    # Undoing the normalisation gives 0..1 whatever its constants; what noise wrote lies outside.
    pictures = images * np.array(plan.augment.std, np.float32) + np.array(plan.augment.mean, np.float32)
    pictures = np.clip(pictures, 0, 1)
    first, label, _ = source.batch(np.arange(1))
    patch = dict(plan.model.attributes).get("patch", 0) or round(first.shape[1] ** 0.5)
    patch = patch[0] if isinstance(patch, tuple) else patch
    with _writing(target):
        target.mkdir(parents=True, exist_ok=True)
        draw_batch(pictures[:count], targets[:count], plan.data.class_names, target / "batch.png", plan.data.name)
        draw_patches(first[0], patch, target / "patches.png", plan.data.class_names[label[0]])
    print(f"{target / 'batch.png'}, {target / 'patches.png'}")
    return 0


def _benchmark(parser: command_line.Parser, options: Any, rest: list[str]) -> int:
    started = time.perf_counter()
    config, dataset, overrides = _configured(options, rest)
    plan = resolve(config, overrides=overrides, dataset=dataset)
    source = dataset.read(plan.data.train)
    batch_size = plan.train.batch_size
    TrainBatches(source, batch_size, plan.seed)[0]
    found: dict[str, Any] = {
        "data": source.name,
        "batch": batch_size,
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "first_batch_s": time.perf_counter() - started,
        "decode_images_per_s": speed.decoding_speed(dataset, plan.data.train),
        "stream_images_per_s": speed.stream_speed(source, batch_size),
    }
    assembly = assemble(plan)
    key = jax.random.key(0)
    a, t = plan.augment, plan.train
    batches = TrainBatches(source, batch_size, plan.seed, t.last_batch, numbered=a.alternates)
    batch = jax.device_put(dict(batches[0]))
    host = assembly.host_transform()
    if host:
        batch = jax.device_put(host(0, {name: np.asarray(values) for name, values in batch.items()}))
    step = jax.jit(assembly.train_step())
    state = jax.jit(assembly.create_state)()
    found["step_ms"] = 1e3 * speed.seconds_each(lambda: step(state, batch))
    transform = training_transform(a, assembly.classes, t.label_smoothing, flips=flip_key(key))
    if a.where == "device" and isinstance(source, Source):
        seconds = speed.resident_seconds(source, batch_size, transform)
        found |= {"resident_images_per_s": batch_size / seconds, "input_ms": 1e3 * seconds}
    else:
        device_part = jax.jit(transform)
        found["input_ms"] = 1e3 * speed.seconds_each(lambda: device_part(key, np.int32(0), batch))
    found["input_share_of_step"] = found["input_ms"] / found["step_ms"]
    _print_speeds(found, options.json)
    return 0


def _print_speeds(found: dict[str, Any], as_json: bool) -> None:
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in found.items()}
    if as_json:
        print(json.dumps(rounded))
        return
    for name, value in rounded.items():
        print(f"{name:<24}{value:,}" if isinstance(value, int | float) else f"{name:<24}{value}")
