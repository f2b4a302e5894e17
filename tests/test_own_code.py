"""Mistakes in users' models, data sets and augmentations give one line that names the mistake."""

import sys

import pytest
from tiny import tiny_config

import jaxvit
from jaxvit.cli.data import main as data
from jaxvit.cli.summary import main as summary
from jaxvit.config.keys import model_config
from jaxvit.config.overrides import parse_overrides
from jaxvit.config.plan import resolve
from jaxvit.data.own import check_augmentation
from jaxvit.data.sources import open_dataset
from jaxvit.errors import UsageError
from jaxvit.run.assembly import assemble


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(text, name): a user's file in the working folder."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def write_file(text, name="my_code"):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)

    yield write_file
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def said(raised):
    assert "\n" not in str(raised.value)
    return str(raised.value)


AUGMENTATIONS = """
import jax
import jax.numpy as jnp
import numpy as np

def shorter(key, image): return image[1:]
def bytes_(key, image): return (255 * image[1:]).astype(jnp.uint8)
def half(key, image): return image.astype(jnp.bfloat16)
def louder(key, image): return 255 * image
def no_number(key, image): return jnp.log(image - 2)
def nothing(key, image): image + 1
def two(key, image): return image, key
def alone(image): return image
def swapped(image, key): return image + jax.random.normal(key, image.shape)
def swapped_too(picture, noise): return picture + jax.random.normal(noise, picture.shape)
class Flip:
    def __call__(self, key, image): return image
def with_numpy(key, image): return np.flip(np.sqrt(image))
def with_if(key, image):
    if image.mean() > 0.5:
        return image
    return 1 - image
def of_a_batch(key, image):
    n, h, w, c = image.shape
    return image
def misspelt(key, image): return jnp.flipp(image)
def salt(key, image): return jnp.where(jax.random.bernoulli(key, 0.1, image.shape), 1.0, image)
"""
SHAPE = "for an image float32 (8, 8, 1); it must return the same shape and type"
FAILS = "fails as function(key, one image float32 (8, 8, 1)): "


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("shorter", f": returns float32 (7, 8, 1) {SHAPE}"),
        ("bytes_", f": returns uint8 (7, 8, 1) {SHAPE}"),
        ("half", f": returns bfloat16 (8, 8, 1) {SHAPE}"),
        ("louder", ": returns values from 0 to 255 for an image in 0..1; it must stay on that scale"),
        ("no_number", ": returns values from nan to nan"),
        ("nothing", ": returns nothing for an image"),
        ("two", ": returns a tuple for an image float32 (8, 8, 1); it must return the changed image"),
        ("alone", ": must take (key, image); it takes (image)"),
        ("swapped", ": must take (key, image), in this order; it takes (image, key)"),
        ("swapped_too", f": {FAILS}TypeError: "),
        ("Flip", ": is a class; name a function"),
        ("with_numpy", "(my_code.py, line 18); use jnp, not numpy"),
        ("with_if", "(my_code.py, line 20); use jnp.where instead of if"),
        ("of_a_batch", f": {FAILS}ValueError: not enough values to unpack (expected 4, got 3) (my_code.py, line 24)"),
        ("misspelt", "no attribute 'flipp' (my_code.py, line 26)"),
        ("salt", ""),
    ],
)
def test_an_augmentation_that_is_none(write, function, says):
    write(AUGMENTATIONS)
    if not says:
        return check_augmentation(f"my_code:{function}", (8, 8, 1))
    with pytest.raises(UsageError) as raised:
        check_augmentation(f"my_code:{function}", (8, 8, 1))
    assert said(raised).startswith(f"config.augment.own='my_code:{function}': ") and says in said(raised)


def test_an_augmentation_is_checked_before_anything_is_written(write, tmp_path):
    write(AUGMENTATIONS)
    with pytest.raises(UsageError, match="returns float32"):
        jaxvit.train(tiny_config(augment__own="my_code:shorter"), tmp_path / "run")
    with pytest.raises(UsageError, match=r"returns float32 .11, 12, 1. for an image float32 .12, 12, 1."):
        resolve(tiny_config(augment__own="my_code:shorter", augment__size=12))
    for words in (["digits", "pictures", "--config.augment.own=my_code:shorter"], ["my_code:shorter", "pictures"]):
        with pytest.raises(UsageError, match=r"returns float32|must take no arguments"):
            data(["show", *words])
    assert not (tmp_path / "run").exists() and not (tmp_path / "pictures").exists()


