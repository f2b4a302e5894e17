"""Runs that start from weights: what they take, what they refuse, and that they resume without them."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from runs import StopAt
from tiny import family_config, train_family

import jaxvit
from jaxvit.config.files import load_config_file
from jaxvit.config.identity import config_hash
from jaxvit.config.initial_weights import fill_in, read_weights, start_from
from jaxvit.config.keys import model_config, set_value
from jaxvit.config.overrides import parse_config_arguments
from jaxvit.config.plan import resolve
from jaxvit.errors import STOPPED, StoppedError, UsageError
from jaxvit.exports import hub
from jaxvit.exports.model import ExportModel
from jaxvit.files import CHECKSUM, write_json
from jaxvit.models.registry import create_model
from jaxvit.ops.patch_kernels import resize_patch_kernel
from jaxvit.ops.positions import resize_positions
from jaxvit.run.assembly import assemble
from jaxvit.run.initial_state import table
from jaxvit.run.sweep import make_cells, parse_grid
from jaxvit.training.checkpoint import restore_weights, saved_steps
from jaxvit.weights.adapt import Decision
from jaxvit.weights.pretrained import ORIGINS, shapes_of, write_arrays


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return train_family(tmp_path_factory.mktemp("source") / "run", "vit")


def of(source, attributes=None, **changes):
    config = family_config("vit", attributes, **changes)
    set_value(config, "init.from", str(source))
    return config


def begun(config):
    """(initial parameters, those of the weights, lines on what was taken) of a run."""
    config, _ = fill_in(config)
    assembly = assemble(resolve(config))
    state = jax.jit(assembly.create_state)(assembly.init_key(), None, assembly.load())
    return (
        jax.device_get(state.params),
        read_weights(config.init["from"]).pretrained.params,
        assembly.initial.describe(),
    )


def test_an_equal_model_begins_with_the_weights(source):
    params, weights, said = begun(of(source))
    jax.tree.map(np.testing.assert_array_equal, params, weights)
    assert "vit of jaxvit for 8x8" in said[0] and len(said) == 2 and said[1].startswith("  loaded ")


def test_another_patch_grid_and_other_classes(source):
    changes = {"augment__size": 10, "augment__pad_crop": 0, "data__classes": (3, 1, 4)}
    changes |= {"data__train": "train[:30]", "data__validation": "train[30:40]", "data__test": "test[:9]"}
    params, weights, said = begun(of(source, {"patch": 2}, **changes))
    kernel = resize_patch_kernel(weights["embed"]["projection"]["kernel"].reshape(4, 4, 1, 8), (2, 2))
    np.testing.assert_allclose(params["embed"]["projection"]["kernel"].reshape(2, 2, 1, 8), kernel, atol=1e-6)
    places = weights["position_embed"]["table"]
    resized = resize_positions(places, source=(2, 2), target=(5, 5), prefix=len(places) - 4, method="timm")
    np.testing.assert_allclose(params["position_embed"]["table"], resized, atol=1e-6)
    block = ("encoder", "block_1")
    jax.tree.map(np.testing.assert_array_equal, params[block[0]][block[1]], weights[block[0]][block[1]])
    assert params["head"]["logits"]["kernel"].shape == (8, 3)
    assert any("fresh    head/* (2 arrays): other classes" in line for line in said)
    assert any("patches of 4x4 to 2x2" in line for line in said) and any("2x2 to 5x5 places" in line for line in said)


def test_what_is_unexpected_stops_unless_it_is_allowed_by_name(source):
    with pytest.raises(UsageError, match=r"the weights have no encoder/block_2/.*init.allow='encoder/block_2/"):
        begun(of(source, {"depth": 3}))
    with pytest.raises(UsageError, match=r"the weights have encoder/block_1/.*, which the model has not"):
        begun(of(source, {"depth": 1}))
    params, weights, said = begun(of(source, {"depth": 3}, init__allow="encoder/block_2/*", init__skip="head/*"))
    np.testing.assert_array_equal(params["norm"]["scale"], weights["norm"]["scale"])
    assert not np.array_equal(params["head"]["logits"]["kernel"], weights["head"]["logits"]["kernel"])
    assert any("fresh    head/* (2 arrays): init.skip" in line for line in said)
    with pytest.raises(UsageError, match=r"set the model's attributes as theirs, or .*init.skip="):
        begun(of(source, {"mlp_ratio": 2.0}))
    with pytest.raises(UsageError, match=r"nothing would be loaded"):
        begun(of(source, init__skip="*"))
    for key in ("init__keep", "init__skip"):  # misspelt, and so without effect
        with pytest.raises(UsageError, match=rf"{key.replace('__', '.')} has 'haed/\*', which matches no parameter"):
            begun(of(source, **{key: "norm/*|haed/*"}))


def test_patterns_are_those_of_freezing(source):
    """'*/embed*' also matches at the start of a path, and '!head/*' is all but the head."""
    params, weights, _ = begun(of(source, init__keep="*/embed*|*/block_0/*"))
    jax.tree.map(np.testing.assert_array_equal, params["embed"], weights["embed"])
    kernels = [tree["encoder"]["block_1"]["mlp"]["dense_0"]["kernel"] for tree in (params, weights)]
    assert not np.array_equal(*kernels)
    params, weights, _ = begun(of(source, init__keep="!head/*"))
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], weights["encoder"])
    assert not np.array_equal(params["head"]["logits"]["kernel"], weights["head"]["logits"]["kernel"])


def test_the_hash_is_that_of_the_weights_and_not_of_their_place(source, tmp_path):
    shutil.copytree(source, tmp_path / "copy")
    here, there, none = of(source), of(tmp_path / "copy"), family_config("vit")
    hashes = [config_hash(fill_in(config)[0]) for config in (here, there, none)]
    assert hashes[0] == hashes[1] != hashes[2]
    with pytest.raises(UsageError, match=r"config.init.hash=0123: .* holds weights of hash"):
        fill_in(of(source, init__hash="0123"))
    with pytest.raises(UsageError, match=r"has changed since this run began"):
        assemble(resolve(of(source, init__hash="0123")))
    with pytest.raises(UsageError, match=r"config.init.hash: has no meaning without"):
        fill_in(family_config("vit", init__hash="0123"))


def test_code_that_a_folder_names_is_not_run(source, tmp_path, monkeypatch):
    """`train` has no flag that allows it; the user names the code as the model of the config."""
    folder = shutil.copytree(source, tmp_path / "run")
    about = json.loads((folder / "model.json").read_text())
    about.pop(CHECKSUM)
    write_json(folder / "model.json", {**about, "name": "strange_code:Model"}, with_checksum=True)
    (tmp_path / "strange_code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for config in (family_config("vit"), load_config_file("finetune")):
        set_value(config, "init.from", str(folder))
        with pytest.raises(UsageError, match=r"if you trust that code, .* --config\.model\.name=strange_code:Model$"):
            fill_in(config)
    assert not (tmp_path / "ran").exists()


def test_files_that_vanish_from_the_source_are_no_fault(source, tmp_path):
    """A source that still trains deletes checkpoints, and a folder can hold a link to nothing."""
    folder = shutil.copytree(source, tmp_path / "run")
    (folder / "gone.json").symlink_to(tmp_path / "nothing")
    (folder / "checkpoints" / "gone").symlink_to(tmp_path / "nothing")
    assert read_weights(str(folder)).hash == read_weights(str(source)).hash


def test_a_run_goes_on_without_the_weights(source, tmp_path, monkeypatch, capsys):
    shutil.copytree(source, tmp_path / "source")
    config = of(tmp_path / "source", train__duration="4 steps", checkpoint__every="1 steps", data__validation="")
    set_value(config, "optim.head_first", "2 steps")
    set_value(config, "optim.freeze", "*/embed*")
    jaxvit.train(config, tmp_path / "whole")
    monkeypatch.setattr("jaxvit.run.train.StopRequest", lambda: StopAt(2, STOPPED))
    with pytest.raises(StoppedError):
        jaxvit.train(config, tmp_path / "run")
    monkeypatch.undo()
    assert max(saved_steps(tmp_path / "run" / "checkpoints")) < 4
    shutil.rmtree(tmp_path / "source")
    assert jaxvit.train(config, tmp_path / "run")["steps"] == 4
    whole, resumed = (restore_weights(tmp_path / name / "checkpoints", 4) for name in ("whole", "run"))
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    weights = read_weights(str(source)).pretrained.params
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(whole.params["embed"]), weights["embed"])
    # An exported copy names the weights, and not where they were.
    hub.write(ExportModel.of(jaxvit.load(tmp_path / "run"), "float32"), tmp_path / "hub")
    for file in (tmp_path / "hub").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["config"]["init"]["from"] == "source"
    # Other weights in their place: the run says so, and stays what it is.
    train_other = of(source, train__duration="1 steps", data__validation="")
    jaxvit.train(train_other, tmp_path / "source")
    capsys.readouterr()
    assert jaxvit.train(config, tmp_path / "run")["steps"] == 4
    assert "has changed since this run began" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"this folder holds a run of another config \(init.hash"):
        jaxvit.train(of(tmp_path / "whole", train__duration="1 steps", data__validation=""), tmp_path / "source")


def test_the_cells_of_a_sweep_start_from_the_weights(source, tmp_path):
    (tmp_path / "grid.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from tiny import family_config\ndef get_config(): return family_config('vit')\n"
    )
    words = [f"--config.init.from={source}"]
    cells = make_cells(str(tmp_path / "grid.py"), words, parse_grid(["init.skip=norm/*,head/*,haed/*"]))
    assert {cell.config.init.hash for cell in cells} == {read_weights(str(source)).hash}
    assert not (cells[0].problem or cells[1].problem) and "init.skip has 'haed/*', which matches no" in cells[2].problem


@pytest.mark.slow
def test_seeds_together_begin_with_the_same_weights(source, tmp_path):
    config = of(source, seeds=(0, 1), train__seeds="together", train__duration="2 steps", data__validation="")
    set_value(config, "init.skip", "head/*")
    set_value(config, "optim.freeze", "!head/*")
    jaxvit.train(config, tmp_path / "run")
    weights = read_weights(str(source)).pretrained.params
    both = [jaxvit.load(tmp_path / "run" / f"seed_{seed}").variables["params"] for seed in (0, 1)]
    for params in both:
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(params["encoder"]), weights["encoder"])
    assert not np.array_equal(both[0]["head"]["logits"]["kernel"], both[1]["head"]["logits"]["kernel"])


def test_the_model_of_the_weights(source):
    config = start_from(load_config_file("finetune"), str(source))
    plain = train_family_attributes()
    assert config.model.name == "vit" and {key: config.model[key] for key in plain} == plain
    assert config.model.num_classes == 0 and config.augment.mean == family_config("vit").augment.mean
    assert (config.optim.peak_lr, config.optim.layer_decay) == (5e-4, 0.9) and len(config.init.hash) == 16
    config = load_config_file("finetune:head")
    assert start_from(config, str(source)).optim.peak_lr == config.optim.peak_lr == 3e-3
    with pytest.raises(UsageError, match=r"config.init.from is missing"):
        fill_in(load_config_file("finetune"))
    config = family_config("vit")
    with config.unlocked():
        config.model = model_config("source")
    with pytest.raises(UsageError, match=r"config.init.from is missing"):
        resolve(config)  # by a verb that trains nothing
    set_value(config, "init.from", "/nowhere")
    with pytest.raises(UsageError, match=r"config.init.from='/nowhere': there is no such file or folder"):
        resolve(config)


def test_a_config_file_may_name_the_weights(source, tmp_path):
    """A value of the command line stays, also if it is the default of its key."""
    (tmp_path / "mine.py").write_text(
        "from jaxvit.config.files import load_config_file\nfrom jaxvit.config.keys import set_value\n\n\n"
        "def get_config(variant=''):\n    config = load_config_file('finetune')\n"
        f"    set_value(config, 'init.from', {str(source)!r})\n    return config\n"
    )
    config, overrides, _ = parse_config_arguments(str(tmp_path / "mine.py"), ["--config.optim.layer_decay=1.0"])
    config, _ = fill_in(config, given=overrides)
    assert (config.optim.layer_decay, config.optim.peak_lr, config.model.name) == (1.0, 5e-4, "vit")


def test_a_file_is_read_with_what_lies_beside_it(tmp_path):
    model = create_model("vit", patch=8, dim=64, depth=1, heads=1, pool="cls", num_classes=3, mlp_dim=32)
    rng = np.random.default_rng(0)
    flat = {path: rng.standard_normal(shape) for path, shape in shapes_of(model, (16, 16, 3)).items()}
    params = unflatten_dict({tuple(path.split("/")): array.astype(np.float32) for path, array in flat.items()})
    np.savez(tmp_path / "weights.npz", **write_arrays(params, ORIGINS["transformers"], model))
    alone = read_weights(str(tmp_path / "weights.npz"))
    assert alone.attributes["heads"] == 1 and alone.class_names == ()
    about = {"model_type": "vit", "num_attention_heads": 2, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new"}
    about["id2label"] = {"0": "cat", "1": "dog", "2": "bird"}
    (tmp_path / "config.json").write_text(json.dumps(about))
    images = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    found = read_weights(str(tmp_path / "weights.npz"))
    assert found.class_names == ("cat", "dog", "bird") and found.attributes["heads"] == 2
    config = start_from(load_config_file("finetune"), str(tmp_path / "weights.npz"))
    assert (config.model.heads, config.model.norm_eps, config.model.activation) == (2, 1e-5, "gelu_tanh")
    assert config.augment.mean == (0.1, 0.2, 0.3) and config.model.num_classes == 0


def train_family_attributes():
    config = family_config("vit").model
    return {key: config[key] for key in config if key not in ("name", "num_classes")}


def test_the_table_groups_arrays():
    made = [Decision(f"encoder/block_{i}/mlp/kernel", "loaded") for i in range(3)]
    made += [Decision("norm/scale", "loaded"), Decision("pre/kernel", "unused", "the model has no such part")]
    assert table(made) == [
        "  loaded   encoder/*, norm/* (4 arrays)",
        "  unused   pre/* (1 array): the model has no such part",
    ]
