"""Figures of the training input: the first augmented batch with its targets, and an image cut into patches."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxvit.config.plan import dataset_of, resolve
from jaxvit.config.plan_types import Plan
from jaxvit.data.augment import augment, augment_geometry, flip_key, mirrored
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
    """Draws the first training batch as the model sees it (batch.png) and the first image in patches (patches.png).

    Args:
      config: config of the run.
      folder: folder to write to; created if missing.
      overrides: keys set on the command line; those in `data` and `augment` must have an effect in this run.
      images: number of images drawn from the batch.

    Raises:
      UsageError: `jaxvit.train` would refuse the config, or the folder cannot be written.
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
    """The input of the first training step: images [B, H, W, C] in [0, 1] before normalization, and targets [B, K].

    Args:
      plan: plan of the run.
      source: training split of the run.
    """
    t, a = plan.train, plan.augment
    sampling = plan.data.sampling(source.labels) if plan.data.balance == "sampling" else None
    batch = TrainBatches(source, t.batch_size, plan.seed, t.last_batch, a.repeats, sampling, numbered=a.alternates)[0]
    host, root, step = {**batch}, derive_key(plan.seed, "step"), np.int32(0)
    key, _ = step_keys(root, step)  # the key of the first step: the same batch as in training
    if a.where == "host":
        by_turns = mirrored(a, flip_key(root), step, batch)
        host["image"] = augment_geometry(key, batch["image"], a, mirrored_B=by_turns)
    transform = partial(
        augment,
        settings=a,
        classes=len(plan.data.class_names),
        label_smoothing=t.label_smoothing,
        flips=flip_key(root),
    )
    images, targets = jax.jit(transform)(key, step, host)
    return denormalize(images, a.mean, a.std), np.asarray(targets)
