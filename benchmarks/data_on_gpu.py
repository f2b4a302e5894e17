"""Measures the input pipeline on a GPU: resident crop and flip, and CCT's augmentation relative to its training step.

Not run on a GPU yet: no number in the documentation comes from this script. It runs on any backend.

    python benchmarks/data_on_gpu.py [--data=cifar10] [--batch=1024]

Goals: crop and flip resident CIFAR images at 300,000 images per second or more; RandAugment, mixup and CutMix in at
most 10 % of a training step of CCT-7/3x1 with batch size 128.
"""

from __future__ import annotations

import argparse
import json
from functools import partial

import jax

from jaxvit.config.keys import base_config
from jaxvit.config.plan import dataset_of, resolve
from jaxvit.data.augment import augment
from jaxvit.data.batches import TrainBatches
from jaxvit.data.prepared import data_dir
from jaxvit.data.settings import Augmentation
from jaxvit.data.sources import open_dataset
from jaxvit.run.assembly import assemble
from jaxvit.speed import input as speed


def crop_and_flip(name: str, batch_size: int) -> float:
    """Images per second, for crop and flip."""
    source = open_dataset(name, data_dir("")).read("train")
    transform = partial(augment, settings=Augmentation(pad_crop=4, flip=True), classes=len(source.class_names))
    return batch_size / speed.resident_seconds(source, batch_size, transform, steps=20)


def recipe_against_step(name: str, batch_size: int = 128) -> dict[str, float]:
    """Milliseconds of the augmentation, of a step without it, and their ratio."""
    config = base_config("cct_7_3x1_32")
    config.data.name, config.data.validation = name, ""
    config.train.batch_size = batch_size
    config.augment.pad_crop, config.augment.flip = 4, True
    dataset = dataset_of(config)
    plain = assemble(resolve(config, dataset=dataset))
    config.augment.policy, config.augment.mixup, config.augment.cutmix = "rand-m9-n2-mstd0.5-inc1", 0.8, 1.0
    plan = resolve(config, dataset=dataset)
    source = dataset.read(plan.data.train)
    transform = partial(augment, settings=plan.augment, classes=plain.classes)
    recipe = speed.resident_seconds(source, batch_size, transform, steps=20)
    base = speed.resident_seconds(
        source, batch_size, partial(augment, settings=plain.plan.augment, classes=plain.classes), steps=20
    )
    batch = jax.device_put(dict(TrainBatches(source, batch_size, 0)[0]))
    step, state = jax.jit(plain.train_step), jax.jit(plain.create_state)()
    whole = speed.seconds_each(lambda: step(state, batch))
    return {"recipe_ms": 1e3 * (recipe - base), "step_ms": 1e3 * whole, "share": (recipe - base) / whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="a prepared set of 32×32 RGB images")
    parser.add_argument("--batch", type=int, default=1024, help="batch size for crop and flip")
    options = parser.parse_args()
    found = {
        "device": jax.devices()[0].device_kind,
        "crop_flip_images_per_s": crop_and_flip(options.data, options.batch),
    }
    print(json.dumps({**found, **recipe_against_step(options.data)}))


if __name__ == "__main__":
    main()
