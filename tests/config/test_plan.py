"""`resolve`: derived numbers, and errors."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from jaxvit.config.plan import dataset_of, resolve
from jaxvit.config.reader import parse_duration
from jaxvit.data.augment import augment, preprocess
from jaxvit.errors import UsageError


@pytest.mark.parametrize(
    ("text", "steps"),
    [("30 epochs", 3000), ("1 epoch", 100), ("0.5 epochs", 50), ("2000 steps", 2000), ("15%", 150), ("7.5 %", 75)],
)
def test_durations(text, steps):
    assert parse_duration(text, key="k", steps_per_epoch=100, whole=1000) == steps


def test_a_share_rounds_down_as_the_shiftvit_tutorial_does():
    assert parse_duration("15%", key="k", steps_per_epoch=157, whole=15_625) == 2_343


@pytest.mark.parametrize("text", ["", "30", "epochs", "-3 epochs", "3 days", "1e3 steps"])
def test_a_bad_duration_shows_the_forms(text):
    with pytest.raises(UsageError, match="'30 epochs', '2000 steps'"):
        parse_duration(text, key="k", steps_per_epoch=100)


def test_the_numbers_of_a_plan():
    plan = resolve(tiny_config(train__patience="2 epochs", optim__warmup="25%"), devices=4)
    assert (plan.data.train_count, plan.data.validation_count, plan.data.test_count) == (60, 30, 25)
    assert plan.train.steps_per_epoch == 4  # 60 images in batches of 16, the last one smaller
    assert plan.train.steps == 12
    assert plan.train.per_device_batch == 4
    assert plan.train.patience_epochs == 2
    assert plan.optim.warmup_steps == 3 and plan.optim.total_steps == 12
    assert dict(plan.model.attributes)["num_classes"] == 10
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.seed = 1


def test_dropping_the_last_batch():
    assert resolve(tiny_config(train__last_batch="drop")).train.steps_per_epoch == 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data__name": "cifar11"}, "config.data.name"),
        ({"data__train": "trian"}, "config.data.train='trian': not a split of digits"),
        ({"data__train": "train[:0]"}, "config.data.train='train\\[:0\\]'"),
        ({"data__train": ""}, "config.data.train"),
        ({"train__batch_size": 0}, "config.train.batch_size=0: must be 1 or more"),
        ({"train__batch_size": 15}, "4 devices do not divide it; use 12 or 16"),
        ({"train__batch_size": 100, "train__last_batch": "drop"}, "has only 60 images"),
        ({"train__last_batch": "kept"}, "must be one of keep, drop \\(did you mean 'keep'"),
        ({"train__duration": "0 epochs"}, "must be one step or more"),
        ({"train__duration": "10%"}, "this key takes no share"),
        ({"train__patience": "1 steps"}, "must be one epoch or more"),
        ({"train__patience": "2 epochs", "data__validation": ""}, "early stopping needs config.data.validation"),
        ({"train__monitor": "acuracy"}, "must be one of top1"),
        ({"train__label_smoothing": 1.0}, "config.train.label_smoothing=1.0"),
        ({"optim__warmup": "13 steps"}, "warm-up of 13 steps is longer than the training of 12"),
        ({"optim__schedule": "cosin"}, "did you mean 'cosine'"),
        ({"optim__length": "200%", "optim__warmup": "60%"}, "warm-up of 14 steps is longer than the training of 12"),
        ({"optim__length": "6 steps", "optim__warmup": "7 steps"}, "is longer than the schedule of 6"),
        ({"optim__cooldown": "12 steps"}, "with the cooldown of 12 is longer than the schedule of 12"),
        ({"optim__layer_decay": 0.0}, "must be above 0 and at most 1"),
        ({"optim__name": "adamm"}, "did you mean 'adam"),
        ({"train__accumulate": 3}, "config.train.accumulate=3: a batch of 16 on 4 devices"),
        ({"train__fsdp": 3}, "must divide the number of devices, 4"),
        ({"optim__start_lr": 1.0}, "must not be above optim.peak_lr"),
        ({"optim__b1": 1.0}, "config.optim.b1=1.0"),
        ({"optim__clip_norm": -1.0}, "config.optim.clip_norm=-1.0"),
        ({"augment__mean": (0.1, 0.2)}, "config.augment.mean"),
        ({"augment__std": (0.0,)}, "must be above 0"),
        ({"augment__pad_crop": 8}, "must be below the image's side of 8"),
        ({"log__writers": ("tensorbord",)}, "did you mean 'tensorboard'"),
        ({"model__num_classes": 4}, "digits has 10 classes"),
        ({"init__attention": "mimetik"}, "config.init.attention='mimetik': .*did you mean 'mimetic'"),
        ({"init__attention": "mimetic", "init__query_key": (0.7,)}, "config.init.query_key=.*must be two numbers"),
        ({"init__attention": "mimetic", "init__value_output": (0, 0)}, "config.init.value_output=.*not both 0"),
        ({"init__positions": "sincos", "init__positions_scale": 0.0}, "config.init.positions_scale=0.0: must be above"),
        ({"init__stem": "whitening", "init__stem_eps": 0.0}, "config.init.stem_eps=0.0: must be above 0"),
        ({"init__stem": "whitening", "init__stem_images": 0}, "config.init.stem_images=0: must be 1 or more"),
        ({"augment__flip": True, "augment__flip_mode": "by turns"}, "must be one of random, alternate"),
        (
            {"augment__flip": True, "augment__flip_mode": "alternate", "augment__repeats": 2},
            "config.augment.repeats=2 repeats images",
        ),
        ({"seed": -1}, "config.seed=-1"),
        ({"optim__name": "muon", "optim__muon_rms": 0.0}, "config.optim.muon_rms=0.0: must be above 0"),
        ({"optim__name": "muon", "optim__muon_beta": 1.0}, "config.optim.muon_beta=1.0: must be at least 0"),
        ({"optim__name": "muon", "optim__muon_heads": "all"}, "config.optim.muon_heads='all': must be one of matrix"),
        ({"optim__name": "muon", "optim__muon_on": (1,)}, "config.optim.muon_on=.1,.: must be a tuple of words"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes, says):
    with pytest.raises(UsageError, match=says) as error:
        resolve(tiny_config(**changes), devices=4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        ({"data__validation": ""}, "train.monitor", "has no validation split to monitor"),
        ({"optim__schedule": "constant"}, "optim.end_lr", "the schedule is 'constant'"),
        ({"optim__schedule": "constant"}, "optim.length", "the schedule is 'constant'"),
        ({"optim__warmup": "0 steps"}, "optim.start_lr", "no warm-up"),
        ({"optim__weight_decay": 0.0}, "optim.decay_mask", "has no weight decay"),
        ({"optim__weight_decay": 0.0}, "optim.decay", "has no weight decay"),
        ({"optim__name": "adam"}, "optim.weight_decay", "'adamw' has"),
        ({"optim__name": "sgd"}, "optim.b2", "optim.name='sgd' has no such setting"),
        ({"optim__name": "lion"}, "optim.eps", "optim.name='lion' has no such setting"),
        ({"optim__name": "adamw"}, "optim.momentum", "optim.name='adamw' has no such setting"),
        ({"optim__name": "adamw"}, "optim.muon_rms", "optim.name='adamw' has no such setting"),
        ({"optim__name": "muon"}, "optim.momentum", "optim.name='muon' has no such setting"),
        ({}, "optim.ema_ramp", "keeps no moving average"),
        ({}, "init.query_key", "config.init.attention='' uses config.model.initialiser"),
        (
            {"init__attention": "mimetic"},
            "init.positions_scale",
            "config.init.positions='' uses config.model.initialiser",
        ),
        ({}, "init.stem_images", "config.init.stem='' uses config.model.initialiser"),
        ({}, "augment.flip_mode", "config.augment.flip=False mirrors no image"),
    ],
)
def test_an_override_that_nothing_reads_is_an_error(changes, key, says):
    config = tiny_config(**changes)
    resolve(config)  # fine while nobody set it by hand
    with pytest.raises(UsageError, match=says):
        resolve(config, overrides=[key])


def test_every_key_is_read_when_everything_is_on():
    from jaxvit.config.key_table import KEYS

    config = tiny_config(train__patience="2 epochs", optim__ema_decay=0.9)
    config.augment.update(train="resize_crop", evaluation="centre_crop", resize=10, rotation=0.1, mixup=0.8, cutmix=1.0)
    config.augment.update(erase=0.25, mix_until="50%", flip=True)
    config.init.update(attention="mimetic", positions="sincos", stem="whitening")
    config.data.update(folds=2, fold=1, balance="loss", balance_by="effective")
    muon = {f"optim.muon_{key}" for key in ("on", "off", "heads", "beta", "rms")}
    # Keys of runs that this test does not make: tests/data/test_ahead.py, test_few.py, run/test_initial_weights.py,
    # test_distillation.py and test_elastic.py make them.
    of_others = {"data.workers", "data.draw", "data.per_class", "train.elastic"}
    of_others |= {
        key for key in KEYS if key.startswith(("distill.", "init.from", "init.hash", "init.keep", "init.skip"))
    }
    of_others |= {"init.allow", "init.channels"}
    one_of_three = (
        {"augment.scale", "augment.ratio", "augment.crop_fraction", "optim.momentum", "train.seeds"} | muon | of_others
    )
    resolve(config, overrides=[*(key for key in KEYS if key not in one_of_three)])
    config.augment.update(train="random_resized_crop", evaluation="crop_fraction")
    config.seeds = (0, 1)
    others = {"augment.resize", "augment.crop_position", "optim.momentum", "seed"} | muon | of_others
    resolve(config, overrides=[*(key for key in KEYS if key not in others)])
    resolve(config, overrides=[*(f"model.{key}" for key in config.model)])
    resolve(tiny_config(optim__name="sgd"), overrides=["optim.momentum"])
    resolve(tiny_config(optim__name="muon"), overrides=[*muon, "optim.b1", "optim.b2", "optim.eps", "optim.decay"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"augment__size": 9, "augment__train": "resize_crop"}, "a crop of 9 pixels does not fit into 8"),
        ({"augment__policy": "rand-m9-x"}, "config.augment.policy='rand-m9-x'"),
        ({"augment__jitter": (0.4, 0.4)}, "must be four numbers"),
        ({"augment__erase": 1.5}, "config.augment.erase=1.5: must be from 0 to 1"),
        ({"augment__mixup": 0.8, "augment__mix_until": "0 epochs"}, "must be one step or more"),
        ({"augment__repeats": 3}, "must divide config.train.batch_size=16"),
        ({"augment__train": "random_resized_crop", "augment__scale": (0.5, 0.1)}, "0 < low <= high"),
        ({"augment__evaluation": "crop_fraction", "augment__crop_fraction": 0.0}, "above 0 and at most 1"),
        ({"augment__train": "resize-crop"}, "did you mean 'resize_crop'"),
    ],
)
def test_an_augmentation_that_cannot_be_is_refused(changes, says):
    with pytest.raises(UsageError, match=says):
        resolve(tiny_config(**changes))


def test_sizes_constants_and_the_end_of_mixing():
    config = tiny_config(augment__mean=(), augment__std=(), augment__mixup=0.8, augment__mix_until="50%")
    config.augment.update(train="resize_crop", resize=12, size=10)
    plan = resolve(config)
    assert plan.input_shape == (10, 10, 1) and plan.data.image_shape == (8, 8, 1)
    assert plan.augment.mix_until == 6
    assert plan.augment.mean == pytest.approx((0.305,), abs=0.02) and plan.augment.std == pytest.approx(
        (0.376,), abs=0.02
    )
    assert resolve(tiny_config(augment__train="resize_crop")).without_effect == (
        "augment.train='resize_crop' cuts 8 of 8 pixels: every crop is the whole image",
    )


def test_the_keys_of_the_data_set(tmp_path):
    plan = resolve(tiny_config(data__classes=(3, 8), data__train="train[:40]", data__validation="train[40:]"))
    assert plan.data.class_names == ("3", "8") and plan.data.train_count == 40
    assert dict(plan.model.attributes)["num_classes"] == 2
    assert resolve(tiny_config(data__side=6)).data.image_shape == (6, 6, 1)
    assert resolve(tiny_config(data__on_error="skip")).data.train_count == 60
    with pytest.raises(UsageError, match="did you mean 'skip'"):
        resolve(tiny_config(data__on_error="skipp"))


def test_where_the_batches_come_from(monkeypatch):
    assert resolve(tiny_config()).train.feed == "resident"
    assert resolve(tiny_config(data__feed="stream")).train.feed == "stream"
    assert resolve(tiny_config(augment__where="host")).train.feed == "stream"
    with pytest.raises(UsageError, match="sends batches from the host"):
        resolve(tiny_config(augment__where="host", data__feed="resident"))
    with monkeypatch.context() as patch:  # a part of a split that is too large to keep is no smaller than it
        patch.setattr("jaxvit.data.stored.CACHE_BYTES", 100 * 64)
        assert resolve(tiny_config(augment__mean=(0.5,))).train.feed == "stream"
        with pytest.raises(UsageError, match=r"config\.data\.feed='resident': digits is too large to keep"):
            resolve(tiny_config(data__feed="resident"))
    monkeypatch.setattr("jaxvit.config.plan.RESIDENT_BYTES", 100)
    assert resolve(tiny_config()).train.feed == "stream"
    assert resolve(tiny_config(train__steps_per_call=7)).train.steps_per_call == 7
    for platform, feed, steps in (("cpu", "resident", 1), ("gpu", "resident", 10), ("tpu", "stream", 1)):
        assert resolve(tiny_config(data__feed=feed), platform=platform).train.steps_per_call == steps


def picture(path, width, height):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path)


def test_images_that_vary_in_size_are_named_early(tmp_path):
    picture(tmp_path / "train" / "a" / "1.png", 10, 12)
    picture(tmp_path / "train" / "b" / "2.png", 12, 12)
    config = tiny_config(data__name=f"image_folder:{tmp_path}", data__train="train", data__validation="", data__test="")
    with pytest.raises(UsageError, match=r"vary in size; set config\.data\.side") as error:
        resolve(config)
    assert "\n" not in str(error.value)
    config.data.side = 8
    assert resolve(config).input_shape == (8, 8, 3)


@pytest.mark.parametrize("train", ["whole", "resize_crop", "random_resized_crop"])
@pytest.mark.parametrize("evaluation", ["whole", "centre_crop", "crop_fraction"])
def test_oblong_images_come_out_as_planned_or_are_refused(tmp_path, train, evaluation):
    for name in "ab":
        picture(tmp_path / "train" / name / "1.png", 10, 12)
    config = tiny_config(data__name=f"image_folder:{tmp_path}", data__train="train", data__validation="", data__test="")
    config.augment.update(train=train, evaluation=evaluation, policy="trivial")
    worked = 0
    for size in (0, 9, 11, 12):
        for resize in (0, 10, 12):
            config.augment.update(size=size, resize=resize)
            try:
                plan = resolve(config)
            except UsageError as error:
                assert "config.augment.size" in str(error) and "\n" not in str(error)
                continue
            worked += 1
            shape = jax.ShapeDtypeStruct((2, *plan.data.image_shape), np.uint8)
            batch = {"image": shape, "label": jax.ShapeDtypeStruct((2,), np.int32)}
            key = jax.eval_shape(lambda: jax.random.key(0))
            images, _ = jax.eval_shape(partial(augment, settings=plan.augment, classes=2), key, np.int32(0), batch)
            assert images.shape[1:] == plan.input_shape
            assert jax.eval_shape(partial(preprocess, settings=plan.augment), shape).shape[1:] == plan.input_shape
            assert "resize_crop" not in "".join(plan.without_effect) or (size, resize) in [(0, 0), (12, 12)]
    assert worked >= 5


@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        ({}, "augment.resize", "to resize to before"),
        ({}, "augment.scale", "config.augment.train='whole'"),
        ({}, "augment.interpolation", "no image is resized"),
        ({}, "augment.fill", "neither rotation nor zoom"),
        ({}, "augment.erase_mode", "erases nothing"),
        ({"augment__mixup": 0.8}, "augment.switch", "are not both on"),
        ({}, "augment.mix_until", "neither config.augment.mixup nor"),
    ],
)
def test_an_augmentation_key_that_nothing_reads(changes, key, says):
    with pytest.raises(UsageError, match=says):
        resolve(tiny_config(**changes), overrides=[key])


@pytest.mark.parametrize(("cooldown", "steps"), [("0.5 epochs", 2), ("05 steps", 5), (".25 epochs", 1), ("25%", 3)])
def test_a_constant_rate_cools_down_however_the_length_is_written(cooldown, steps):
    optim = resolve(
        tiny_config(optim__schedule="constant", optim__cooldown=cooldown, optim__end_lr=1e-5),
        overrides=["optim.end_lr"],
    ).optim
    assert (optim.cooldown_steps, optim.end_lr, optim.total_steps) == (steps, 1e-5, 12)


@pytest.mark.parametrize("cooldown", ["0 steps", "0.0 epochs", "0.1 epochs", "00%"])
@pytest.mark.parametrize("key", ["optim.end_lr", "optim.length"])
def test_without_a_cooldown_a_constant_rate_has_no_end(cooldown, key):
    config = tiny_config(optim__schedule="constant", optim__cooldown=cooldown)
    with pytest.raises(
        UsageError, match=f"config.{key}: this key has no effect in this run: the schedule is 'constant'"
    ):
        resolve(config, overrides=[key])
    resolve(config, overrides=["optim.cooldown"])


def test_images_that_are_trained_on_and_judged_by_are_told(tmp_path, capsys):
    config = tiny_config(data__train="train[:60]", data__validation="train[50:90]", data__test="train[:5]+test[:20]")
    said = resolve(config).warnings
    assert len(said) == 2 and said[0].startswith("10 of the 40 images of config.data.validation='train[50:90]'")
    assert said[1].startswith("5 of the 25 images of config.data.test=")
    assert resolve(tiny_config()).warnings == ()


def test_the_host_is_not_asked_to_do_nothing():
    config = tiny_config(augment__where="host", augment__pad_crop=0, augment__mixup=0.2)
    with pytest.raises(UsageError, match="no resizing, crop, flip, rotation or zoom is on"):
        resolve(config)
    assert resolve(tiny_config(augment__where="host", augment__pad_crop=0, augment__flip=True)).train.feed == "stream"


def test_test_images_that_select_the_weights_are_reported():
    plan = resolve(tiny_config(data__validation="train[60:90]", data__test="train[80:100]"))
    (warning,) = plan.warnings
    assert (
        warning.startswith("10 of the 20 images of config.data.test='train[80:100]'")
        and "also select the weights" in warning
    )
    assert not resolve(tiny_config()).warnings


def test_what_a_folder_leaves_out_is_reported_once(tmp_path, capsys):
    for name in ("a", "b"):
        picture(tmp_path / name / "1.png", 8, 8)
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        dataset_of(tiny_config(data__name=f"image_folder:{tmp_path}"))
    err = capsys.readouterr().err
    assert err.count("left out: class folders without an image: 1 (empty)") == 1
