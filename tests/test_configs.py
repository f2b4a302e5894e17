"""Every config of the project resolves, on data of the right size, to the numbers that its source gives."""

import runpy
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from jaxvit.config.files import load_config_file
from jaxvit.config.plan import resolve
from jaxvit.data.dataset import Dataset
from jaxvit.data.own import OwnStore
from jaxvit.models.count import count_params
from jaxvit.run.assembly import assemble

CONFIGS = Path(__file__).parents[1] / "configs"
SIZES = {"cifar10": ((32, 32, 3), 10, 50_000), "cifar100": ((32, 32, 3), 100, 50_000)}
SIZES["fashion_mnist"] = ((28, 28, 1), 10, 60_000)
SIZES["digits"] = ((8, 8, 1), 10, 1_437)
SIZES["image_folder:photos"] = ((64, 64, 3), 5, 400)
SIZES["imagenet2012"] = ((256, 256, 3), 1000, 1_281_167)


# Their authors choose no weights: the last ones count.
WITHOUT_VALIDATION = (
    *("fashion_mnist.py:vit_best", "fashion_mnist.py:fast_best", "cct.py:authors"),
    *("imagenet.py:shiftvit_t", "imagenet.py:cct_14", "imagenet.py:token_learner_b16"),
    "transfer.py",
)


@cache
def store(name):
    """Noise of the data set's size, as many images of each class."""
    shape, classes, count = SIZES[name]
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (min(count, 100_000), *shape) if shape[0] < 256 else (1, *shape), dtype=np.uint8)
    other = "validation" if name == "imagenet2012" else "test"
    splits = {
        split: (
            noise[:n] if len(noise) > 1 else np.broadcast_to(noise, (n, *shape)),
            np.arange(n, dtype=np.int32) % classes,
        )
        for split, n in (("train", count), (other, 10))
    }
    if name == "image_folder:photos":
        splits["validation"] = splits["test"]
    return OwnStore(name, Path(), {**splits, "class_names": tuple(map(str, range(classes)))})


def planned(spec):
    config = load_config_file(str(CONFIGS / spec))
    plan = resolve(config, dataset=Dataset(store(config.data.name), classes=config.data.classes))
    return config, plan


def variants():
    """All variants except configs/finetune.py, whose model comes from weights: tests/run/test_initial_weights.py."""
    for file in sorted(CONFIGS.glob("[!_]*.py")):
        if file.name != "finetune.py":
            yield from (f"{file.name}:{variant}" for variant in runpy.run_path(str(file))["VARIANTS"])


@pytest.mark.parametrize("spec", list(variants()))
def test_it_can_be_trained(spec):
    config, plan = planned(spec)
    found = assemble(plan)
    assert found.classes == len(plan.data.class_names) and plan.train.steps > 0
    assert config.data.test and not plan.warnings
    assert plan.data.validation or spec.startswith(WITHOUT_VALIDATION)


@pytest.mark.parametrize(
    ("spec", "images", "steps_per_epoch", "steps", "params"),
    [
        ("fashion_mnist.py:vit", 16_079, 503, 6 * 503, 922_420),
        ("fashion_mnist.py:fast", 16_079, 503, 6 * 503, 927_604),
        ("fashion_mnist.py:vit_10", 40_199, 1_257, 6 * 1_257, 923_326),
        ("fashion_mnist.py:fast_10", 40_199, 1_257, 6 * 1_257, 928_510),
        ("mini_vit.py:plain", 40_000, 157, 20 * 157, 1_344_650),
        ("mini_vit.py:tl4", 40_000, 157, 20 * 157, 1_349_946),
        ("mini_vit.py:tl8", 40_000, 157, 20 * 157, 1_355_850),
        ("mini_vit.py:8l", 40_000, 157, 20 * 157, 2_665_610),
        ("mini_vit.py:v11_g4t4", 40_000, 157, 20 * 157, 1_353_610),
        ("mini_vit.py:v11_g8t8", 40_000, 157, 20 * 157, 1_350_026),
        ("mini_vit.py:v11_g4t8", 40_000, 157, 20 * 157, 1_354_122),
        ("vit_cifar100.py:document", 45_000, 176, 100 * 176, 21_759_012),
        ("vit_cifar100.py:gap", 45_000, 176, 100 * 176, 3_015_716),
        ("shiftvit.py:document", 40_000, 157, 100 * 157, 11_690_602),
        ("shiftvit.py:true", 40_000, 157, 100 * 157, 11_690_602),
        ("cct.py:document", 45_000, 352, 30 * 352, 408_139),
        ("cct.py:best", 48_000, 375, 30 * 375, 416_331),
        ("fashion_mnist.py:fast_best", 24_000, 750, 6 * 750, 929_012),
        ("mini_vit.py:tl4_1epoch", 40_000, 157, 157, 1_349_946),
        ("vit_cifar100.py:best", 45_000, 176, 100 * 176, 21_759_012),
        ("cct.py:vit", 45_000, 352, 100 * 352, 4_770_570),
        ("cct.py:authors", 50_000, 390, 310 * 390, 3_760_139),
        ("imagenet.py:vit_s16", 1_268_355, 1_238, 90 * 1_238, 22_122_472),
        ("imagenet.py:shiftvit_t", 1_281_167, 1_252, 300 * 1_252, 28_566_664),
        ("imagenet.py:cct_14", 1_281_167, 1_251, 310 * 1_251, 22_367_273),
        ("imagenet.py:token_learner_b16", 1_281_167, 312, 90 * 312, 86_617_912),
    ],
)
def test_it_is_what_the_document_has(spec, images, steps_per_epoch, steps, params):
    _, plan = planned(spec)
    found = (plan.data.train_count, plan.train.steps_per_epoch, plan.train.steps)
    assert found == (images, steps_per_epoch, steps)
    assert count_params(assemble(plan).abstract_state.variables) == params


def test_the_learning_rate_of_the_shiftvit_document():
    """Linear from 1e-5 to 1e-3 in 2,343 steps, half a cosine to 0 at 15,625, and 0 in the 75 steps after it."""
    _, plan = planned("shiftvit.py:document")
    rate = assemble(plan).schedule
    np.testing.assert_allclose([rate(0), rate(2343), rate(15_625), rate(15_699)], [1e-5, 1e-3, 0, 0], atol=1e-9)
    halfway = (2343 + 15_625) / 2
    np.testing.assert_allclose(rate(int(halfway)), 5e-4, rtol=1e-3)


@pytest.mark.parametrize("spec", ["fashion_mnist.py:fast", "mini_vit.py:tl4", "cct.py:document"])
def test_a_constant_learning_rate(spec):
    rate = assemble(planned(spec)[1]).schedule
    np.testing.assert_allclose([rate(0), rate(1), rate(3000)], 1e-3)
