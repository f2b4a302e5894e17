"""`jaxvit convert` makes a folder of published weights that every verb takes, or writes nothing."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import jaxvit
from jaxvit.cli import convert as verb
from jaxvit.cli import embed, evaluate, export, predict, summary
from jaxvit.errors import UsageError
from jaxvit.models.registry import create_model
from jaxvit.weights.pretrained import ORIGINS, read_pretrained, shapes_of, write_arrays
from tests.weights.torch_files import save

RNG = np.random.default_rng(0)
SMALL = {"patch": 8, "dim": 64, "depth": 1, "heads": 1, "pool": "cls", "num_classes": 3, "mlp_dim": 32}
INPUT = (16, 16, 3)


def file_of(folder, origin="timm", name="vit", attributes=SMALL, image=INPUT, **changes):
    """A file as an origin has it, of a small model with random weights."""
    model = create_model(name, **attributes)
    shapes = shapes_of(model, image)
    flat = {path: (0.2 * RNG.standard_normal(shape)).astype(np.float32) for path, shape in shapes.items()}
    tree = {}
    for path, array in flat.items():
        node = tree
        *above, last = path.split("/")
        for part in above:
            node = node.setdefault(part, {})
        node[last] = array
    arrays = {**write_arrays(tree, ORIGINS[origin], model), **changes}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "weights.npz", **{name: array for name, array in arrays.items() if array is not None})
    return folder / "weights.npz"


def convert(*words):
    return verb.main([str(word) for word in words])


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    file = file_of(folder)
    (folder / "names.txt").write_text("cat\ndog\nbird\n")
    convert(file, f"--workdir={folder / 'run'}", f"--class_names={folder / 'names.txt'}")
    for name in ("cat", "dog", "bird"):
        (folder / "photos" / name).mkdir(parents=True)
        image = Image.fromarray(RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8))
        image.save(folder / "photos" / name / "1.png")
    return folder


def test_the_model_is_the_files(converted):
    loaded, found = jaxvit.load(converted / "run"), read_pretrained(converted / "weights.npz")
    assert loaded.model == found.model and loaded.class_names == ("cat", "dog", "bird")
    equal = jax.tree.map(np.array_equal, jax.tree.map(np.asarray, loaded.variables["params"]), found.params)
    assert all(jax.tree.leaves(equal))
    assert loaded.image_shape == (17, 17, 3) and loaded.input_shape == INPUT  # 16 / .9
    images = RNG.integers(0, 256, (2, 17, 17, 3), dtype=np.uint8)
    expected = (images[:, :16, :16] / 255.0 - 0.5) / 0.5
    np.testing.assert_allclose(loaded.preprocess(images), expected, atol=1e-5)
    assert sorted(path.name for path in converted.iterdir()) == ["names.txt", "photos", "run", "weights.npz"]


def test_every_verb_takes_the_folder(converted, tmp_path, capsys):
    run, photos = f"--workdir={converted / 'run'}", converted / "photos"
    assert predict.main([run, str(photos)]) == 0 and "bird/1.png: " in capsys.readouterr().out
    assert evaluate.main([run, f"--data={photos}", f"--out={tmp_path}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 3
    assert embed.main([run, str(photos), f"--out={tmp_path / 'f.npz'}"]) == 0
    assert np.load(tmp_path / "f.npz")["features"].shape == (3, 64)
    assert summary.main([run, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["input"] == [16, 16, 3]
    assert export.main([run, "--to=hub", f"--out={tmp_path / 'out'}"]) == 0
    assert jaxvit.load(tmp_path / "out" / "hub").class_names == ("cat", "dog", "bird")
    with pytest.raises(UsageError, match="neither a test nor a validation split; name one with --split, or"):
        evaluate.main([run, f"--out={tmp_path}"])


def test_what_was_guessed_is_said(tmp_path, capsys):
    convert(file_of(tmp_path), f"--workdir={tmp_path / 'run'}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("weights  timm (huggingface/pytorch-image-models): ")
    assert lines[1].startswith("model    vit, patch=8, dim=64, depth=1, heads=1")
    assert lines[2] == "images   16x16x3, patches of 8, 3 classes"
    assert lines[3] == "guessed  name, patch, classes, resolution, from the shapes"
    assert lines[4].startswith("pixels   mean 0.5, 0.5, 0.5, std 0.5, 0.5, 0.5, crop 0.9, bicubic (a guess")
    assert lines[5] == "classes  class_0, class_1, class_2; name them with --class_names=FILE"


def test_a_published_name_is_found(tmp_path, capsys):
    file = file_of(tmp_path, "compact_transformers", "cct_7_3x1_32", {}, (32, 32, 3))
    convert(file, "--dry_run")
    out = capsys.readouterr().out
    assert "model    cct_7_3x1_32\n" in out and "(the authors' configs for CIFAR-10)" in out
    assert out.endswith("dry run: nothing was written\n") and [*tmp_path.iterdir()] == [file]
    convert(file, "--model=cct_7_3x1_32", "--dry_run", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["guessed"] == ["resolution"] and found["classes"] == 10 and found["input"] == [32, 32, 3]


def test_the_files_beside_are_read(tmp_path, capsys):
    file = file_of(tmp_path, "transformers", attributes={**SMALL, "norm_eps": 1e-12})
    about = {"model_type": "vit", "num_attention_heads": 2, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new"}
    about["id2label"] = {"0": "cat", "1": "dog", "2": "bird"}
    (tmp_path / "config.json").write_text(json.dumps(about))
    images = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "resample": 3, "do_center_crop": True}
    images |= {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    convert(file, f"--workdir={tmp_path / 'run'}")
    loaded = jaxvit.load(tmp_path / "run")
    model = loaded.model
    assert (model.heads, model.norm_eps, model.activation) == (2, 1e-5, "gelu_tanh")
    assert loaded.class_names == ("cat", "dog", "bird") and loaded.image_shape == (20, 20, 3)
    assert loaded.preprocessing.mean == (0.1, 0.2, 0.3) and loaded.preprocessing.interpolation == "bicubic"
    about["hidden_act"] = "swish"
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(UsageError, match="names the activation 'swish', which no model here has"):
        convert(file, f"--workdir={tmp_path / 'other'}")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json cannot be read"):
        convert(file, f"--workdir={tmp_path / 'other'}")
    assert not (tmp_path / "other").exists()


def test_timm_says_how_images_are_prepared(tmp_path, capsys):
    file = file_of(tmp_path)
    said = {"mean": [0.1, 0.2, 0.3], "std": [0.2, 0.2, 0.2], "crop_pct": 0.8, "interpolation": "bilinear"}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit", "pretrained_cfg": said}))
    convert(file, f"--workdir={tmp_path / 'run'}", "--config.augment.std=(0.5,)")
    loaded = jaxvit.load(tmp_path / "run")
    assert loaded.preprocessing.mean == (0.1, 0.2, 0.3) and loaded.preprocessing.std == (0.5,)
    assert loaded.image_shape == (20, 20, 3) and "(config.json; std as given)" in capsys.readouterr().out


def test_a_folder_knows_whose_positions_it_has(tmp_path):
    """They are resized as by the project, from the folder as from the file, and from an exported copy."""
    attributes = {**SMALL, "activation": "gelu_tanh", "norm_eps": 1e-6}
    file = file_of(tmp_path, "vision_transformer", attributes=attributes)
    convert(file, f"--workdir={tmp_path / 'run'}")
    export.main([f"--workdir={tmp_path / 'run'}", "--to=hub", f"--out={tmp_path / 'out'}"])
    places = [read_pretrained(place).positions for place in (file, tmp_path / "run", tmp_path / "out" / "hub")]
    assert places == ["vision_transformer"] * 3


def test_a_file_without_classifier_is_said(tmp_path, capsys):
    file = file_of(tmp_path, **{"head.weight": None, "head.bias": None})
    convert(file, f"--workdir={tmp_path / 'run'}", "--config.model.num_classes=2")
    out = capsys.readouterr().out
    assert "warning  no classifier in the file" in out and "guessed  name, patch, resolution" in out
    assert len(jaxvit.load(tmp_path / "run").class_names) == 2


WRONG = {
    "too many names": (["--class_names=4.txt"], r"4\.txt has 4 names, and the model 3 classes"),
    "no names": (["--class_names=0.txt"], "it has no names"),
    "no list of names": (["--class_names=0.json"], "no list of names"),
    "a list without end": (["--class_names=deep.json"], "no list of names"),
    "no file of names": (["--class_names=none.txt"], "cannot be read"),
    "other classes": (["--config.model.num_classes=7"], r"head.bias \[3\] does not fit"),
    "another model": (["--model=cct_7_3x1_32"], "does not suit the model"),
    "no such model": (["--model=vot"], "vot"),
    "another origin": (["--origin=spach"], "is not whole, or not of microsoft/SPACH"),
    "no such part": (["--part=ema"], "has no parts"),
    "no such attribute": (["--config.model.depht=3"], "depht"),
    "another key": (["--config.optim.peak_lr=1"], "only --config.model.…"),
    "a std of words": (["--config.augment.std=a"], "augment.std"),
    "no size": (["--image_size=ten"], "is not a size"),
    "a size that positions do not have": (["--image_size=24"], "does not fit position_embed/table"),
    "a folder that exists": (["--workdir=full"], "it exists; name a new folder"),
    "a file in its place": (["--workdir=4.txt"], "it exists; name a new folder"),
    "below a file": (["--workdir=4.txt/run"], r"4\.txt cannot be written"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_converted_is_one_line(kind, tmp_path, monkeypatch):
    words, message = WRONG[kind]
    monkeypatch.chdir(tmp_path)
    file_of(tmp_path)
    (tmp_path / "4.txt").write_text("a\nb\nc\nd\n")
    (tmp_path / "0.txt").write_text("\n")
    (tmp_path / "0.json").write_text("[1, 2]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=message) as caught:
        convert("weights.npz", "--workdir=new", *words)
    assert "\n" not in str(caught.value) and sorted(tmp_path.rglob("*")) == before


def test_heads_that_are_not_of_64_are_asked_for(tmp_path):
    file = file_of(tmp_path, attributes={**SMALL, "dim": 40, "heads": 4})
    with pytest.raises(UsageError, match=r"40 channels are split into heads.*--config\.model\.heads=N"):
        convert(file, f"--workdir={tmp_path / 'run'}")
    convert(file, f"--workdir={tmp_path / 'run'}", "--config.model.heads=4")
    assert jaxvit.load(tmp_path / "run").model.heads == 4


def test_a_folder_of_ours_is_none_to_convert(converted):
    with pytest.raises(UsageError, match="is a folder of jaxvit already"):
        convert(converted / "run", "--dry_run")


WHOLE = b"\x80\x02ctimm.models.vision_transformer\nVisionTransformer\n)\x81."
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.more"
SHARDS = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})


def cut(path):
    file_of(path.parent)
    path.write_bytes((path.parent / "weights.npz").read_bytes()[:-300])


def not_a_number(path):
    file_of(path.parent, **{"norm.bias": np.full(64, np.nan, np.float32)}).rename(path)


DAMAGED = {
    "missing": ("a.pth", lambda path: None, "check the path"),
    "cut": ("a.npz", cut, "damaged or truncated"),
    "NaN": ("a.npz", not_a_number, "NaN or infinite weights, in norm/bias"),
    "a download of nothing": ("a.pth", lambda path: path.write_bytes(b""), "is empty"),
    "a pointer": ("a.pth", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
    "a page": ("a.pth", lambda path: path.write_text("<html>"), "web page"),
    "another file": ("a.pth", lambda path: path.write_text("hello"), "not a file of weights"),
    "a whole module": ("a.pth", lambda path: save(path, {}, pickled=WHOLE), "save `model.state_dict\\(\\)` of it"),
    "a program": ("a.pth", lambda path: save(path, {}, pickled=b"cos\nsystem\n(X\x01\x00\x00\x00atR."), "is refused"),
    "before PyTorch 1.6": ("a.pth", lambda path: path.write_bytes(LEGACY), "rewrite it with: python -c"),
    "a shard is missing": (
        "m.index.json",
        lambda path: path.write_text(SHARDS),
        "00001-of-00002.safetensors is missing",
    ),
    "a folder": ("a.pth", lambda path: path.mkdir(), "holds no weights|a folder"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_leaves_nothing(kind, tmp_path, capsys):
    name, make, message = DAMAGED[kind]
    (tmp_path / "files").mkdir()
    file = tmp_path / "files" / name
    make(file)
    with pytest.raises(UsageError, match=message) as caught:
        convert(file, f"--workdir={tmp_path / 'deep' / 'run'}")
    assert str(tmp_path / "files") in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["files"] and not capsys.readouterr().out


def test_nothing_is_left_of_a_write_that_fails(tmp_path, monkeypatch):
    file = file_of(tmp_path)
    monkeypatch.setattr("jaxvit.exports.converted.load", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert(file, f"--workdir={tmp_path / 'deep' / 'run'}")
    assert [*tmp_path.iterdir()] == [file]
