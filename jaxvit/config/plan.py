"""Derives the Plan of a run, all its numbers, from a config, and checks that the values fit together.

`resolve` is the only reader of a config. It records which keys it reads. An override of a key that it does not read has
no effect in this run, which is an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

from ml_collections import ConfigDict

from jaxvit.config.distillation import resolve_distill
from jaxvit.config.identity import config_hash
from jaxvit.config.key_table import KEYS
from jaxvit.config.keys import NO_SOURCE, SOURCE, check_keys
from jaxvit.config.plan_augment import resolve_augment
from jaxvit.config.plan_data import check_classes, open_named, overlaps, resolve_balance
from jaxvit.config.plan_init import resolve_init, why_init_unread
from jaxvit.config.plan_optim import resolve_optim, why_unread
from jaxvit.config.plan_types import DataPlan, ModelPlan, Plan, TrainPlan
from jaxvit.config.reader import ConfigReader, parse_duration
from jaxvit.data.augment import without_effect
from jaxvit.data.batches import steps_per_epoch
from jaxvit.data.dataset import Dataset
from jaxvit.data.prepared import data_dir
from jaxvit.errors import UsageError
from jaxvit.training.hooks import check_hooks
from jaxvit.training.journal import check_writers
from jaxvit.training.metrics import BY_CLASS, MONITORS

MOST_WORKERS = 1024
RESIDENT_BYTES = 2 << 30  # data.feed='auto' keeps training splits of up to this size on the devices
STEPS_PER_CALL = 10  # train.steps_per_call=0 means this on accelerators that keep the training split


def resolve(
    config: ConfigDict,
    *,
    devices: int = 1,
    platform: str = "cpu",
    overrides: Iterable[str] = (),
    dataset: Dataset | None = None,
) -> Plan:
    """Derives the Plan of a config.

    Args:
      config: config of an experiment.
      devices: number of devices that share a batch.
      platform: platform of the devices, 'cpu', 'gpu' or 'tpu'.
      overrides: keys that the user has set on the command line. Each must have an effect in this run.
      dataset: the config's data set, if it is open already; None = open it.

    Raises:
      UsageError: a value is out of range, values do not fit together, or an override has no effect.
    """
    check_keys(config)
    get = ConfigReader(config)
    dataset = open_named(get, dataset)
    check_classes(dataset, get("data.name", str), get("data.classes", tuple))
    data = _resolve_data(get, dataset)
    train = _resolve_train(get, data, dataset, devices, platform)
    augment = resolve_augment(get, data, train, dataset)
    seeds = _resolve_seeds(get)
    folds = get.peek("data.folds", int)
    if seeds and folds and get.peek("data.fold", int) < 0:
        raise UsageError(
            f"config.seeds={seeds} and config.data.folds={folds} both make several runs; set seeds to (), or "
            "config.data.fold to one of the folds"
        )
    plan = Plan(
        seed=seeds[0] if seeds else get.at_least("seed", 0),
        seeds=seeds,
        seeds_run=get.one_of("train.seeds", ("auto", "together", "in_turn")) if seeds else "",
        data=data,
        augment=augment,
        model=_resolve_model(get, config, data),
        optim=resolve_optim(get, train),
        ema_decay=(ema_decay := get.between("optim.ema_decay", 0.0, 1.0)),
        ema_ramp=get("optim.ema_ramp", bool) if ema_decay else False,
        train=train,
        config_hash=config_hash(config),
        init=resolve_init(get),
        distill=resolve_distill(get),
        without_effect=without_effect(augment, data.image_shape, train.batch_size),
        warnings=overlaps(dataset, data),
    )
    for key in overrides:
        if key not in get.read:
            raise UsageError(f"--config.{key}: this key has no effect in this run: {_why_unread(key, get)}")
    return plan


def dataset_of(config: ConfigDict) -> Dataset:
    """Opens the data set that a config names."""
    return open_named(ConfigReader(config), None)


def _resolve_seeds(get: ConfigReader) -> tuple[int, ...]:
    seeds = get("seeds", tuple)
    if not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) != len(seeds):
        raise UsageError(f"config.seeds={seeds}: must be different whole numbers of 0 or more, such as (0, 1, 2)")
    return seeds


def _resolve_data(get: ConfigReader, dataset: Dataset) -> DataPlan:
    directory = data_dir(get("data.dir", str))
    name = get("data.name", str)
    train, validation, test = (get(f"data.{part}", str) for part in ("train", "validation", "test"))
    if not train:
        raise UsageError("config.data.train='': a run needs images to train on")
    train_count, validation_count, test_count = (
        dataset.count(split, f"config.data.{part}") if split else 0
        for part, split in (("train", train), ("validation", validation), ("test", test))
    )
    return DataPlan(
        name=name,
        directory=str(directory),
        image_shape=dataset.image_shape,
        class_names=dataset.class_names,
        train=train,
        validation=validation,
        test=test,
        train_count=train_count,
        validation_count=validation_count,
        test_count=test_count,
        **resolve_balance(get, dataset, train),
    )


def _resolve_model(get: ConfigReader, config: ConfigDict, data: DataPlan) -> ModelPlan:
    name = get("model.name", str)
    if name == SOURCE:
        _refuse_unknown_source(get)
    attributes = {key: get(f"model.{key}", object) for key in cast(ConfigDict, config.model) if key != "name"}
    classes = len(data.class_names)
    if "num_classes" in attributes:
        given = get("model.num_classes", int)
        if 0 != given < classes:
            raise UsageError(
                f"config.model.num_classes={given}: {data.name} has {classes} classes; 0 means all of them"
            )
        attributes["num_classes"] = given or classes
    return ModelPlan(name, tuple(attributes.items()))


def _refuse_unknown_source(get: ConfigReader) -> None:
    """Says why the model of `init.from` is not known."""
    if where := get("init.from", str):
        from jaxvit.config.initial_weights import read_weights  # imports the models and the importers

        read_weights(where)
    raise UsageError(NO_SOURCE)


def _resolve_train(get: ConfigReader, data: DataPlan, dataset: Dataset, devices: int, platform: str) -> TrainPlan:
    batch = get.at_least("train.batch_size", 1)
    if batch % devices:
        lower = batch - batch % devices
        fits = f"{lower} or {lower + devices}" if lower else f"{devices}"
        raise UsageError(f"config.train.batch_size={batch}: {devices} devices do not divide it; use {fits}")
    accumulate = get.at_least("train.accumulate", 1)
    if batch % (devices * accumulate):
        raise UsageError(
            f"config.train.accumulate={accumulate}: a batch of {batch} on {devices} devices cannot be split into as "
            f"many parts; {accumulate} must divide {batch // devices}"
        )
    fsdp = get.at_least("train.fsdp", 1)
    if devices % fsdp:
        raise UsageError(f"config.train.fsdp={fsdp}: must divide the number of devices, {devices}")
    last = get.one_of("train.last_batch", ("keep", "drop"))
    per_epoch = steps_per_epoch(data.train_count, batch, last)
    if per_epoch == 0:
        raise UsageError(
            f"config.train.batch_size={batch}: the training split has only {data.train_count} images, and "
            "train.last_batch='drop' drops the only batch"
        )

    def length(key: str, whole: int = 0) -> int:
        return parse_duration(get(key, str), key=key, steps_per_epoch=per_epoch, whole=whole)

    steps = length("train.duration")
    if steps < 1:
        raise UsageError(f"config.train.duration='{get('train.duration', str)}': must be one step or more")
    patience_text = get("train.patience", str)
    patience = 0
    if patience_text:
        if not data.validation:
            raise UsageError("config.train.patience: early stopping needs config.data.validation")
        patience = length("train.patience") // per_epoch
        if patience < 1:
            raise UsageError(f"config.train.patience='{patience_text}': must be one epoch or more")
    monitor = get.one_of("train.monitor", tuple(MONITORS)) if data.validation else ""
    eval_batch = get.at_least("eval.batch_size", 0) or batch
    writers = get("log.writers", tuple)
    check_writers(writers)
    feed = _resolve_feed(get, data, dataset)
    # Batches of a stream are copied to the devices a call at a time, and several may not fit.
    several = STEPS_PER_CALL if platform != "cpu" and feed == "resident" else 1
    return TrainPlan(
        steps=steps,
        steps_per_epoch=per_epoch,
        batch_size=batch,
        per_device_batch=batch // devices,
        devices=devices,
        last_batch=last,
        accumulate=accumulate,
        fsdp=fsdp,
        deterministic=get("train.deterministic", bool),
        implementations=get.one_of("train.implementations", ("fast", "plain")),
        label_smoothing=get.between("train.label_smoothing", 0.0, 1.0),
        patience_epochs=patience,
        hooks=check_hooks(get("train.hooks", tuple)),
        monitor=monitor,
        by_class=monitor in BY_CLASS or data.balance != "none",
        eval_batch_size=math.ceil(eval_batch / devices) * devices,
        checkpoint_every=max(1, length("checkpoint.every")),
        log_every=max(1, length("log.every")),
        writers=writers,
        feed=feed,
        steps_per_call=get.at_least("train.steps_per_call", 0) or several,
        workers=_resolve_workers(get, data, dataset),
        elastic=_resolve_elastic(get),
    )


def _resolve_elastic(get: ConfigReader) -> tuple[int, ...]:
    """The numbers of learned tokens to train for; () = only that of the model."""
    counts = get("train.elastic", tuple)
    if not counts:
        return ()
    whole = all(type(count) is int and count > 0 for count in counts)
    if not whole or list(counts) != sorted(set(counts)) or len(counts) < 2:
        raise UsageError(f"config.train.elastic={counts}: must be two or more rising numbers, such as (4, 16)")
    return counts


def _resolve_feed(get: ConfigReader, data: DataPlan, dataset: Dataset) -> str:
    """Chooses between 'resident' and 'stream'."""
    feed = get.one_of("data.feed", ("auto", "resident", "stream"))
    on_host = get("augment.where", str) == "host"
    if on_host and feed == "resident":
        raise UsageError(
            "config.data.feed='resident': config.augment.where='host' sends batches from the host; set data.feed to "
            "'stream' or 'auto'"
        )
    kept = dataset.is_kept(data.train)
    if feed == "resident" and not kept:
        raise UsageError(
            f"config.data.feed='resident': {data.name} is too large to keep its decoded images; set data.feed to "
            "'stream' or 'auto'"
        )
    if feed != "auto":
        return feed
    size = data.train_count * math.prod(data.image_shape)
    return "stream" if on_host or not kept or size > RESIDENT_BYTES else "resident"


def _resolve_workers(get: ConfigReader, data: DataPlan, dataset: Dataset) -> int:
    """The value of `data.workers`; -1 if all splits are kept decoded, so that nothing is decoded during training."""
    if all(dataset.is_kept(split) for split in (data.train, data.validation, data.test) if split):
        return -1
    workers = get.at_least("data.workers", -1)
    if workers > MOST_WORKERS:
        raise UsageError(f"config.data.workers={workers}: must be at most {MOST_WORKERS}")
    return workers


def _why_unread(key: str, get: ConfigReader) -> str:
    """Names the setting that makes a key have no effect."""
    if key == "seed":
        return f"the run trains config.seeds={get('seeds', tuple)}"
    if key == "train.seeds":
        return "config.seeds=() trains one run only"
    train, evaluation = get("augment.train", str), get("augment.evaluation", str)
    sizing = f"config.augment.train='{train}', config.augment.evaluation='{evaluation}'"
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
        mixup, cutmix = get("augment.mixup", float), get("augment.cutmix", float)
        return f"config.augment.mixup={mixup} and config.augment.cutmix={cutmix} are not both on"
    if key in ("augment.mix_probability", "augment.mix_until"):
        return "neither config.augment.mixup nor config.augment.cutmix is on"
    if key.startswith("distill."):
        return "config.distill.from='' names no teacher"
    if key.startswith("init."):
        return why_init_unread(key)
    if key == "data.workers":
        return "the images are kept decoded in the cache, so that training decodes none"
    if key == "data.draw":
        return "config.data.per_class=0 trains on all images"
    if key == "data.fold":
        return "config.data.folds=0 makes no folds"
    if key in ("data.balance_by", "data.balance_beta"):
        return (
            f"config.data.balance='{get('data.balance', str)}', config.data.balance_by='{get('data.balance_by', str)}'"
        )
    if key == "train.monitor":
        return "config.data.validation='' has no validation split to monitor"
    if key == "optim.ema_ramp":
        return "config.optim.ema_decay=0.0 keeps no moving average"
    if key.startswith("optim."):
        return why_unread(key, get)
    return "other settings turn it off"
