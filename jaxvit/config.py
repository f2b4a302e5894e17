"""Every key of an experiment's config: default, unit and meaning; and how a config file is read.

A config holds inputs only. Nothing in it is derived: steps, splits and per-device batches are worked out once, by
`jaxvit.plan.resolve`. Durations are strings ('30 epochs', '2000 steps', '15%'). There are tuples, never lists, and
sentinels ('', 0, ()), never None, because the command line can override those.

A config file defines ``get_config(variant='...') -> ConfigDict`` and, if it knows more than one experiment, a tuple
``VARIANTS`` of their names; for `jaxvit sweep` it may define ``get_grid(variant='...')``, values for some keys.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from jaxvit.errors import UsageError, first_line, nearest


@dataclass(frozen=True)
class Key:
    """One config key.

    Attributes:
      default: value when a config file does not set it; its type is the key's type.
      meaning: what it does, with its unit.
      changes_result: whether two runs that differ in it can differ in their result. Only such keys enter the config
        hash and must agree when a run directory is used again.
    """

    default: Any
    meaning: str
    changes_result: bool = True


KEYS: dict[str, Key] = {
    "seed": Key(0, "root of every random number of the run: parameters, order, augmentation, dropout"),
    "seeds": Key((), "one run for each of these seeds, and their mean and spread; () = one run, of `seed`"),
    # Data.
    "data.name": Key("digits", "TFDS name of the data set, 'image_folder:PATH', or 'package.module:function'"),
    "data.dir": Key(
        "", "TFDS directory; '' = the environment's TFDS_DATA_DIR, else ~/tensorflow_datasets", changes_result=False
    ),
    "data.classes": Key((), "numbers of the classes to keep, renumbered in this order; () = all"),
    "data.side": Key(0, "images are decoded to this many pixels square (shorter side, then centre); 0 = as stored"),
    "data.on_error": Key(
        "stop", "an image that cannot be decoded: 'stop' names it and ends the run, 'skip' leaves it out"
    ),
    "data.feed": Key(
        "auto",
        "'resident' keeps the training split on the devices, 'stream' sends batches, 'auto' goes by its size",
        changes_result=False,
    ),
    "data.train": Key("train", "split trained on, in TFDS notation, such as 'train[:90%]'"),
    "data.validation": Key(
        "", "split that chooses the best weights and stops early; '' = none: the last weights count"
    ),
    "data.test": Key("test", "split measured once, at the end, with the chosen weights; '' = none"),
    # Augmentation, one decision an image; the order is that of jaxvit.data.augment.
    "augment.mean": Key(
        (0.0,), "subtracted from each channel, in units of the 0..1 pixel range; () = measured on the training images"
    ),
    "augment.std": Key(
        (1.0,), "each channel is divided by it after the mean is subtracted; () = measured on the training images"
    ),
    "augment.train": Key(
        "whole", "how a training image gets its size: 'whole', 'resize_crop' (random place) or 'random_resized_crop'"
    ),
    "augment.evaluation": Key(
        "whole",
        "how an evaluation image gets its size: 'whole', 'centre_crop' (after augment.resize) or 'crop_fraction'",
    ),
    "augment.size": Key(0, "side, in pixels, of what the model sees; 0 = the image's own size"),
    "augment.resize": Key(0, "side, in pixels, to resize to before 'resize_crop' and 'centre_crop'; 0 = not resized"),
    "augment.crop_position": Key("image", "place of 'resize_crop': each 'image' its own, or one for the whole 'batch'"),
    "augment.crop_fraction": Key(
        1.0, "for 'crop_fraction': the shorter side is resized to augment.size divided by this, then the centre is cut"
    ),
    "augment.scale": Key((0.08, 1.0), "'random_resized_crop': range of the window's share of the image's area"),
    "augment.ratio": Key((3 / 4, 4 / 3), "'random_resized_crop': range of the window's width / height"),
    "augment.interpolation": Key("bilinear", "of resizing: 'bilinear', 'bicubic' or 'nearest'"),
    "augment.pad_crop": Key(
        0, "pixels padded (with zeros) on every side before a random crop to the image size; 0 = off"
    ),
    "augment.flip": Key(False, "mirror each training image left-right with probability 1/2"),
    "augment.rotation": Key(0.0, "largest rotation either way, as a share of a full turn; 0 = off"),
    "augment.zoom": Key(0.0, "height and width are each shown at 1 ± this share of their extent; 0 = off"),
    "augment.fill": Key("reflect", "what rotation and zoom show beyond the border: 'reflect', 'edge' or 'zero'"),
    "augment.policy": Key(
        "",
        "'autoaugment-cifar10', 'autoaugment-imagenet', 'trivial' RandAugment as 'rand-m9-n2-mstd0.5-inc1'; '' = none",
    ),
    "augment.jitter": Key(
        (), "strengths of (brightness, contrast, saturation, hue) jitter, such as (0.4, 0.4, 0.4, 0.1)"
    ),
    "augment.own": Key(
        "",
        "'package.module:function', (key, image float32 [H, W, C] in 0..1) -> image, before normalising; '' = none",
    ),
    "augment.erase": Key(0.0, "probability of overwriting a random rectangle; 0 = off"),
    "augment.erase_mode": Key(
        "noise", "what random erasing writes: 'noise' (standard normal) or 'zero' (the mean colour)"
    ),
    "augment.mixup": Key(0.0, "α of mixup's Beta(α, α); 0 = off"),
    "augment.cutmix": Key(0.0, "α of CutMix's Beta(α, α); 0 = off"),
    "augment.switch": Key(0.5, "probability of CutMix rather than mixup where both are on"),
    "augment.mix_probability": Key(1.0, "probability of an image being mixed at all"),
    "augment.mix_until": Key("", "when mixup and CutMix end: epochs, steps or a share of the training; '' = never"),
    "augment.repeats": Key(1, "repeated augmentation: copies of each image in a batch, each augmented on its own"),
    "augment.where": Key("device", "where the geometry is done: on the 'device', or on the 'host' while the step runs"),
    # Optimisation.
    "optim.name": Key("adamw", "optimizer: 'adamw', 'adam', 'sgd' (with momentum) or 'lion'"),
    "optim.peak_lr": Key(1e-3, "learning rate at the end of warm-up"),
    "optim.start_lr": Key(0.0, "learning rate at step 0, when there is a warm-up"),
    "optim.end_lr": Key(0.0, "learning rate at the end of the schedule and after it"),
    "optim.warmup": Key("10%", "length of the linear warm-up: epochs, steps or a share of the schedule"),
    "optim.schedule": Key("cosine", "from the peak to the end: 'cosine', 'linear' or 'constant'"),
    "optim.length": Key("100%", "length of the schedule, warm-up included: epochs, steps or a share of the training"),
    "optim.cooldown": Key("0 steps", "stretch at the end of the schedule that stays at (or goes down to) end_lr"),
    "optim.weight_decay": Key(1e-4, "decoupled weight decay; 0 = off. What the number means, optim.decay says"),
    "optim.decay": Key(
        "lr_scaled",
        "what it means: 'lr_scaled' = times the learning rate (optax, Keras 3) or 'independent' (tensorflow-addons)",
    ),
    "optim.decay_mask": Key("kernels", "what decays: 'kernels' (matrices only) or 'all' parameters"),
    "optim.layer_decay": Key(1.0, "factor of the learning rate from each layer to the one below; 1 = off"),
    "optim.b1": Key(0.9, "decay of the first moment (adamw, adam, lion)"),
    "optim.b2": Key(0.999, "decay of the second moment (adamw, adam), of the momentum (lion)"),
    "optim.eps": Key(1e-8, "epsilon of adamw and adam, outside the root"),
    "optim.momentum": Key(0.9, "momentum of sgd; 0 = none"),
    "optim.ema_decay": Key(0.0, "decay of an average of the weights, which then is what is chosen and tested; 0 = off"),
    "optim.ema_ramp": Key(True, "start the average faster: min(decay, (1 + step) / (10 + step))"),
    "optim.clip_norm": Key(0.0, "gradients are scaled down to this global L2 norm; 0 = off"),
    # Training.
    "train.duration": Key("10 epochs", "how long to train: epochs or steps"),
    "train.batch_size": Key(128, "images a step, over all devices together"),
    "train.steps_per_call": Key(
        1, "steps in one call of the device; saves, stops and evaluation fall between calls", changes_result=False
    ),
    "train.last_batch": Key("keep", "an epoch's last, smaller batch: 'keep' (every image counts once) or 'drop'"),
    "train.accumulate": Key(1, "parts that a batch is cut into, one after the other, to save memory"),
    "train.fsdp": Key(1, "devices that share one copy of parameters and optimizer state; 1 = each has its own"),
    "train.deterministic": Key(False, "have XLA choose deterministic kernels on GPU, slower; other devices always do"),
    "train.ways": Key(
        "fast",
        "how attention, max-pooling and noise are computed: 'fast' = as measured on this kind of device, or 'plain'",
    ),
    "train.label_smoothing": Key(0.0, "share of the target spread evenly over all classes, in training only"),
    "train.seeds": Key(
        "auto",
        "several seeds 'together' in one program, 'in_turn', or 'auto': together on an accelerator that has room",
        changes_result=False,
    ),
    "train.patience": Key("", "stop after this long (epochs) without a better validation result; '' = never"),
    "train.monitor": Key("top1", "validation metric that decides: 'top1', 'top5', 'loss', 'precision' or 'recall'"),
    # Evaluation, saving, logging.
    "eval.batch_size": Key(0, "images an evaluation batch; 0 = the training batch size", changes_result=False),
    "checkpoint.every": Key("1 epochs", "distance between saves: epochs or steps", changes_result=False),
    "log.every": Key("50 steps", "distance between lines of training metrics in metrics.jsonl", changes_result=False),
    "log.writers": Key(
        ("jsonl", "tensorboard"), "where metrics go: 'jsonl', 'tensorboard', 'wandb', 'mlflow'", changes_result=False
    ),
}

# A finished run can be taken further: these may differ from the run's own config.
EXTENDABLE = ("train.duration", "train.patience")


def base_config(model: str = "vit", **attributes: Any) -> ConfigDict:
    """A ConfigDict of all keys at their defaults, with a `model` section for the named model.

    Args:
      model: a name for `jaxvit.create_model`, or 'package.module:Class'.
      **attributes: values of the model's attributes that differ from the named model's own.
    """
    config = ConfigDict()
    for path, key in KEYS.items():
        section, _, leaf = path.rpartition(".")
        if section and section not in config:
            config[section] = ConfigDict()
        (config[section] if section else config)[leaf] = key.default
    config.model = model_config(model, **attributes)
    return config.lock()


def model_config(name: str, **attributes: Any) -> ConfigDict:
    """The `model` section: the name and every attribute of that model as a plain value.

    ``num_classes = 0`` means as many as the data set has.
    """
    from jaxvit.models import registry  # Flax and jax are not needed to look at the other keys

    try:
        section = registry.model_defaults(name)
        needed = registry.attributes_without_default(name)
    except ValueError as error:
        raise UsageError(f"config.model.name: {error}") from None
    if needed:
        raise UsageError(
            f"config.model.name='{name}': attribute '{needed[0]}' has no default and so cannot become a config key; "
            f"give every attribute one in the class, such as `{needed[0]}: int = 8`"
        )
    if "num_classes" in section:
        section["num_classes"] = 0
    for key, value in attributes.items():
        if key not in section:
            raise UsageError(f"config.model.{key}: {name} has no such attribute{nearest(key, section)}")
        section[key] = value
    return ConfigDict({"name": name, **section})


def load_config_file(spec: str, model_name: str = "") -> ConfigDict:
    """Run a config file and return its config.

    Args:
      spec: 'path/to/file.py' or 'path/to/file.py:variant'.
      model_name: when given and not the file's own, the `model` section is that model's, at its own defaults: another
        model's sizes would mean something else.

    Raises:
      UsageError: there is no such file or variant, or the file is no config file.
    """
    path, _, variant = spec.partition(":")
    module = _run_config_file(spec)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UsageError(f"--config={spec}: the file defines no function get_config()")
    variants = tuple(getattr(module, "VARIANTS", ()))
    if variant and variants and variant not in variants:
        raise UsageError(
            f"--config={spec}: no variant '{variant}'{nearest(variant, variants)}; {path} has {', '.join(variants)}"
        )
    if variant and not inspect.signature(get_config).parameters:
        raise UsageError(f"--config={spec}: {path} has no variants; leave out ':{variant}'")
    config = _call(spec, "get_config", get_config)
    if not isinstance(config, ConfigDict) or "model" not in config:
        raise UsageError(f"--config={spec}: get_config() must return a ConfigDict made by jaxvit.config.base_config()")
    if model_name and model_name != config.model.name:
        with config.unlocked():
            config.model = model_config(model_name)
    check_keys(config)
    return config


def load_grid(spec: str) -> dict[str, Sequence[Any]]:
    """The grid, {key: values}, that a config file brings for `jaxvit sweep`: its ``get_grid``'s; {} if it has none.

    Raises:
      UsageError: its get_grid gives no grid.
    """
    get_grid, variant = getattr(_run_config_file(spec), "get_grid", None), spec.partition(":")[2]
    if get_grid is None:
        return {}
    form = "{key: (value, value)}, such as {'model.depth': (2, 4)}"
    if not callable(get_grid):
        raise UsageError(f"--config={spec}: get_grid must be a function that returns {form}")
    if variant and not inspect.signature(get_grid).parameters:
        raise UsageError(
            f"--config={spec}: get_grid() takes no variant; write it as get_grid(variant='{variant}'), or name the "
            "grid by --over"
        )
    grid = _call(spec, "get_grid", get_grid)
    right = isinstance(grid, Mapping) and all(
        isinstance(key, str) and isinstance(values, list | tuple) and values for key, values in grid.items()
    )
    if not right:
        raise UsageError(f"--config={spec}: get_grid() must return {form}")
    return dict(grid)


def _call(spec: str, name: str, function: Callable[..., Any]) -> Any:
    """What a config file's function gives for the variant that `spec` names."""
    variant = spec.partition(":")[2]
    try:
        return function(variant) if variant else function()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"--config={spec}: {name} failed: {type(error).__name__}: {first_line(error)}") from error


