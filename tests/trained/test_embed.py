"""Features before the head, with the names of their files, and their map."""

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import FAMILIES, train_family

import jaxvit
from jaxvit.cli.embed import main
from jaxvit.errors import UsageError
from jaxvit.trained.embed import Embedded, MapSample, features_and_logits, place_on_map


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_family(tmp_path_factory.mktemp("embedded") / "run", "vit")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three files of class 1, two of class 7, one in no class's folder, one broken."""
    folder, rng = tmp_path_factory.mktemp("embedded") / "images", np.random.default_rng(0)
    for name, count in (("1", 3), ("7", 2), ("others", 1)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8)).save(folder / name / f"{i}.png")
    (folder / "others" / "broken.png").write_text("no image")
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_makes_the_scores_of_the_features(tmp_path, family):
    """The kernel of the head, times the features, are the scores of the model."""
    loaded = jaxvit.load(train_family(tmp_path / "run", family))
    pixels = np.random.default_rng(0).integers(0, 255, (2, *loaded.image_shape), np.uint8)
    found = np.asarray(jax.jit(lambda v, x: features_and_logits(loaded, v, x))(loaded.variables, pixels))
    head = jax.device_get(loaded.variables["params"]["head"]["logits"])
    features, logits = np.split(found, [head["kernel"].shape[0]], axis=1)
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"], logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, loaded.logits(pixels), rtol=1e-4, atol=1e-5)


def test_files_of_features(run, images, tmp_path, capsys):
    out, figure = tmp_path / "x.npz", tmp_path / "map.svg"
    assert main([f"--workdir={run}", str(images), f"--out={out}", f"--figure={figure}"]) == 1
    said = capsys.readouterr()
    assert not said.out and "broken.png: not an image" in said.err
    assert said.err.splitlines()[-1] == f"6 images; 1 could not be read; {out}; {figure}"
    assert "note: 6 images in colour were converted to grey" in said.err
    with np.load(out) as found:  # without pickles
        features, files, true = found["features"], found["files"], found["true"]
        predicted = found["predicted"]
    assert features.shape == (6, 8) and features.dtype == np.float32
    assert true.tolist() == ["1"] * 3 + ["7"] * 2 + [""] and files[0] == f"{images}/1/0.png"
    loaded = jaxvit.load(run)
    assert [loaded.predict(str(file)).top[0][0] for file in files] == predicted.tolist()
    head = jax.device_get(loaded.variables["params"]["head"]["logits"])
    scores = features @ head["kernel"] + head["bias"]
    assert [loaded.class_names[row.argmax()] for row in scores] == predicted.tolist()
    drawn = figure.read_text()
    assert drawn.count("<image") == 6 and ">t-SNE of the features of 6 images" in drawn  # a thumbnail each
    assert [each.features.tolist() for each in jaxvit.embed(loaded, images / "1")] == features[:3].tolist()


def test_parquet_holds_the_same(run, images, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "x.parquet"
    assert main([f"--workdir={run}", str(images / "1"), f"--out={out}", "--batch_size=2"]) == 0
    rows = parquet.read_table(out).to_pylist()
    assert [row["file"] for row in rows] == [f"{images}/1/{i}.png" for i in range(3)]
    wanted = np.stack([each.features for each in jaxvit.embed(run, images / "1", batch_size=2)])
    np.testing.assert_array_equal(np.array([row["features"] for row in rows], np.float32), wanted)


def test_an_even_sample_of_a_stream():
    taken = np.zeros(12)
    for seed in range(300):
        sample = MapSample(3, side=4, seed=seed)
        for i in range(12):
            sample.add(np.full((9, 12, 1), i, np.uint8), Embedded(str(i), np.zeros(1)))
        names = [int(found.file) for found, _ in sample.images]
        assert len(names) == 3 and names == sorted(names)
        assert all(
            small.shape == (3, 4, 1) and small[0, 0, 0] == i for i, (_, small) in zip(names, sample.images, strict=True)
        )
        taken[names] += 1
    assert abs(taken / 300 - 1 / 4).max() < 0.1


def test_the_map_keeps_groups_apart():
    rng = np.random.default_rng(0)
    centres = 20 * np.eye(3, 16)
    features = np.concatenate([centre + rng.normal(size=(12, 16)) for centre in centres])
    own = np.repeat(np.arange(3), 12)
    for how in ("tsne", "pca"):
        places = place_on_map(features, how)
        distances = np.linalg.norm(places[:, None] - places[None], axis=-1) + 1e9 * np.eye(36)
        assert places.shape == (36, 2) and (own[distances.argmin(axis=1)] == own).all()
    np.testing.assert_array_equal(place_on_map(features), place_on_map(features))
    centred = features - features.mean(axis=0)
    spread = np.linalg.svd(centred, compute_uv=False)[:2]  # PCA by its definition
    np.testing.assert_allclose(np.linalg.norm(place_on_map(features, "pca"), axis=0), spread)
    for count in (1, 2, 5):  # of images that are all alike too
        assert np.isfinite(place_on_map(np.ones((count, 3), np.float32))).all()


def test_own_models_without_a_head(run):
    loaded = jaxvit.load(run)

    class Odd:
        image_shape, config = loaded.image_shape, loaded.config

        def apply(self, variables, images):
            return images.reshape(len(images), -1).astype("float32")

    with pytest.raises(UsageError, match="no layer 'head' and no dense layer"):
        features_and_logits(Odd(), {}, np.zeros((1, 8, 8, 1), np.uint8))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--workdir={run}"], "name images"),
        (["--workdir={run}", "{images}"], "name a file to write, such as --out=features.npz"),
        (["--workdir={run}", "{images}", "--out=x.csv"], "must end in .npz or .parquet"),
        (["--workdir={run}", "{images}", "--figure=x.gif"], "must end in .png"),
        (["--workdir={run}", "{images}", "--figure=x.png", "--points=0"], "--points=0"),
        (["--workdir={run}", "{images}/others/broken.png", "--out={images}/x.npz"], "no image could be read"),
    ],
)
def test_mistakes_are_one_line(run, images, words, says):
    before = sorted(images.rglob("*"))
    with pytest.raises(UsageError, match=says):
        main([word.format(run=run, images=images) for word in words])
    assert sorted(images.rglob("*")) == before
