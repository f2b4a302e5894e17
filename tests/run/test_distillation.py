"""A run that learns from another: its teacher, its hash, resuming, and teachers that do not fit."""

import jax
import numpy as np
import pytest
from runs import StopAt, newest_state
from tiny import tiny_config

import jaxvit
from jaxvit.config.distillation import read_teacher
from jaxvit.config.identity import config_hash
from jaxvit.config.plan import resolve
from jaxvit.errors import STOPPED, StoppedError, UsageError
from jaxvit.run.assembly import assemble
from jaxvit.run.teacher import logits_and_features
from jaxvit.training.loss import cross_entropy, distillation_loss, feature_distance
from jaxvit.training.step import gradients_and_sums


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    with jax.numpy_dtype_promotion("standard"):
        jaxvit.train(tiny_config(train__duration="3 steps", data__validation="", seed=5), folder)
    return folder


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def taught(teacher, **changes):
    config = tiny_config(**{"train__duration": "6 steps", "data__validation": "", "distill__features": 0.5, **changes})
    config.distill["from"] = str(teacher)
    return config


def test_it_learns_from_the_teacher_and_resumes_exactly(teacher, tmp_path, monkeypatch):
    jaxvit.train(taught(teacher), tmp_path / "straight")
    monkeypatch.setattr("jaxvit.run.train.StopRequest", lambda: StopAt(3, STOPPED))
    with pytest.raises(StoppedError):
        jaxvit.train(taught(teacher), tmp_path / "stopped")
    monkeypatch.undo()
    jaxvit.train(taught(teacher), tmp_path / "stopped")
    jaxvit.train(tiny_config(train__duration="6 steps", data__validation=""), tmp_path / "alone")
    straight, stopped, alone = (
        newest_state(tmp_path / name, config)[0]
        for name, config in (
            ("straight", taught(teacher)),
            ("stopped", taught(teacher)),
            ("alone", tiny_config(train__duration="6 steps", data__validation="")),
        )
    )
    jax.tree.map(np.testing.assert_array_equal, straight, stopped)
    # The teacher is in neither the parameters nor the optimizer's state.
    assert jax.tree.structure(straight) == jax.tree.structure(alone)
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (straight.params, alone.params)), strict=True)]
    assert max(moved) > 0
    kept = jaxvit.load(tmp_path / "straight").config.distill
    assert kept["from"] == str(teacher) and kept.hash == read_teacher(str(teacher)).hash


def test_the_loss_mixes_labels_answers_and_features_of_the_same_images(teacher):
    assembly = assemble(resolve(taught(teacher, distill__weight=0.3, distill__temperature=3.0)))
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8),
        "label": np.arange(16, dtype=np.int32) % 10,
        "mask": np.array([1] * 15 + [0], np.float32),
    }
    examples = assembly.prepare(np.int32(0), batch)
    model = jaxvit.load(teacher)
    seen, features = logits_and_features(lambda: model.model.apply(model.variables, examples["image"], train=False))
    rng = np.random.default_rng(1)
    found = (rng.normal(size=(16, 10)).astype("f"), rng.normal(size=(16, 8)).astype("f"))
    logits, loss_B = assembly.teacher.criterion(found, examples)
    np.testing.assert_array_equal(logits, found[0])
    want = 0.7 * cross_entropy(found[0], examples["target"]) + 0.3 * distillation_loss(found[0], seen, 3.0)
    np.testing.assert_allclose(loss_B, want + 0.5 * feature_distance(found[1], features), rtol=1e-4)
    # Part by part gives the same gradients: each part asks about its own images.
    state = assembly.create_state()
    plain = assembly.model.clone(dropout=0.0)

    def apply(variables, images, *, train, key):
        return logits_and_features(lambda: plain.apply(variables, images, train=train))

    how = {"apply": apply, "criterion": assembly.teacher.criterion}
    whole, _ = jax.jit(lambda: gradients_and_sums(state, examples, **how))()
    parts, _ = jax.jit(lambda: gradients_and_sums(state, examples, accumulate=2, **how))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), whole, parts)


def test_other_weights_are_another_experiment(teacher, tmp_path):
    config = taught(teacher)
    config.distill.hash = read_teacher(str(teacher)).hash
    assert config_hash(config) != config_hash(tiny_config(train__duration="6 steps", data__validation=""))
    other = taught(teacher)
    other.distill.hash = "0" * 16
    assert config_hash(config) != config_hash(other)
    with pytest.raises(UsageError, match=r"config.distill.hash=0{16}: .* holds weights of hash"):
        jaxvit.train(other, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__classes": (0, 1, 2)}, "the teacher knows 10 classes"),
        ({"augment__size": 4, "augment__resize": 4}, "the teacher sees images of 8×8×1"),
        ({"augment__mean": (0.5,)}, "the teacher's images have mean"),
        ({"distill__temperature": 0.0}, "config.distill.temperature=0.0: must be above 0"),
        ({"distill__weight": 1.5}, "config.distill.weight=1.5: must be from 0 to 1"),
        ({"distill__features": -1.0}, "config.distill.features=-1.0: must be 0 or more"),
        ({"distill__weight": 0.0, "distill__features": 0.0}, "nothing is learned from the teacher"),
        ({"model__dim": 16}, "the teacher has 8 features, and this model 16"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher, tmp_path, changes, said):
    with pytest.raises(UsageError, match=said):
        jaxvit.train(taught(teacher, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_teacher_and_no_weights(tmp_path):
    for folder, said in ((tmp_path / "nothing", "there is no such folder"), (tmp_path, "holds no weights")):
        with pytest.raises(UsageError, match=f"config.distill.from.*{said}"):
            jaxvit.train(taught(folder), tmp_path / "run")
    with pytest.raises(UsageError, match=r"config.distill.from=.. names no teacher"):
        resolve(tiny_config(), overrides=("distill.weight",))
