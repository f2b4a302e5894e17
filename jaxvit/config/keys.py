"""Every key of an experiment's config: default, unit and meaning; and how a config file is read.

A config holds inputs only. Nothing in it is derived: steps, splits and per-device batches are worked out once, by
`jaxvit.config.plan.resolve`. Durations are strings ('30 epochs', '2000 steps', '15%'). There are tuples, never lists,
and sentinels ('', 0, ()), never None, because the command line can override those.

A config file defines ``get_config(variant='...') -> ConfigDict`` and, if it knows more than one experiment, a tuple
``VARIANTS`` of their names; for `jaxvit sweep` it may define ``get_grid(variant='...')``, values for some keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from jaxvit.config.plan_types import InitPlan
from jaxvit.data.settings import Augmentation
from jaxvit.errors import UsageError, nearest
from jaxvit.training.settings import OptimizerSettings


@dataclass(frozen=True)
class Key:
    """One config key.

    Attributes:
      default: value when a config file does not set it; its type is the key's type.
      meaning: what it does, with its unit.
      changes_result: whether two runs that differ in it can differ in their result. Only such keys enter the config
        hash and must agree when a run directory is used again.
      added: the key is younger than the first recorded config hashes: it enters the hash only where its value is not
        the default. Every new key is.
    """

    default: Any
    meaning: str
    changes_result: bool = True
    added: bool = False


# A default stands in one place: these are the defaults of the settings that the keys become.
_AUGMENT, _OPTIM, _INIT = Augmentation(), OptimizerSettings(), InitPlan()

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
    "data.max_pixels": Key(
        80_000_000,
        "pixels (height × width) that a stored image may have; a larger one counts as one that cannot be decoded",
        changes_result=False,
        added=True,
    ),
    "data.max_bytes": Key(
        1 << 28, "bytes that the file of an image in a folder may have; as max_pixels", changes_result=False, added=True
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
        _AUGMENT.mean,
        "subtracted from each channel, in units of the 0..1 pixel range; () = measured on the training images",
    ),
    "augment.std": Key(
        _AUGMENT.std, "each channel is divided by it after the mean is subtracted; () = measured on the training images"
    ),
    "augment.train": Key(
        _AUGMENT.train,
        "how a training image gets its size: 'whole', 'resize_crop' (random place) or 'random_resized_crop'",
    ),
    "augment.evaluation": Key(
        _AUGMENT.evaluation,
        "how an evaluation image gets its size: 'whole', 'centre_crop' (after augment.resize) or 'crop_fraction'",
    ),
    "augment.size": Key(_AUGMENT.size, "side, in pixels, of what the model sees; 0 = the image's own size"),
    "augment.resize": Key(
        _AUGMENT.resize, "side, in pixels, to resize to before 'resize_crop' and 'centre_crop'; 0 = not resized"
    ),
    "augment.crop_position": Key(
        _AUGMENT.crop_position, "place of 'resize_crop': each 'image' its own, or one for the whole 'batch'"
    ),
    "augment.crop_fraction": Key(
        _AUGMENT.crop_fraction,
        "for 'crop_fraction': the shorter side is resized to augment.size divided by this, then the centre is cut",
    ),
    "augment.scale": Key(_AUGMENT.scale, "'random_resized_crop': range of the window's share of the image's area"),
    "augment.ratio": Key(_AUGMENT.ratio, "'random_resized_crop': range of the window's width / height"),
    "augment.interpolation": Key(_AUGMENT.interpolation, "of resizing: 'bilinear', 'bicubic' or 'nearest'"),
    "augment.pad_crop": Key(
        _AUGMENT.pad_crop, "pixels padded (with zeros) on every side before a random crop to the image size; 0 = off"
    ),
    "augment.flip": Key(_AUGMENT.flip, "mirror each training image left-right with probability 1/2"),
    "augment.flip_mode": Key(
        _AUGMENT.flip_mode,
        "'random' = decided anew each time, 'alternate' = at random in the first epoch, then by turns",
        added=True,
    ),
    "augment.rotation": Key(_AUGMENT.rotation, "largest rotation either way, as a share of a full turn; 0 = off"),
    "augment.zoom": Key(_AUGMENT.zoom, "height and width are each shown at 1 ± this share of their extent; 0 = off"),
    "augment.fill": Key(_AUGMENT.fill, "what rotation and zoom show beyond the border: 'reflect', 'edge' or 'zero'"),
    "augment.policy": Key(
        _AUGMENT.policy,
        "'autoaugment-cifar10', 'autoaugment-imagenet', 'trivial', RandAugment as 'rand-m9-n2-mstd0.5-inc1'; '' = none",
    ),
    "augment.jitter": Key(
        _AUGMENT.jitter, "strengths of (brightness, contrast, saturation, hue) jitter, such as (0.4, 0.4, 0.4, 0.1)"
    ),
    "augment.own": Key(
        _AUGMENT.own,
        "'package.module:function', (key, image float32 [H, W, C] in 0..1) -> image, before normalising; '' = none",
    ),
    "augment.erase": Key(_AUGMENT.erase, "probability of overwriting a random rectangle; 0 = off"),
    "augment.erase_mode": Key(
        _AUGMENT.erase_mode, "what random erasing writes: 'noise' (standard normal) or 'zero' (the mean colour)"
    ),
    "augment.mixup": Key(_AUGMENT.mixup, "α of mixup's Beta(α, α); 0 = off"),
    "augment.cutmix": Key(_AUGMENT.cutmix, "α of CutMix's Beta(α, α); 0 = off"),
    "augment.switch": Key(_AUGMENT.switch, "probability of CutMix rather than mixup where both are on"),
    "augment.mix_probability": Key(_AUGMENT.mix_probability, "probability of an image being mixed at all"),
    "augment.mix_until": Key("", "when mixup and CutMix end: epochs, steps or a share of the training; '' = never"),
    "augment.repeats": Key(
        _AUGMENT.repeats, "repeated augmentation: copies of each image in a batch, each augmented on its own"
    ),
    "augment.where": Key(
        _AUGMENT.where, "where the geometry is done: on the 'device', or on the 'host' while the step runs"
    ),
    # Initial values that follow a formula; all others are those of model.initialiser.
    "init.attention": Key(
        _INIT.attention,
        "self-attention begins 'mimetic' (each head by itself) or 'mimetic_joint' (values and outputs of all heads as "
        "one matrix, as in the paper); '' = as model.initialiser has it",
        added=True,
    ),
    "init.query_key": Key(_INIT.query_key, "mimetic: (a, b), a head's Wq Wkᵀ is a × noise + b × identity", added=True),
    "init.value_output": Key(
        _INIT.value_output,
        "mimetic: (a, b), a head's Wv Wo is (a × noise - b × identity) / heads; joint: their sum is that, times heads",
        added=True,
    ),
    "init.positions": Key(
        _INIT.positions,
        "a trained position table begins at the values of the 2-D 'sincos' table; '' = as model.initialiser has it",
        added=True,
    ),
    "init.positions_scale": Key(_INIT.positions_scale, "sincos: times this", added=True),
    "init.stem": Key(
        _INIT.stem,
        "the model's first layer begins with filters of 'whitening', measured on the training images, and, where there "
        "is room, their negatives; '' = as model.initialiser has it",
        added=True,
    ),
    "init.stem_eps": Key(
        _INIT.stem_eps, "whitening: added to the patches' variances, in units of the normalised pixels", added=True
    ),
    "init.stem_images": Key(
        _INIT.stem_images, "whitening: training images that are measured, spread over the split", added=True
    ),
    # Optimisation.
    "optim.name": Key(
        _OPTIM.name, "optimizer: 'adamw', 'adam', 'sgd' (with momentum), 'lion', 'muon' or 'package.module:function'"
    ),
    "optim.peak_lr": Key(_OPTIM.peak_lr, "learning rate at the end of warm-up"),
    "optim.start_lr": Key(_OPTIM.start_lr, "learning rate at step 0, when there is a warm-up"),
    "optim.end_lr": Key(_OPTIM.end_lr, "learning rate at the end of the schedule and after it"),
    "optim.warmup": Key("10%", "length of the linear warm-up: epochs, steps or a share of the schedule"),
    "optim.schedule": Key(
        _OPTIM.schedule, "from the peak to the end: 'cosine', 'linear', 'constant' or 'package.module:function'"
    ),
    "optim.length": Key("100%", "length of the schedule, warm-up included: epochs, steps or a share of the training"),
    "optim.cooldown": Key("0 steps", "stretch at the end of the schedule that stays at (or goes down to) end_lr"),
    "optim.weight_decay": Key(
        _OPTIM.weight_decay, "decoupled weight decay; 0 = off. What the number means, optim.decay says"
    ),
    "optim.decay": Key(
        _OPTIM.decay,
        "what it means: 'lr_scaled' = times the learning rate (optax, Keras 3) or 'independent' (tensorflow-addons)",
    ),
    "optim.decay_mask": Key(
        _OPTIM.decay_mask,
        "what decays: 'kernels' (matrices only), 'all' parameters, or 'not_1d' (all but vectors and biases: position "
        "tables and class tokens too)",
    ),
    "optim.layer_decay": Key(
        _OPTIM.layer_decay, "factor of the learning rate from each layer to the one below; 1 = off"
    ),
    "optim.b1": Key(_OPTIM.b1, "decay of the first moment (adamw, adam, lion, muon's adam)"),
    "optim.b2": Key(_OPTIM.b2, "decay of the second moment (adamw, adam, muon's adam), of the momentum (lion)"),
    "optim.eps": Key(_OPTIM.eps, "epsilon of adamw, adam and muon's adam, outside the root"),
    "optim.momentum": Key(_OPTIM.momentum, "momentum of sgd; 0 = none"),
    "optim.ema_decay": Key(0.0, "decay of an average of the weights, which then is what is chosen and tested; 0 = off"),
    "optim.ema_ramp": Key(True, "start the average faster: min(decay, (1 + step) / (10 + step))"),
    "optim.clip_norm": Key(_OPTIM.clip_norm, "gradients are scaled down to this global L2 norm; 0 = off"),
    "optim.muon_on": Key(
        _OPTIM.muon_on,
        "muon's parameters: matrices whose path, such as 'encoder/block_0/mlp/dense_0/kernel', a pattern matches",
        added=True,
    ),
    "optim.muon_off": Key(
        _OPTIM.muon_off, "patterns of what is left to adam all the same, as is all that is no matrix", added=True
    ),
    "optim.muon_heads": Key(
        _OPTIM.muon_heads, "muon takes an attention kernel as one 'matrix' over all heads, or 'per_head'", added=True
    ),
    "optim.muon_beta": Key(_OPTIM.muon_beta, "decay of muon's momentum", added=True),
    "optim.muon_rms": Key(
        _OPTIM.muon_rms, "root mean square of muon's updates, before the learning rate; 0.2 is like adam's", added=True
    ),
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
    "train.hooks": Key(
        (),
        "functions 'package.module:function', (state, metrics), called at each epoch's end; True or a reason ends it",
        added=True,
    ),
    "train.monitor": Key("top1", "validation metric that decides: 'top1', 'top5', 'loss', 'precision' or 'recall'"),
    # Evaluation, saving, logging.
    "eval.batch_size": Key(0, "images an evaluation batch; 0 = the training batch size", changes_result=False),
    "checkpoint.every": Key("1 epochs", "distance between saves: epochs or steps", changes_result=False),
    "log.every": Key("50 steps", "distance between lines of training metrics in metrics.jsonl", changes_result=False),
    "log.writers": Key(
        ("jsonl", "tensorboard"), "where metrics go: 'jsonl', 'tensorboard', 'wandb', 'mlflow'", changes_result=False
    ),
}


# Keys that are gone: what to write now. A key that was only renamed has its new name under RENAMED: run folders that
# have the old one are read with it, and it stays the name in config hashes. A model's attributes are keys too:
# 'model.ATTRIBUTE'.
REMOVED: dict[str, str] = {}
RENAMED: dict[str, str] = {}

# A finished run can be taken further: these may differ from the run's own config.
EXTENDABLE = ("train.duration", "train.patience", "train.hooks")


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
            why = gone(f"model.{key}") or f"{name} has no such attribute{nearest(key, section)}"
            raise UsageError(f"config.model.{key}: {why}")
        section[key] = value
    return ConfigDict({"name": name, **section})


def complete(config: ConfigDict) -> ConfigDict:
    """The config with every absent key at its default: a key, or an attribute of the model, that is absent means that.

    A key that was renamed since keeps its value under the new name. Attributes of a model that is code of the user's
    own, 'module:Class', are left as they are: to know its defaults would be to import it.

    Returns:
      The same object where nothing is absent, else a copy.
    """
    leaves = dict(flatten(config))
    absent = {path: key.default for path, key in KEYS.items() if path not in leaves}
    name = leaves.get("model.name")
    if isinstance(name, str) and ":" not in name:
        absent |= {path: value for path, value in model_attributes(name).items() if path not in leaves}
    absent |= {new: leaves[old] for old, new in RENAMED.items() if old in leaves and new in absent}
    stale = [old for old in RENAMED if old in leaves]
    if not absent and not stale:
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for path, value in absent.items():
            section, leaf = _section(config, path)
            section[leaf] = value
        for path in stale:
            section, leaf = _section(config, path)
            del section[leaf]
    return config


def _section(config: ConfigDict, path: str) -> tuple[ConfigDict, str]:
    """(section, last part of the key), the section made when missing."""
    section, _, leaf = path.rpartition(".")
    if section and section not in config:
        config[section] = ConfigDict()
    return (config[section] if section else config), leaf


def model_attributes(name: str) -> dict[str, Any]:
    """{'model.depth': 4, …}: a model's attributes with their defaults, by the keys that they are; {} if there is none.

    A class of the user's own, 'module:Class', is imported for it: only for who has asked for that class.
    """
    from jaxvit.models import registry

    if ":" not in name and name not in registry.MODELS and name not in registry.FAMILIES:
        return {}
    defaults = registry.model_defaults(name)
    return {f"model.{key}": 0 if key == "num_classes" else value for key, value in defaults.items()}


# What jax counts by are int32; a seed is a uint32. Of files there may be more.
_LARGEST = {"seed": 2**32 - 1, "seeds": 2**32 - 1, "data.max_pixels": 2**53, "data.max_bytes": 2**53}
_LARGEST_ATTRIBUTE = 10**6  # of a model: a larger size is a slip, and jax cannot even trace it
_TUPLES_OF_WORDS = ("log.writers", "optim.muon_off", "optim.muon_on", "train.hooks")  # all others are of numbers


def check_value(path: str, value: Any) -> None:
    """Looks at the value of a key, or of a model's attribute 'model.NAME': is it of the key's type, and a number that
    something can be computed with? Which values make sense together, `jaxvit.config.plan.resolve` says.

    Raises:
      UsageError: it is not.
    """
    if path in KEYS:
        example = KEYS[path].default
        wanted = type(example)
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise UsageError(f"config.{path}={value!r}: must be of type {wanted.__name__}, such as {example!r}")
        kinds = (str,) if path in _TUPLES_OF_WORDS else (int, float)
        if wanted is tuple and not all(type(each) in kinds for each in value):
            of = "words" if str in kinds else "numbers"
            raise UsageError(f"config.{path}={value!r}: must be a tuple of {of}")
    attribute = path.startswith("model.")
    most = _LARGEST.get(path, _LARGEST_ATTRIBUTE if attribute else 2**31 - 1)
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, float) and not math.isfinite(each):
            raise UsageError(f"config.{path}={value}: must be finite")
        if isinstance(each, int | float if attribute else int) and abs(each) > most:
            raise UsageError(f"config.{path}={each:.12g}: must be at most {most:,}")


def check_keys(config: ConfigDict) -> None:
    """Every key there, none besides, and each a `check_value` of its own.

    Raises:
      UsageError: names the key, and the nearest real one.
    """
    leaves = dict(flatten(config))
    for path, value in leaves.items():
        if path not in KEYS and not path.startswith("model."):
            raise UsageError(f"config.{path}: {gone(path) or f'there is no such key{nearest(path, KEYS)}'}")
        check_value(path, value)
    missing = [path for path in KEYS if path not in leaves]
    if missing:
        raise UsageError(f"config.{missing[0]}: this key is missing; make the config by jaxvit.config.base_config()")


def gone(path: str) -> str:
    """Says what to write in place of a renamed or removed key; '' if there never was such a key."""
    if path in RENAMED:
        return f"this key is called config.{RENAMED[path]} now"
    return f"this key is gone; {REMOVED[path]}" if path in REMOVED else ""


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