MODELS = """
import flax.linen as nn
import jax.numpy as jnp

class Base(nn.Module):
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, *, train):
        return self.scores(nn.Dense(self.num_classes)(images.reshape(images.shape[0], -1)), train)

    def scores(self, scores, train):
        return scores

class WithMore(Base):
    def scores(self, scores, train): return scores, {}
class WithMoreInTraining(Base):
    def scores(self, scores, train): return (scores, {}) if train else scores
class Nothing(Base):
    def scores(self, scores, train): pass
class Whole(Base):
    def scores(self, scores, train): return jnp.round(scores).astype(jnp.int32)
class OfAll(Base):
    def scores(self, scores, train): return scores.mean(axis=0, keepdims=True)
class FewerInTraining(Base):
    def scores(self, scores, train): return scores[:, :5] if train else scores
class Misspelt(Base):
    def scores(self, scores, train): return scores[:, :self.num_clases]
class Unknown(Base):
    def scores(self, scores, train): return {}["a"]
class If(Base):
    def scores(self, scores, train): return scores if scores.sum() > 0 else -scores
class Normed(Base):
    def scores(self, scores, train): return nn.BatchNorm(use_running_average=not train)(scores)
class Noisy(Base):
    def scores(self, scores, train): return nn.Dropout(0.1, deterministic=False)(scores)
class Built(Base):
    def __post_init__(self):
        super().__post_init__()
        self.num_clases
class NoTrain(nn.Module):
    @nn.compact
    def __call__(self, images): return nn.Dense(10)(images.reshape(images.shape[0], -1))
class NoCall(nn.Module):
    pass
class Empty(nn.Module):
    def __call__(self, images, train): return images.reshape(images.shape[0], -1)
class MoreThanThereAreClasses(nn.Module):
    wide: object = None
    @nn.compact
    def __call__(self, images, train): return nn.Dense(12)(images.reshape(images.shape[0], -1))
class NoDefault(nn.Module):
    width: int
    num_classes: int = 10
"""


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("WithMore", "returns a tuple; it must return the scores alone, an array [images, classes]"),
        ("WithMoreInTraining", "returns a tuple"),
        ("Nothing", "returns nothing"),
        ("Whole", "gives scores of int32, which cannot be trained; they must be float32"),
        ("OfAll", "gives outputs of shape (1, 10) for 2 images in training"),
        ("FewerInTraining", "gives outputs of shape (2, 5) for 2 images in training"),
        ("Misspelt", 'no attribute "num_clases" (my_code.py, line 28)'),
        ("Unknown", "KeyError: 'a' (my_code.py, line 30)"),
        ("If", "(my_code.py, line 32); use jnp.where instead of if"),
        (
            "Normed",
            "keeps state that training would have to update (batch_stats), which is not supported; nn.",
        ),
        ("Noisy", "the only rng stream is 'dropout', and it exists only with train=True"),
        ("Built", "cannot be built: AttributeError: "),
        ("NoTrain", "must take train=, as in def __call__(self, images, *, train)"),
        ("NoCall", "must take train="),
        ("Empty", "has no parameters; there is nothing to train"),
        ("MoreThanThereAreClasses", ""),
    ],
)
def test_a_model_that_is_none(write, model, says):
    write(MODELS)
    config = tiny_config()
    with config.unlocked():
        config.model = model_config(f"my_code:{model}")
    if not says:
        assert assemble(resolve(config)).classes == 12
        return
    with pytest.raises(UsageError) as raised:
        assemble(resolve(config))
    assert f"my_code:{model}" in said(raised) and said(raised).startswith("config.model") and says in said(raised)


def test_the_summary_of_a_model_that_does_not_work(write):
    write(MODELS)
    with pytest.raises(UsageError) as raised:
        summary(["--model=my_code:Misspelt", "--image_size=8"])
    assert said(raised).startswith("model 'my_code:Misspelt' does not work on images of 8×8×3: AttributeError: ")


def test_every_attribute_needs_a_default_to_be_a_key(write):
    write(MODELS)
    with pytest.raises(UsageError, match=r"attribute 'width' has no default.* such as `width: int = 8`") as raised:
        model_config("my_code:NoDefault")
    assert said(raised).startswith("config.model.name='my_code:NoDefault'")
    config = tiny_config()
    with config.unlocked():
        config.model = model_config("my_code:MoreThanThereAreClasses")
    with pytest.raises(UsageError, match=r"no key config.model.wide: the default of 'wide' in .* is not a plain value"):
        parse_overrides(config, ["--config.model.wide=5"])
    with pytest.raises(UsageError, match=r"no key config.model.wdie"):
        parse_overrides(config, ["--config.model.wdie=5"])


