"""Both feeds give the same batches and the same run, for any number of steps per call and of devices."""

import json
import os
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny import tiny_config

import jaxvit
from jaxvit.config.plan import dataset_of, resolve
from jaxvit.data.batches import TrainBatches, TrainOrder
from jaxvit.data.colour import normalize
from jaxvit.data.feed import ResidentFeed, StreamFeed
from jaxvit.data.sources import open_dataset
from jaxvit.devices.sharding import make_mesh
from jaxvit.run.assembly import assemble
from jaxvit.run.program import make_feed
from jaxvit.training.journal import read_jsonl


@pytest.fixture(scope="module")
def source(data_directory):
    return open_dataset("digits", data_directory).read("train[:50]")


def put(arrays):
    return jax.tree.map(jax.numpy.asarray, dict(arrays))


def feeds(source, steps_per_call, **options):
    order = TrainOrder(len(source), 16, seed=3, repeats=options.pop("repeats", 1))
    return (
        ResidentFeed(source, order, 16, steps_per_call, put_split=put, put_call=put),
        StreamFeed(source, order, 16, steps_per_call, 12, put_call=put, **options),
    )


@pytest.mark.parametrize("repeats", [1, 4])
def test_both_feeds_give_the_batches_of_the_steps(source, repeats):
    expected = TrainBatches(source, 16, seed=3, repeats=repeats)
    for feed in feeds(source, 3, repeats=repeats):
        for step, count in [(0, 3), (3, 1), (4, 3), (2, 2)]:  # also back, as a resumed run starts anywhere
            call = feed(step, count)
            for i in range(count):
                batch = feed.pick(feed.data, call, i)
                for name, values in expected[step + i].items():
                    np.testing.assert_array_equal(batch[name], values)


def test_repeated_augmentation_puts_copies_side_by_side(source):
    order = TrainOrder(50, 16, seed=3, repeats=4)
    chosen = order[0]
    assert len(set(chosen)) == 4 and (chosen.reshape(4, 4) == chosen[::4, None]).all()
    assert order.steps_per_epoch == 4 and sum(len(order[i]) for i in range(4)) == 50


@pytest.mark.parametrize("count", [1, 3])
def test_a_call_that_is_asked_for_again_does_not_start_the_stream_anew(source, count, monkeypatch):
    """A start compiles with the batch of its first step and then requests the first call."""
    _, feed = feeds(source, 3)
    started = []
    stream = feed._stream
    monkeypatch.setattr(feed, "_stream", lambda step: started.append(step) or stream(step))
    expected = TrainBatches(source, 16, seed=3)
    feed(2, 1)
    for step, many in [(2, count), (2 + count, 1)]:
        call = feed(step, many)
        for i in range(many):
            np.testing.assert_array_equal(feed.pick({}, call, i)["image"], expected[step + i]["image"])
    assert started == [2]


def test_a_subset_of_classes_can_be_resident(data_directory):
    part = open_dataset("digits", data_directory, classes=(1, 2)).read("train[:50]")
    resident, stream = feeds(part, 1)
    for name, values in stream.pick({}, stream(0, 1), 0).items():
        np.testing.assert_array_equal(resident.pick(resident.data, resident(0, 1), 0)[name], values)


def test_hosts_make_their_own_part(source):
    def feed(own):
        return StreamFeed(source, TrainOrder(50, 16, seed=3), 16, 1, 12, put_call=put, own=own)

    whole = feed(slice(None)).host_batch(5)
    parts = [feed(slice(i * 4, i * 4 + 4)).host_batch(5) for i in range(4)]
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)


