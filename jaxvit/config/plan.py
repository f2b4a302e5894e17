"""From a config to a frozen Plan: all derived numbers of a run, worked out and checked in one place.

`resolve` is the only reader of a config. It notes which keys it reads; an overridden key that it did not read has no
effect in this run, and that is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ml_collections import ConfigDict

from jaxvit.config.identity import config_hash
from jaxvit.config.keys import KEYS, check_keys
from jaxvit.config.plan_augment import resolve_augment
from jaxvit.config.plan_init import resolve_init, why_init_unread
from jaxvit.config.plan_optim import resolve_optim, why_unread
from jaxvit.config.plan_types import DataPlan, ModelPlan, Plan, TrainPlan
from jaxvit.config.reader import ConfigReader, parse_duration
from jaxvit.data.augment import without_effect
from jaxvit.data.batches import steps_per_epoch
from jaxvit.data.decoding import Limits
from jaxvit.data.prepared import data_dir
from jaxvit.data.sources import Dataset, open_dataset
from jaxvit.errors import UsageError
from jaxvit.training.hooks import check_hooks
from jaxvit.training.journal import check_writers
from jaxvit.training.metrics import MONITORS

RESIDENT_BYTES = 2 << 30  # training splits up to this size are kept on the devices


def resolve(
    config: ConfigDict, *, devices: int = 1, overrides: Iterable[str] = (), dataset: Dataset | None = None
) -> Plan:
    """Derives the Plan of a config.

    Args:
      config: an experiment's config.
      devices: number of devices that share a batch.
      overrides: keys set on the command line; each must matter in this run.
      dataset: already opened, to open it only once.

    Raises:
      UsageError: a value is out of range, parts do not fit together, or an override has no effect.
    """
    check_keys(config)
    get = ConfigReader(config)
    dataset = _open(get, dataset)
    data = _resolve_data(get, dataset)
    train = _resolve_train(get, data, dataset, devices)
    augment = resolve_augment(get, data, train, dataset)
    seeds = _resolve_seeds(get)
    plan = Plan(
        seed=seeds[0] if seeds else get.at_least("seed", 0),
        seeds=seeds,
        seeds_run=get.one_of("train.seeds", ("auto", "together", "in_turn")) if seeds else "",
        data=data,
        augment=augment,
        model=_resolve_model(get, config, data),
        optim=resolve_optim(get, train),
        ema_decay=(ema_decay := get.between("optim.ema_decay", 0.0, 1.0)),
        ema_ramp=get("optim.ema_ramp") if ema_decay else False,
        train=train,
        config_hash=config_hash(config),
        init=resolve_init(get),
        without_effect=without_effect(augment, data.image_shape, train.batch_size),
        warnings=_overlaps(dataset, data),
    )
    for key in overrides:
        if key not in get.read:
            raise UsageError(f"--config.{key}: nothing reads this key in this run: {_why_unread(key, config)}")
    return plan


def dataset_of(config: ConfigDict) -> Dataset:
    """Opens the data set that a config names."""
    return _open(ConfigReader(config), None)


def _open(get: ConfigReader, opened: Dataset | None) -> Dataset:
    options = {
        "classes": tuple(get("data.classes")),
        "on_error": get.one_of("data.on_error", ("stop", "skip")),
        "side": get.at_least("data.side", 0),
        "limits": Limits(get.at_least("data.max_pixels", 1), get.at_least("data.max_bytes", 1)),
    }
    side, most = options["side"], options["limits"].pixels
    if side**2 > most:
        raise UsageError(f"config.data.side={side}: that is more pixels than config.data.max_pixels={most} allows")
    return opened or open_dataset(get("data.name"), data_dir(get("data.dir")), **options)


def _overlaps(dataset: Dataset, data: DataPlan) -> tuple[str, ...]:
    """Images that are trained on and judged by as well: allowed, for whoever wants to see a model fit them."""
    found = []
    for part in ("validation", "test"):
        split = getattr(data, part)
        shared = dataset.shared(data.train, split) if split else 0
        if shared:
            found.append(
                f"{shared:,} of the {getattr(data, f'{part}_count'):,} images of config.data.{part}='{split}' are "
                f"trained on as well (config.data.train='{data.train}')"
            )
    return tuple(found)


def _resolve_seeds(get: ConfigReader) -> tuple[int, ...]:
    seeds = tuple(get("seeds"))
    if not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) != len(seeds):
        raise UsageError(f"config.seeds={seeds}: must be different whole numbers from 0, such as (0, 1, 2)")
    return seeds


def _resolve_data(get: ConfigReader, dataset: Dataset) -> DataPlan:
    directory = data_dir(get("data.dir"))
    name = get("data.name")
    splits = {part: get(f"data.{part}") for part in ("train", "validation", "test")}
    if not splits["train"]:
        raise UsageError("config.data.train='': a run needs images to train on")
    counts = {part: dataset.count(split, f"config.data.{part}") if split else 0 for part, split in splits.items()}
    return DataPlan(
        name=name,
        directory=str(directory),
        image_shape=dataset.image_shape,
        class_names=dataset.class_names,
        **splits,
        **{f"{part}_count": count for part, count in counts.items()},
    )


def _resolve_model(get: ConfigReader, config: ConfigDict, data: DataPlan) -> ModelPlan:
    name = get("model.name")
    attributes = {key: get(f"model.{key}") for key in config.model if key != "name"}
    classes = len(data.class_names)
    if attributes.get("num_classes", 1) == 0:
        attributes["num_classes"] = classes
    if attributes.get("num_classes", classes) < classes:
        given = attributes["num_classes"]
        raise UsageError(f"config.model.num_classes={given}: {data.name} has {classes} classes; 0 takes them all")
    return ModelPlan(name, tuple(attributes.items()))


def _resolve_train(get: ConfigReader, data: DataPlan, dataset: Dataset, devices: int) -> TrainPlan:
    batch = get.at_least("train.batch_size", 1)
    if batch % devices:
        lower = batch - batch % devices
        fits = f"{lower} or {lower + devices}" if lower else f"{devices}"
        raise UsageError(f"config.train.batch_size={batch}: {devices} devices do not divide it; {fits} would do")
    accumulate = get.at_least("train.accumulate", 1)
    if batch % (devices * accumulate):
        raise UsageError(
            f"config.train.accumulate={accumulate}: a batch of {batch} on {devices} devices cannot be cut into as many "
            f"parts; {accumulate} must divide {batch // devices}"
        )
    fsdp = get.at_least("train.fsdp", 1)
    if devices % fsdp:
        raise UsageError(f"config.train.fsdp={fsdp}: it must divide the {devices} devices that there are")
    last = get.one_of("train.last_batch", ("keep", "drop"))
    per_epoch = steps_per_epoch(data.train_count, batch, last)
    if per_epoch == 0:
        raise UsageError(
            f"config.train.batch_size={batch}: the training split has only {data.train_count} images, and "
            "train.last_batch='drop' drops the only batch"
        )

    def length(key: str, whole: int = 0) -> int:
        return parse_duration(get(key), key=key, steps_per_epoch=per_epoch, whole=whole)

    steps = length("train.duration")
    if steps < 1:
        raise UsageError(f"config.train.duration='{get('train.duration')}': that is less than one step")
    patience_text = get("train.patience")
    patience = 0
    if patience_text:
        if not data.validation:
            raise UsageError("config.train.patience: early stopping needs config.data.validation")
        patience = length("train.patience") // per_epoch
        if patience < 1:
            raise UsageError(f"config.train.patience='{patience_text}': must be one epoch or more")
    eval_batch = get.at_least("eval.batch_size", 0) or batch
    writers = tuple(get("log.writers"))
    check_writers(writers)
    return TrainPlan(
        steps=steps,
        steps_per_epoch=per_epoch,
        batch_size=batch,
        per_device_batch=batch // devices,
        devices=devices,
        last_batch=last,
        accumulate=accumulate,
        fsdp=fsdp,
        deterministic=get("train.deterministic"),
        ways=get.one_of("train.ways", ("fast", "plain")),
        label_smoothing=get.between("train.label_smoothing", 0.0, 1.0),
        patience_epochs=patience,
        hooks=check_hooks(get("train.hooks")),
        monitor=get.one_of("train.monitor", tuple(MONITORS)) if data.validation else "",
        eval_batch_size=math.ceil(eval_batch / devices) * devices,
        checkpoint_every=max(1, length("checkpoint.every")),
        log_every=max(1, length("log.every")),
        writers=writers,
        feed=_resolve_feed(get, data, dataset),
        steps_per_call=get.at_least("train.steps_per_call", 1),
    )


def _resolve_feed(get: ConfigReader, data: DataPlan, dataset: Dataset) -> str:
    """'resident' or 'stream'."""
    feed = get.one_of("data.feed", ("auto", "resident", "stream"))
    on_host = get("augment.where") == "host"
    if on_host and feed == "resident":
        raise UsageError(
            "config.data.feed='resident': with config.augment.where='host' the batches come from the host; "
            "set data.feed to 'stream' or 'auto'"
        )
    kept = dataset.is_kept(data.train)
    if feed == "resident" and not kept:
        raise UsageError(
            f"config.data.feed='resident': {data.name} is too large to be kept decoded, and so are parts of it; set "
            "data.feed to 'stream' or 'auto'"
        )
    if feed != "auto":
        return feed
    size = data.train_count * math.prod(data.image_shape)
    return "stream" if on_host or not kept or size > RESIDENT_BYTES else "resident"


def _why_unread(key: str, config: ConfigDict) -> str:
    """Names the setting that makes a key idle."""
    if key == "seed":
        return f"config.seeds={config.seeds} are trained"
    if key == "train.seeds":
        return "config.seeds=() asks for one run only"
    augment = config.augment
    sizing = f"config.augment.train='{augment.train}', config.augment.evaluation='{augment.evaluation}'"
    if key in ("augment.resize", "augment.crop_position", "augment.crop_fraction", "augment.scale", "augment.ratio"):
        return f"{KEYS[key].meaning}; here {sizing}"
    if key == "augment.interpolation":
        return "no image is resized"
    if key == "augment.flip_mode":
        return "config.augment.flip=False mirrors no image"
    if key == "augment.fill":
        return "there is neither rotation nor zoom"
    if key == "augment.erase_mode":
        return "config.augment.erase=0 erases nothing"
    if key == "augment.switch":
        return f"config.augment.mixup={augment.mixup} and config.augment.cutmix={augment.cutmix} are not both on"
    if key in ("augment.mix_probability", "augment.mix_until"):
        return "neither config.augment.mixup nor config.augment.cutmix is on"
    if key.startswith("init."):
        return why_init_unread(key)
    if key == "train.monitor":
        return "there is no config.data.validation to watch"
    if key == "optim.ema_ramp":
        return "config.optim.ema_decay=0.0 keeps no average"
    if key.startswith("optim."):
        return why_unread(key, config)
    return "other settings leave it without effect"
