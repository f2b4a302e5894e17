"""Users' data sets and augmentations: accepted ones, and one-line errors for others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvit.data.augment import augment
from jaxvit.data.settings import Augmentation
from jaxvit.data.sources import open_dataset
from jaxvit.errors import UsageError
from jaxvit.own_code import load_function

IMAGES = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4, 1)
GIVEN = {}


def my_set():
    return GIVEN


def name_of(given):
    GIVEN.clear()
    GIVEN.update(given)
    return f"{__name__}:my_set"


def test_a_set_of_ones_own_is_like_any_other(tmp_path):
    given = {"train": (IMAGES, [0, 2, 1, 2, 0, 1]), "test": (IMAGES[:2], np.array([1, 0])), "class_names": "abc"}
    dataset = open_dataset(name_of(given), tmp_path)
    source = dataset.read("train[2:]")
    np.testing.assert_array_equal(source.images, IMAGES[2:])
    assert source.labels.tolist() == [1, 2, 0, 1] and source.class_names == ("a", "b", "c")
    assert dataset.split_sizes == {"train": 6, "test": 2}
    assert source.notes["order"] == "stored order: the set has no ids"
    some = open_dataset(name_of(given), tmp_path, classes=(2, 0)).read("train")
    assert some.labels.tolist() == [1, 0, 0, 1] and np.array_equal(np.asarray(some.images), IMAGES[[0, 1, 3, 4]])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"test": (IMAGES, [0] * 6)}, "must return a dict with .images, labels. for 'train'"),
        ({"train": IMAGES}, "'train' must be a pair"),
        ({"train": (IMAGES[..., 0], [0] * 6)}, r"images of uint8 \(6, 4, 4\) must be uint8 \[N, H, W, C\]"),
        ({"train": (IMAGES / 255, [0] * 6)}, "images of float64"),
        ({"train": (IMAGES, [0] * 5)}, r"labels of int64 \(5,\) must be whole numbers \[6\]"),
        ({"train": (IMAGES, [0, 1, 2, 3, 4, -1])}, "has a label below 0"),
        ({"train": (IMAGES, [0, 1, 2, 3, 4, 5]), "class_names": ("a",)}, "has 1 class names and labels up to 5"),
        ({"train": (IMAGES, [0] * 6), "test": (IMAGES[:, :2], [0] * 6)}, "the splits' images differ in size"),
    ],
)
def test_what_a_set_must_be(tmp_path, given, says):
    with pytest.raises(UsageError, match=says) as error:
        open_dataset(name_of(given), tmp_path)
    assert "\n" not in str(error.value) and f"{__name__}:my_set" in str(error.value)


def test_its_images_stay_as_they_are(tmp_path):
    with pytest.raises(UsageError, match=r"config.data.side=8: the images of .* are used as they are"):
        _ = open_dataset(name_of({"train": (IMAGES, [0] * 6)}), tmp_path, side=8).image_shape


@pytest.mark.parametrize("name", ["no_such_module:f", "jaxvit.data.own:nothing", "jaxvit.data.own:annotations"])
def test_a_name_that_leads_nowhere(name):
    with pytest.raises(UsageError, match=f"config.augment.own='{name}'"):
        load_function(name, "augment.own")


def own_noise(key, image):
    return image + 0.1 * jax.random.normal(key, image.shape)


def test_an_augmentation_of_ones_own_has_a_key_an_image_and_sees_0_to_1():
    batch = {"image": jnp.asarray(IMAGES), "label": jnp.zeros(6, jnp.int32), "mask": jnp.ones(6)}
    own = Augmentation(mean=(0.5,), std=(0.25,), own=f"{__name__}:own_noise")
    images, _ = augment(jax.random.key(0), jnp.int32(0), batch, own, classes=2)
    plain, _ = augment(jax.random.key(0), jnp.int32(0), batch, Augmentation(mean=(0.5,), std=(0.25,)), classes=2)
    noise = np.asarray(images - plain) * 0.25
    assert 0.08 < noise.std() < 0.12
    assert len({row.tobytes() for row in noise.round(4)}) == 6  # each image its own