def _run_config_file(spec: str) -> ModuleType:
    # A config file is a program of the user's own, run on the user's request, as `python FILE` would be.
    path = spec.partition(":")[0]
    file = Path(path).expanduser()
    if not file.is_file():
        siblings = [str(p) for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise UsageError(f"--config={spec}: there is no file '{path}'{nearest(path, siblings)}")
    module_spec = importlib.util.spec_from_file_location(f"jaxvit_config_{file.stem}", file)
    if module_spec is None or module_spec.loader is None:
        raise UsageError(f"--config={spec}: '{path}' is not a Python file; a config file ends in .py")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"--config={spec}: the file does not run: {type(error).__name__}: {first_line(error)}"
        ) from error
    return module


def check_keys(config: ConfigDict) -> None:
    """Every key there, none besides, each of its type.

    Raises:
      UsageError: names the key, and the nearest real one.
    """
    leaves = dict(flatten(config))
    for path, value in leaves.items():
        if path.startswith("model."):
            continue
        if path not in KEYS:
            raise UsageError(f"config.{path}: there is no such key{nearest(path, KEYS)}")
        wanted = type(KEYS[path].default)
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            example = KEYS[path].default
            raise UsageError(f"config.{path}={value!r}: must be of type {wanted.__name__}, such as {example!r}")
    missing = [path for path in KEYS if path not in leaves]
    if missing:
        raise UsageError(f"config.{missing[0]}: this key is missing; make the config by jaxvit.config.base_config()")


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ('section.key', value) for every leaf, in the config's order."""
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict | dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """Nested plain dicts, in the order of the config (ConfigDict's own conversion sorts the keys)."""
    return {k: to_plain(v) if isinstance(v, ConfigDict) else v for k, v in ((k, config[k]) for k in config)}