def seen_by_turns(feed, **changes):
    """{number: [mirrored, in the order of the epochs]} of what three epochs give the model; the last steps first."""
    config = tiny_config(data__feed=feed, augment__flip=True, augment__flip_mode="alternate", augment__pad_crop=0)
    for key, value in changes.items():
        config.augment[key] = value
    dataset = dataset_of(config)
    plan = resolve(config, dataset=dataset)
    assembly, split = assemble(plan), dataset.read(plan.data.train)
    made = make_feed(plan, assembly, split, make_mesh(1), 1)
    prepare = jax.jit(lambda data, call, step: (assembly.prepare(step, b := made.pick(data, call, 0)), b["number"]))
    originals = np.asarray(normalize(split.images[:], plan.augment.mean, plan.augment.std))
    seen = {number: [None] * 3 for number in range(len(split))}
    for step in reversed(range(plan.train.steps)):
        examples, numbers = prepare(made.data, made(step, 1), np.int32(step))
        for image, number, counts in zip(examples["image"], np.asarray(numbers), examples["mask"], strict=True):
            plain, mirrored = (np.array_equal(image, x) for x in (originals[number], originals[number][:, ::-1]))
            assert plain != mirrored
            if counts:
                seen[int(number)][step // plan.train.steps_per_epoch] = mirrored
    return seen


def test_images_mirrored_by_turns_are_seen_both_ways_in_two_epochs_whatever_the_feed():
    seen = seen_by_turns("resident")
    assert all(a != b and a == c for a, b, c in seen.values())
    assert 15 < sum(first for first, _, _ in seen.values()) < 45
    assert seen_by_turns("stream") == seen
    assert seen_by_turns("stream", where="host") == seen


def run(workdir, **changes):
    with jax.numpy_dtype_promotion("standard"):
        result = jaxvit.train(tiny_config(checkpoint__every="3 steps", **changes), workdir)
    return result["test"], read_jsonl(workdir / "metrics.jsonl")


@pytest.fixture(scope="module")
def plain(tmp_path_factory, data_directory):
    return run(tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize(
    "changes",
    [{"data__feed": "stream"}, {"train__steps_per_call": 3}, {"data__feed": "stream", "train__steps_per_call": 8}],
    ids=["stream", "3 a call", "stream, 8 a call"],
)
def test_the_run_is_the_same_bit_for_bit(plain, tmp_path, changes):
    assert run(tmp_path / "run", **changes) == plain


def test_geometry_on_the_host_trains_the_same(tmp_path, plain):
    test, metrics = run(tmp_path / "run", augment__where="host")
    assert metrics == plain[1] and test == plain[0]


_EIGHT = """
import sys, json
sys.path.insert(0, {tests!r})
import jax
from tiny import tiny_config
from jaxvit.run.assembly import assemble
from jaxvit.config.plan import dataset_of, resolve
from jaxvit.run.program import make_feed
from jaxvit.devices.sharding import make_mesh
import hashlib, numpy as np
out = []
for devices in (1, 8):
    for feed in ("resident", "stream"):
        config = tiny_config(data__feed=feed, augment__flip=True, augment__mixup=0.8, augment__cutmix=1.0)
        dataset = dataset_of(config)
        plan = resolve(config, devices=devices, dataset=dataset)
        assembly = assemble(plan)
        made = make_feed(plan, assembly, dataset.read(plan.data.train), make_mesh(devices), 1)
        from jaxvit.data.augment import augment
        step = jax.jit(lambda data, call: augment(
            jax.random.key(0), 5, made.pick(data, call, 0), plan.augment, classes=10))
        images, targets = step(made.data, made(5, 1))
        out.append([len(images.sharding.device_set), *(np.asarray(x).round(5).tolist() for x in (images, targets))])
print(json.dumps([o[0] for o in out]))
print(json.dumps([o[1:] == out[0][1:] for o in out]))
"""


@pytest.mark.slow
def test_the_same_batch_on_one_device_and_on_eight():
    code = _EIGHT.format(tests=os.path.join(os.path.dirname(__file__), ".."))
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    devices, same = map(json.loads, done.stdout.strip().splitlines()[-2:])
    assert devices == [1, 1, 8, 8] and all(same)


def test_what_is_made_ahead_is_known(source):
    """Batches prefetched before the clock starts must be discarded when an input is timed."""
    order = TrainOrder(len(source), 8, seed=0)
    stream = StreamFeed(source, order, 8, 1, steps=40, put_call=put, threads=6)
    made = []
    plain = stream.host_batch
    stream.host_batch = lambda step: (made.append(step), plain(step))[1]
    stream(0, 1)
    time.sleep(1.0)
    assert stream.ahead == 6 and 0 < len(made) - 1 <= stream.ahead + 6
    assert ResidentFeed.ahead == 0
