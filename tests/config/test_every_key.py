"""Every config key has the documented effect on a run: keys that can change the result do, the others do not.

The test compares durations, learning rates, initial parameters, the model's input, the parameters after a few steps,
and the evaluation. Cheap comparisons come first: one difference is enough.
"""

import dataclasses
from functools import cached_property

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from jaxvit.config.key_table import KEYS
from jaxvit.config.keys import model_config
from jaxvit.config.plan import dataset_of, resolve
from jaxvit.data.batches import evaluation_batches
from jaxvit.devices.sharding import make_mesh, replicated
from jaxvit.errors import RunFailedError, UsageError
from jaxvit.layers import Attention
from jaxvit.run.assembly import assemble
from jaxvit.run.program import make_feed


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


class Linear(nn.Module):
    """Compiles fast, and has kernels and biases."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, images, *, train: bool):
        return nn.Dense(self.num_classes)(images.reshape(images.shape[0], -1))


class Attends(nn.Module):
    """Has what Muon, layer-wise rates and accumulation look for: heads, numbered layers, dropout."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = nn.Dense(8, name="embed")(images.reshape(images.shape[0], 4, -1))
        x = nn.Dropout(0.5)(Attention(heads=2, name="block_0")(x, train=train), deterministic=not train)
        return nn.Dense(self.num_classes, name="head")(x.mean(1))


def darker(key, image):
    return image * jax.random.uniform(key, minval=0.5)


def hook(state, metrics):
    return True


