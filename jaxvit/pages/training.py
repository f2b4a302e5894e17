"""What training sees of a data set: its first batch, augmented, with its targets; and an image cut into patches."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxvit.config.plan import dataset_of, resolve
from jaxvit.config.plan_types import Plan
from jaxvit.data.augment import flip_key, geometric_transform, mirrored, training_transform
from jaxvit.data.batches import TrainBatches
from jaxvit.data.colour import denormalize
from jaxvit.data.parts import Source, StreamedSource
from jaxvit.figures.images import draw_batch, draw_patches
from jaxvit.files import make_writable
from jaxvit.training.state import derive_key
from jaxvit.training.step import step_keys


def draw_training(
    config: ConfigDict, folder: Path, *, overrides: Iterable[str] = (), images: int = 16
) -> tuple[Path, Path]:
    """Draws the first batch of a run as its model sees it, batch.png, and its first image in patches, patches.png.

    Args:
      config: the run's.
      folder: made when missing.
      overrides: keys set by hand; those of `data` and `augment` must matter in this run.
      images: of the batch, the first ones.

    Raises:
      UsageError: as `jaxvit.train` for such a config; or the folder cannot be written.
    """
    keys = [key for key in overrides if key.startswith(("data.", "augment."))]
    dataset = dataset_of(config)
    plan = resolve(config, overrides=keys, dataset=dataset)
    source = dataset.read(plan.data.train)
    pictures, targets = first_batch(plan, source)
    first, label, _ = source.batch(np.arange(1))
    patch = dict(plan.model.attributes).get("patch", 0) or round(first.shape[1] ** 0.5)
    patch = patch[0] if isinstance(patch, tuple) else patch
    make_writable(folder, "name another folder")
    files = folder / "batch.png", folder / "patches.png"
    draw_batch(pictures[:images], targets[:images], plan.data.class_names, files[0], plan.data.name)
    draw_patches(first[0], patch, files[1], plan.data.class_names[label[0]])
    return files


def first_batch(plan: Plan, source: Source | StreamedSource) -> tuple[np.ndarray, np.ndarray]:
    """What the first step of training is fed: images [B, H, W, C], not normalised, 0..1, and targets [B, K].

    Args:
      plan: the run's.
      source: its training split.
    """
    t, a = plan.train, plan.augment
    batch = TrainBatches(source, t.batch_size, plan.seed, t.last_batch, a.repeats, numbered=a.alternates)[0]
    host, root, step = {**batch}, derive_key(plan.seed, "step"), np.int32(0)
    key, _ = step_keys(root, step)  # of training's first step: the very same batch
    if a.where == "host":
        host["image"] = geometric_transform(a)(key, batch["image"], mirrored(a, flip_key(root), step, batch))
    transform = jax.jit(training_transform(a, len(plan.data.class_names), t.label_smoothing, flips=flip_key(root)))
    images, targets = transform(key, step, host)
    return denormalize(images, a.mean, a.std), np.asarray(targets)