def from_plain(plain: Mapping[str, Any]) -> ConfigDict:
    """The inverse of `to_plain` after a trip through JSON: lists become tuples again."""

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return ConfigDict({k: restore(v) for k, v in value.items()})
        return tuple(restore(v) for v in value) if isinstance(value, list) else value

    return restore(dict(plain))


def changes_result(path: str) -> bool:
    """Whether the key can change a run's result; model attributes and keys of a plug-in always count."""
    return KEYS[path].changes_result if path in KEYS else True


def config_hash(config: ConfigDict, extensions: Sequence[Mapping[str, Any]] = ()) -> str:
    """16 hex digits over every key that can change the result: equal hashes mean the same experiment.

    `extensions` are the changes made when a finished run was taken further: such a run is not the same as one that was
    as long from the start.
    """
    relevant = {path: value for path, value in flatten(config) if changes_result(path)}
    if extensions:
        relevant["extensions"] = list(extensions)
    text = json.dumps(relevant, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """{key: (old, new)} for every key that can change the result and differs; a missing key shows as '(absent)'."""
    a, b = dict(flatten(old)), dict(flatten(new))
    return {
        path: (a.get(path, "(absent)"), b.get(path, "(absent)"))
        for path in dict.fromkeys([*a, *b])
        if changes_result(path) and a.get(path, "(absent)") != b.get(path, "(absent)")
    }


def data_dir(config_value: str) -> Path:
    """The TFDS directory: the config's, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(config_value or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