def colour_digits(folder):
    """Thirty colour images of 12×10, one of them damaged, for keys that have no effect on grey square digits."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 9), ("test", 1)):
        for name in ("a", "b", "c"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
                if name == "c":  # of 16 bits, grey
                    pixels = pixels[..., 0].astype(np.uint16) * 200
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    (folder / "train" / "a" / "broken.png").write_bytes(b"no image")
    return f"image_folder:{folder}"


FOLDER = {"data__name": "FOLDER", "data__side": 8, "data__on_error": "skip", "data__train": "train[:20]"}
FOLDER |= {"data__validation": "train[20:]", "data__test": "test", "augment__mean": (0.5,)}
NO_CROP = {"augment__pad_crop": 0}
CROPPED = {**NO_CROP, "augment__train": "resize_crop", "augment__size": 8, "augment__resize": 12}
RESIZED = {**NO_CROP, "augment__train": "random_resized_crop", "augment__size": 8}
MIXED = {"augment__mixup": 0.5, "augment__cutmix": 1.0}
ATTENDS = {"model__name": f"{__name__}:Attends"}
ON_MUON = {"optim__name": "muon", **ATTENDS}
MIMETIC = {"model__name": "vit", "init__attention": "mimetic", "init__positions": "sincos"}
FRACTION = {**NO_CROP, "augment__evaluation": "crop_fraction", "augment__size": 8}
UNEVEN = {"data__balance": "loss", "data__train": "train[:55]"}  # of the first 60 digits, all classes have six

# key -> (another value than that of the settings, settings under which it matters)
OTHER = {
    "seed": (1, {}),
    "seeds": ((1,), {}),
    "data.name": ("FOLDER", {key: value for key, value in FOLDER.items() if key != "data__name"}),
    "data.dir": ("ANOTHER", {}),
    "data.classes": ((3, 1), {}),
    "data.side": (12, FOLDER),
    "data.on_error": ("stop", FOLDER),
    "data.max_pixels": (119, FOLDER),
    "data.max_bytes": (20, FOLDER),
    "data.white": (30_000, FOLDER),
    "data.feed": ("stream", {}),
    "data.workers": (2, {}),
    "data.train": ("train[:59]", {}),
    "data.validation": ("train[60:89]", {}),
    "data.test": ("test[:24]", {}),
    "data.cut": ("content", {}),
    "data.folds": (2, {}),
    "data.fold": (1, {"data__folds": 2}),
    "data.per_class": (3, {}),
    "data.draw": (1, {"data__per_class": 3}),
    "data.balance": ("sampling", {"data__train": "train[:55]"}),
    "data.balance_by": ("effective", UNEVEN),
    "data.balance_beta": (0.5, UNEVEN | {"data__balance_by": "effective"}),
    "augment.mean": ((), {}),
    "augment.std": ((0.5,), {}),
    "augment.train": ("random_resized_crop", NO_CROP),
    "augment.evaluation": ("centre_crop", {**NO_CROP, "augment__size": 6, "augment__resize": 8}),
    "augment.size": (6, NO_CROP),
    "augment.resize": (16, CROPPED),
    "augment.crop_position": ("batch", CROPPED),
    "augment.crop_fraction": (0.5, FRACTION),
    "augment.scale": ((0.5, 1.0), RESIZED),
    "augment.ratio": ((1.0, 1.0), RESIZED),
    "augment.interpolation": ("nearest", RESIZED),
    "augment.pad_crop": (2, {}),
    "augment.flip": (True, {}),
    "augment.flip_mode": ("alternate", {"augment__flip": True}),
    "augment.rotation": (0.1, {}),
    "augment.zoom": (0.2, {}),
    "augment.fill": ("zero", {"augment__rotation": 0.3}),
    "augment.policy": ("trivial", FOLDER),
    "augment.jitter": ((0.4, 0.4, 0.4, 0.1), FOLDER),
    "augment.own": (f"{__name__}:darker", {}),
    "augment.erase": (1.0, {}),
    "augment.erase_mode": ("zero", {"augment__erase": 1.0}),
    "augment.mixup": (0.5, {}),
    "augment.cutmix": (1.0, {}),
    "augment.switch": (0.0, MIXED),
    "augment.mix_probability": (0.5, MIXED),
    "augment.mix_until": ("1 steps", MIXED),
    "augment.repeats": (2, {}),
    "augment.where": ("host", {}),
    "init.attention": ("mimetic_joint", MIMETIC),
    "init.query_key": ((0.1, 0.2), MIMETIC),
    "init.value_output": ((0.1, 0.2), MIMETIC),
    "init.positions": ("", MIMETIC),
    "init.positions_scale": (0.5, MIMETIC),
    "init.stem": ("whitening", {}),
    "init.stem_eps": (0.1, {"init__stem": "whitening"}),
    "init.stem_images": (20, {"init__stem": "whitening"}),
    "distill.from": ("run", {}),
    "distill.hash": ("0" * 16, {}),
    "distill.weight": (0.1, {}),
    "distill.temperature": (1.0, {}),
    "distill.features": (0.5, {}),
    "init.from": ("runs/digits", {}),
    "init.hash": ("0123456789abcdef", {}),
    "init.keep": ("head/*", {}),
    "init.skip": ("head/*", {}),
    "init.allow": ("head/*", {}),
    "init.channels": ("mean", {}),
    "optim.name": ("lion", {}),
    "optim.peak_lr": (2e-3, {}),
    "optim.start_lr": (1e-4, {}),
    "optim.end_lr": (1e-4, {}),
    "optim.warmup": ("50%", {}),
    "optim.schedule": ("linear", {}),
    "optim.length": ("50%", {}),
    "optim.cooldown": ("2 steps", {}),
    "optim.weight_decay": (0.5, {}),
    "optim.decay": ("independent", {"optim__weight_decay": 0.1}),
    "optim.decay_mask": ("all", {"optim__weight_decay": 0.9, "optim__decay": "independent"}),
    "optim.layer_decay": (0.5, ATTENDS),
    "optim.b1": (0.5, {}),
    "optim.b2": (0.9, {}),
    "optim.eps": (1e-2, {}),
    "optim.momentum": (0.5, {"optim__name": "sgd"}),
    "optim.ema_decay": (0.5, {}),
    "optim.ema_ramp": (False, {"optim__ema_decay": 0.9}),
    "optim.clip_norm": (1e-3, {"optim__name": "sgd"}),
    "optim.freeze": ("embed/*", ATTENDS),
    "optim.head_first": ("3 steps", ATTENDS),
    "optim.muon_on": (("embed/kernel",), ON_MUON),
    "optim.muon_off": (("block_0/*",), ON_MUON),
    "optim.muon_heads": ("per_head", ON_MUON),
    "optim.muon_beta": (0.5, ON_MUON),
    "optim.muon_rms": (0.1, ON_MUON),
    "train.duration": ("4 epochs", {}),
    "train.batch_size": (12, {}),
    "train.steps_per_call": (3, {}),
    "train.last_batch": ("drop", {}),
    "train.accumulate": (2, ATTENDS),
    "train.fsdp": (1, {}),
    "train.deterministic": (True, {}),
    "train.implementations": ("plain", {}),
    "train.label_smoothing": (0.1, {}),
    "train.elastic": ((1, 3), {}),
    "train.seeds": ("in_turn", {"seeds": (0, 1)}),
    "train.patience": ("1 epochs", {}),
    "train.hooks": ((f"{__name__}:hook",), {}),
    "train.monitor": ("loss", {}),
    "eval.batch_size": (5, {}),
    "checkpoint.every": ("2 steps", {}),
    "log.every": ("1 steps", {}),
    "log.writers": (("jsonl",), {}),
}

# May change a result, and these settings on one device of a CPU do not show it: shown elsewhere.
ELSEWHERE = {
    "data.workers": "tests/data/test_ahead.py",  # of sets that are too large to be kept decoded
    **dict.fromkeys(
        ("init.from", "init.hash", "init.keep", "init.skip", "init.allow", "init.channels"),
        "tests/run/test_initial_weights.py",  # they need a trained model
    ),
    "train.fsdp": "tests/devices/test_devices.py",
    **dict.fromkeys(
        ("distill.from", "distill.hash", "distill.weight", "distill.temperature", "distill.features"),
        "tests/run/test_distillation.py",  # needs a trained run
    ),
    "train.deterministic": "tests/devices/test_runtime.py",
    "train.elastic": "tests/run/test_elastic.py",  # needs a TokenLearner
    "train.hooks": "tests/training/test_hooks.py",
    "train.implementations": "tests/ops/test_implementations.py",  # needs a model with alternative implementations
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("keys")


def settings_of(changes, tmp_path):
    folder = tmp_path / "pets"
    filled = {
        key: {"FOLDER": f"image_folder:{folder}", "ANOTHER": str(tmp_path / "data")}.get(value, value)
        if isinstance(value, str)
        else value
        for key, value in changes.items()
    }
    if any(value == f"image_folder:{folder}" for value in filled.values()) and not folder.exists():
        colour_digits(folder)
    model = filled.pop("model__name", f"{__name__}:Linear")
    config = tiny_config(**filled)
    if model != "vit":
        with config.unlocked():
            config.model = model_config(model)
    return config


class Run:
    """The observed quantities of a run, each computed when first needed."""

    def __init__(self, config):
        self.dataset = dataset_of(config)
        self.plan = resolve(config, dataset=self.dataset)
        self.assembly = assemble(self.plan)
        self.source = self.dataset.read(self.plan.data.train)

    @cached_property
    def numbers(self):
        t, data = self.plan.train, self.plan.data
        lengths = (t.steps, t.steps_per_epoch, t.patience_epochs)
        return [*lengths, data.train_count, data.validation_count, data.test_count, t.monitor]

    @cached_property
    def rates(self):
        return np.asarray(jax.jit(jax.vmap(self.assembly.schedule))(np.arange(self.plan.train.steps)))

    @cached_property
    def initial_state(self):
        # Laid out as after a step: else the second step would be compiled anew.
        make = jax.jit(self.assembly.create_state, out_shardings=replicated(make_mesh(1)))
        return make(self.assembly.init_key(), self.assembly.measure(self.source))

    @cached_property
    def initial_parameters(self):
        return jax.device_get(self.initial_state.params)

    @cached_property
    def feed(self):
        return make_feed(self.plan, self.assembly, self.source, make_mesh(1), self.plan.train.steps_per_call)

    def call(self, step):
        """Returns the input of the feed for a step, and the index of the step in it."""
        each = self.plan.train.steps_per_call
        return self.feed(step - step % each, each), step % each

    @cached_property
    def given(self):
        """The labels of six batches, and what the model is given of these."""

        @jax.jit
        def look(step, data, call, i):
            batch = self.feed.pick(data, call, i)
            examples = self.assembly.prepare(step, batch)
            return batch["label"], {name: x for name, x in examples.items() if name != "key"}

        return jax.device_get([look(step, self.feed.data, *self.call(step)) for step in range(6)])

    @cached_property
    def final_state(self):
        @jax.jit
        def take(state, data, call, i):
            return self.assembly.train_step(state, self.feed.pick(data, call, i))[0]

        state = self.initial_state
        for step in range(6):
            state = take(state, self.feed.data, *self.call(step))
        return state

    @cached_property
    def final_parameters(self):
        return jax.device_get((self.final_state.params, self.final_state.ema))

    @cached_property
    def test(self):
        evaluate, totals = jax.jit(self.assembly.eval_step), {}
        batches = evaluation_batches(self.dataset.read(self.plan.data.test), self.plan.train.eval_batch_size)
        for batch in batches:
            for name, value in evaluate(self.final_state.chosen_variables, batch).items():
                totals[name] = totals.get(name, 0.0) + np.asarray(value, float)
        return {name: np.round(value, 4).astype(np.float32) for name, value in totals.items()}


PARTS = ("numbers", "rates", "initial_parameters", "given", "final_parameters", "test")
# Where the keys of a section show: compared before the others.
LIKELY = {"augment": ("numbers", "given"), "optim": ("numbers", "rates", "final_parameters")}
_seen = {}


def observe(config):
    """The run of a config; cached for equal configs."""
    text = config.to_json()
    if text not in _seen:
        _seen[text] = Run(config)
    return _seen[text]


def same(a, b):
    left, right = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(left) == len(right) and all(np.array_equal(x, y) for x, y in zip(left, right, strict=True))


def test_no_key_is_forgotten():
    assert list(OTHER) == list(KEYS)


@pytest.mark.parametrize("key", [key for key in OTHER if key not in ELSEWHERE])
def test_a_key_does_what_it_says(key, folder):
    value, settings = OTHER[key]
    base = settings_of(settings, folder)
    changed = settings_of({**settings, key.replace(".", "__"): value}, folder)
    if key == "data.on_error":
        observe(base)
        with pytest.raises(RunFailedError, match=r"broken.png cannot be decoded"):
            observe(changed)
        return
    if key in ("data.max_pixels", "data.max_bytes"):  # the pictures have 120 pixels
        observe(base)
        with pytest.raises(UsageError, match=r"has only 0 images"):
            observe(changed)
        return
    first, second = observe(base), observe(changed)
    if key == "augment.where":
        # Another place for the same numbers, but for rounding.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            *(([examples for _, examples in run.given], run.final_parameters) for run in (first, second)),
        )
        assert second.plan.train.feed == "stream" and first.plan.train.feed == "resident"
        return
    likely = LIKELY.get(key.partition(".")[0], ())
    parts = [*likely, *(part for part in PARTS if part not in likely)]
    differs = next((part for part in parts if not same(getattr(first, part), getattr(second, part))), None)
    assert (differs is not None) is KEYS[key].changes_result, f"{key}={value!r}: {differs}"
    if not KEYS[key].changes_result:  # it reaches the plan, though
        plans = [dataclasses.asdict(run.plan) for run in (first, second)]
        assert plans[0] != plans[1]
