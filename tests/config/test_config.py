"""Config keys, config files and overrides."""

import json

import pytest

from jaxvit.config.files import load_config_file, load_grid
from jaxvit.config.identity import config_hash, differences
from jaxvit.config.key_table import KEYS
from jaxvit.config.keys import base_config, flatten, from_plain, model_config, to_plain
from jaxvit.config.overrides import parse_config_arguments
from jaxvit.data.prepared import data_dir
from jaxvit.errors import UsageError

FILE = """
from jaxvit.config.keys import base_config
VARIANTS = ("small", "large")
def get_config(variant="small"):
    config = base_config("vit", dim={"small": 32, "large": 64}[variant], heads=2)
    config.train.duration = "3 epochs"
    return config
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(FILE)
    return str(path)


def test_every_key_stands_in_the_base_config_with_its_default_and_can_be_overridden():
    leaves = dict(flatten(base_config()))
    for path, key in KEYS.items():
        assert leaves[path] == key.default
        assert type(key.default) in (int, float, bool, str, tuple), f"{path} cannot be overridden on a command line"
        assert key.meaning


def test_a_file_and_its_variant(file):
    assert load_config_file(file).model.dim == 32
    assert load_config_file(file + ":large").model.dim == 64


def test_another_model_starts_from_its_own_sizes(file):
    assert load_config_file(file, "vit_ti16_224").model.dim == 192


def test_overrides_are_typed(file):
    words = ["--config.optim.peak_lr=1", "--config.augment.mean=(0.1, 0.2)", "--config.augment.flip", "--other"]
    config, overrides, rest = parse_config_arguments(file, words)
    assert config.optim.peak_lr == 1.0 and isinstance(config.optim.peak_lr, float)
    assert config.augment.mean == (0.1, 0.2)
    assert config.augment.flip is True
    assert set(overrides) == {"optim.peak_lr", "augment.mean", "augment.flip"}
    assert rest == ["--other"]


def test_overrides_take_a_space_and_a_no(file):
    words = ["--config.train.batch_size", "32", "--noconfig.augment.flip"]
    config, _, rest = parse_config_arguments(file, words)
    assert config.train.batch_size == 32 and config.augment.flip is False and rest == []
    words = ["--config.augment.flip", "pictures", "--config.optim.ema_ramp", "false"]
    config, _, rest = parse_config_arguments(file, words)
    assert config.augment.flip is True and config.optim.ema_ramp is False and rest == ["pictures"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("--config.optim.peaklr=1", "did you mean 'optim.peak_lr'"),
        ("--config.peak_lr=1", "did you mean 'optim.peak_lr'"),
        ("--config.train.epochs=3", "did you mean 'train.duration'"),
        ("--config.model.dims=1", "did you mean 'model.dim'"),
        ("--config.optim.peak_lr=abc", "expected a number, got 'abc'"),
        ("--config.train.batch_size=1.5", "expected a whole number"),
        ("--config.augment.flip=maybe", "expected true or false"),
        ("--config.augment.mean=(0.1", "expected a tuple"),
        ("--config.optim=3", "'optim' is a section"),
        ("--config.model.name=vitt", "did you mean 'vit'"),
    ],
)
def test_a_wrong_override_names_the_key_and_the_remedy(file, word, says):
    with pytest.raises(UsageError) as error:
        parse_config_arguments(file, [word])
    assert says in str(error.value) and "\n" not in str(error.value)
    assert word.partition("=")[0].removeprefix("--") in str(error.value)


@pytest.mark.parametrize(
    ("spec", "text", "says"),
    [
        ("experimnt.py", FILE, "did you mean"),
        ("experiment.py:smal", FILE, "did you mean 'small'"),
        ("experiment.py:x", FILE, "small, large"),
        ("experiment.py", "x = 1 +", "SyntaxError"),
        ("experiment.py", "x = 1", "defines no function get_config"),
        ("experiment.py:a", "def get_config(): pass", "has no variants"),
        ("experiment.py", "def get_config(): return 3", "must return a ConfigDict"),
        ("experiment.py", "def get_config(): return {}['x']", "get_config failed: KeyError"),
    ],
)
def test_a_bad_config_file_is_one_line(tmp_path, spec, text, says):
    (tmp_path / "experiment.py").write_text(text)
    with pytest.raises(UsageError) as error:
        load_config_file(str(tmp_path / spec))
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "grid", "says"),
    [
        ("experiment.py:deep", "def get_grid(): return {'seed': (1, 2)}", "get_grid() takes no variant; define"),
        ("experiment.py", "def get_grid(): return {}['x']", "get_grid failed: KeyError: 'x'"),
        ("experiment.py", "def get_grid(variant): return {}", "get_grid failed: TypeError"),
        ("experiment.py", "def get_grid(): raise ValueError('two\\nlines')", "get_grid failed: ValueError: two"),
        ("experiment.py", "def get_grid(): return ['seed']", "get_grid() must return {key: (value, value)}"),
        ("experiment.py", "def get_grid(): return {'seed': 1}", "get_grid() must return {key: (value, value)}"),
        ("experiment.py", "def get_grid(): return {'seed': '12'}", "get_grid() must return {key: (value, value)}"),
        ("experiment.py", "def get_grid(): return {'seed': ()}", "get_grid() must return {key: (value, value)}"),
        ("experiment.py", "get_grid = {'seed': (1, 2)}", "get_grid must be a function"),
    ],
)
def test_a_bad_grid_is_one_line(tmp_path, spec, grid, says):
    (tmp_path / "experiment.py").write_text(grid)
    with pytest.raises(UsageError) as error:
        load_grid(str(tmp_path / spec))
    assert says in str(error.value) and "\n" not in str(error.value) and "experiment.py" in str(error.value)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("config.optim.peaklr = 1.0", "peaklr"),
        ("config.train.batch_size = '32'", "batch_size"),
        ("config.augment.flip = None", "config.augment.flip=None: must be of type bool"),
        ("del config.optim['eps']", "locked"),
    ],
)
def test_a_mistake_inside_a_config_file_is_not_silence(tmp_path, line, says):
    body = f"def get_config():\n    config = base_config()\n    {line}\n    return config\n"
    text = f"from jaxvit.config import base_config\n{body}"
    (tmp_path / "experiment.py").write_text(text)
    with pytest.raises(UsageError) as error:
        load_config_file(str(tmp_path / "experiment.py"))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_model_attribute_that_does_not_exist():
    with pytest.raises(UsageError, match="did you mean 'depth'"):
        model_config("vit", dept=3)


def test_the_hash_covers_what_changes_a_result_and_nothing_else():
    base = config_hash(base_config())
    assert config_hash(base_config()) == base
    assert config_hash(base_config("vit", depth=5)) != base
    for path, key in KEYS.items():
        config = base_config()
        section, _, leaf = path.rpartition(".")
        owner = config[section] if section else config
        owner[leaf] = (
            not key.default
            if isinstance(key.default, bool)
            else key.default * 2 or {str: "x", tuple: (1,)}.get(type(key.default), 1)
        )
        assert (config_hash(config) != base) == key.changes_result, path


def test_json_and_back():
    config = base_config()
    config.augment.mean = (0.1, 0.2, 0.3)
    again = from_plain(json.loads(json.dumps(to_plain(config))))
    assert again.to_dict() == config.to_dict()
    assert config_hash(again) == config_hash(config)


def test_differences_name_key_and_both_values():
    other = base_config("vit", depth=5)
    other.log.every = "1 steps"
    assert differences(base_config(), other) == {"model.depth": (6, 5)}


def test_data_directory_order(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "/from/environment")
    assert str(data_dir("/from/config")) == "/from/config"
    assert str(data_dir("")) == "/from/environment"
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert data_dir("").name == "tensorflow_datasets"
