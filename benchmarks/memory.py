"""Measures the activation memory of each `remat` policy, from training steps compiled for two batch sizes, not run.

    python benchmarks/memory.py [MODEL] [--batch 8] [--remat none dots_no_batch dots full] [--scan]

XLA reports the temporary memory of a program. Only activations and work space grow with the batch, so the difference of
the two programs divided by the number of additional images is the memory of an image; parameters, moments and gradients
cancel.
"""

from __future__ import annotations

import argparse

import jax

from jaxvit.config.keys import base_config
from jaxvit.config.plan import resolve
from jaxvit.data.synthetic import synthetic_dataset
from jaxvit.models.registry import input_shape, list_models
from jaxvit.run.assembly import assemble

KINDS = ("none", "dots_no_batch", "dots", "full")


def temporary_bytes(model: str, remat: str, batch: int, *, scan: bool) -> int:
    """Temporary memory of one training step, in bytes."""
    config = base_config(model, remat=remat, scan=scan)
    config.data.name, config.data.test = "synthetic", ""
    config.model.num_classes = 1000 if input_shape(model)[0] == 224 else 10
    config.train.batch_size, config.train.duration, config.train.last_batch = batch, "1 steps", "drop"
    shape = input_shape(model)
    plan = resolve(config, dataset=synthetic_dataset(shape, 10, batch))
    assembly = assemble(plan)
    images = {
        "image": jax.ShapeDtypeStruct((batch, *shape), "uint8"),
        "label": jax.ShapeDtypeStruct((batch,), "int32"),
        "mask": jax.ShapeDtypeStruct((batch,), "float32"),
    }
    step = jax.jit(assembly.train_step, donate_argnums=0).lower(assembly.abstract_state, images)
    return step.compile().memory_analysis().temp_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="vit_b16_224", choices=list_models(), metavar="MODEL")
    parser.add_argument(
        "--batch",
        type=int,
        default=8,
        choices=range(1, 513),
        metavar="N",
        help="first batch size; the second is twice as large",
    )
    parser.add_argument("--scan", action="store_true", help="compile one block and loop")
    parser.add_argument("--remat", nargs="+", default=KINDS, choices=KINDS)
    options = parser.parse_args()
    device = jax.devices()[0].device_kind
    print(f"{options.model} on {device}, jax {jax.__version__}; batch {options.batch} and its double")
    whole = 0.0
    for remat in options.remat:
        batches = (options.batch, 2 * options.batch)
        small, large = (temporary_bytes(options.model, remat, batch, scan=options.scan) for batch in batches)
        each = (large - small) / options.batch / 1e6
        whole = whole or each
        print(f"remat={remat:<14} {each:8.1f} MB per image, {each / whole:5.1%} of the first", flush=True)


if __name__ == "__main__":
    main()