SETS = """
import numpy as np

def stripes(side): pass
def broken(): return np.zeros(3).reshape(2, 2)
def empty():
    images = np.zeros((4, 8, 8, 1), np.uint8)
    return {"train": (images, [0, 1, 0, 1]), "test": (images[:0], np.zeros(0, int))}
def no_images(): return {"train": ([], [])}
def unnamed(): return {"train": (np.zeros((2, 8, 8, 1), np.uint8), [0, 1]), "class_names": 2}
class Set: pass
"""


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("stripes", "must take no arguments; it takes (side)"),
        (
            "broken",
            "the function fails: ValueError: cannot reshape array of size 3 into shape (2,2) (my_code.py, ",
        ),
        ("empty", "split 'test': the split is empty"),
        ("no_images", "split 'train': the split is empty"),
        ("unnamed", "'class_names' must be a sequence of names"),
        ("Set", "is a class; name a function"),
    ],
)
def test_a_data_set_that_is_none(write, tmp_path, function, says):
    write(SETS)
    with pytest.raises(UsageError) as raised:
        open_dataset(f"my_code:{function}", tmp_path)
    assert said(raised).startswith(f"config.data.name='my_code:{function}': {says}")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("my_code", "it names only a module: write 'module:KIND', such as 'my_code:FIRST'"),
        ("my_code:", "it names only a module: write 'module:KIND', such as 'my_code:FIRST'"),
        ("my_code:NEAR", "module 'my_code' has no 'NEAR' (did you mean 'FIRST'?)"),
        ("my_code:zzz", "module 'my_code' has no 'zzz'; it has FIRST"),
        ("my_code.FIRST", "separate the module and the KIND by a colon: write 'my_code:FIRST'"),
        ("my_code.py:FIRST", "this is a file, not a module: write 'my_code:FIRST'"),
        ("./my_code.py:FIRST", "this is a file, not a module: write 'my_code:FIRST'"),
        ("my_code.py", "this is a file, not a module: write 'my_code:KIND'"),
        (":FIRST", "the module is missing: write 'module:FIRST'"),
        (
            "my_cide:FIRST",
            "no module 'my_cide' in the working folder or on the Python path (did you mean 'my_code'?)",
        ),
        ("my_code.inner:FIRST", "there is no module 'my_code.inner'"),
        (
            "my_import:FIRST",
            "importing it fails: ModuleNotFoundError: No module named 'nothing_here' (my_import.py, line 2)",
        ),
        ("my_syntax:FIRST", "module 'my_syntax' exists, but importing it fails: SyntaxError: "),
        ("my_exit:FIRST", "module 'my_exit' exists, but importing it fails: SystemExit: 3"),
    ],
)
@pytest.mark.parametrize("key", ["model.name", "augment.own", "data.name"])
def test_a_name_that_leads_nowhere(write, tmp_path, key, name, says):
    write("import flax.linen as nn\nclass OneBlock(nn.Module): pass\ndef stripes(): pass\n")
    write("\nimport nothing_here\n", "my_import")
    write("def f(:\n", "my_syntax")
    write("raise SystemExit(3)\n", "my_exit")
    first, near, kind = ("OneBlock", "OneBlok", "Class") if key == "model.name" else ("stripes", "stripe", "function")
    name, says = (text.replace("FIRST", first).replace("NEAR", near).replace("KIND", kind) for text in (name, says))
    with pytest.raises(UsageError) as raised:
        if key == "model.name":
            model_config(name)
        elif key == "augment.own":
            check_augmentation(name, (8, 8, 1))
        else:
            open_dataset(name, tmp_path)
    assert f"config.{key}" in said(raised) and name in said(raised) and says in said(raised)


def test_a_model_that_nobody_knows_might_be_a_class_of_ones_own():
    with pytest.raises(UsageError, match="name your own class as 'module:Class'"):
        model_config("my_model")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("configs/digits.py", r"config is a str, not a config; make one by .*load_config_file\('configs/digits.py'\)"),
        ({"model": "vit"}, r"config is a dict, not a config; make one by jaxvit.config.base_config\(\)"),
    ],
)
def test_what_is_no_config(tmp_path, config, says):
    with pytest.raises(UsageError, match=says):
        jaxvit.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
