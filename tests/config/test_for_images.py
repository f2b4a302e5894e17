"""The settings that `jaxvit train --data` derives from the images; the command line overrides them."""

import shutil

import numpy as np
import pytest
from photos import photo, photos
from PIL import Image
from shards import members, write_tar

from jaxvit.config.files import load_config_file
from jaxvit.config.for_images import (
    choose,
    choose_batch,
    choose_epochs,
    choose_side,
    data_name,
    default_workdir,
)
from jaxvit.config.plan import resolve
from jaxvit.errors import UsageError


def chosen(data, tmp_path, given=(), **settings):
    config = load_config_file("photos")
    config.data.dir = str(tmp_path / "tfds")
    for key, value in settings.items():
        section, _, leaf = key.partition("__")
        config[section][leaf] = value
    return choose(config, data_name(str(data)), given=given)


def test_thirty_cats_and_four_dogs(tmp_path):
    path = photos(tmp_path / "pets", cat=30, dog=4)
    (path / "bird").mkdir()
    (path / "notes.txt").write_text("no image")
    (path / "cat" / "broken.png").write_bytes(b"no image")
    found = chosen(path, tmp_path)
    said = "\n".join(found.lines)
    for phrase in (
        f"34 images of 2 classes in image_folder:{path}",
        "classes: cat 30, dog 4",
        "largest class: cat, 88.2% of the images: the accuracy of a constant answer",
        "26 train, 4 validation, 4 test; validation and test cut off train, a tenth of each class",
        "notes.txt",
        "class folders without an image: 1 (bird)",
        "images that cannot be decoded: 1 (",
        "data.side 8 (the images have 8×8 pixels)",
        "train.batch_size 8 (4 steps an epoch)",
    ):
        assert phrase in said, phrase
    (warning,) = found.warnings
    assert "(cat has 30 images, dog 4)" in warning and "--config.data.balance=sampling" in warning
    plan = resolve(found.config)
    assert plan.train.steps_per_epoch == 4 and plan.train.steps == 800 and plan.data.image_shape == (8, 8, 3)
    assert chosen(path, tmp_path).config == found.config  # so that the same command goes on
    assert not chosen(path, tmp_path, given=("data.balance",), data__balance="loss").warnings


def test_given_values_stay(tmp_path):
    path = photos(tmp_path / "pets", cat=20, dog=20)
    given = {
        "data.side": 4,
        "train.batch_size": 2,
        "train.duration": "3 steps",
        "data.test": "",
        "augment.mean": (0.5,),
    }
    changes = {key.replace(".", "__"): value for key, value in given.items()}
    config = chosen(path, tmp_path, given=tuple(given), **changes).config
    assert {key: config[key.split(".")[0]][key.split(".")[1]] for key in given} == given
    assert resolve(config).train.steps == 3


def test_another_recipe_keeps_all_but_the_data(tmp_path):
    path = photos(tmp_path / "pets", cat=20, dog=20)
    other = load_config_file("fashion_mnist:vit")
    found = choose(other, data_name(str(path)), whole_recipe=False).config
    assert other.data.classes and found.data.classes == () and found.data.cut == "content" and found.data.side == 8
    assert (found.train.batch_size, found.model.name) == (other.train.batch_size, other.model.name)


def test_given_parts_and_copies_across_them(tmp_path):
    photos(tmp_path / "p" / "Training", cat=12, dog=12)
    photos(tmp_path / "p" / "VAL", cat=2, dog=2)
    photos(tmp_path / "p" / "Testing", cat=2, dog=2)
    photo(tmp_path / "p" / "Training" / "cat" / "same.png", number=3)
    photo(tmp_path / "p" / "Testing" / "cat" / "other_name.bmp", number=3)
    photo(tmp_path / "p" / "Training" / "cat" / "x.png", number=4)
    photo(tmp_path / "p" / "Training" / "dog" / "y.png", number=4)
    found = chosen(tmp_path / "p", tmp_path)
    assert "27 train, 4 validation, 5 test; as they are stored" in "\n".join(found.lines)
    assert found.config.data.cut == ""
    across, twice = found.warnings
    assert across == (
        "1 of the 5 test images is in train too, such as Testing/cat/other_name.bmp as Training/cat/same.png: the test "
        "accuracy is too high"
    )
    assert "1 image is in more than one class, such as" in twice and "cat/x.png" in twice and "dog/y.png" in twice


def test_a_test_part_that_chooses_the_weights_is_said(tmp_path):
    photos(tmp_path / "p" / "train", cat=9, dog=9)
    photos(tmp_path / "p" / "val", cat=2, dog=2)
    shutil.copytree(tmp_path / "p" / "val", tmp_path / "p" / "test")
    [said] = chosen(tmp_path / "p", tmp_path).warnings
    assert said.startswith("4 of the 4 test images are in validation too, such as test/")
    assert said.endswith("they choose the weights, so the test accuracy is too high")


def test_damaged_and_huge_images_are_left_out_with_the_reason(tmp_path, capsys):
    path = photos(tmp_path / "p", cat=9, dog=9)
    (path / "cat" / "empty.png").touch()
    photo(path / "dog" / "huge.png", size=(40, 30))
    found = chosen(path, tmp_path, given=("data.max_pixels",), data__max_pixels=1000)
    [said] = [line for line in found.lines if "left out" in line]
    for reason in ("cat/empty.png: it is empty", "dog/huge.png: it has 40×30 pixels, and max_pixels allows 1,000"):
        assert reason in said
    assert "(--config.data.max_pixels raises the limit)" in capsys.readouterr().err


def test_grey_images_are_not_mirrored(tmp_path):
    for name in ("a", "b"):
        for i in range(6):
            photo(tmp_path / "p" / name / f"{i}.png")
            grey = np.asarray(Image.open(tmp_path / "p" / name / f"{i}.png").convert("L"))
            Image.fromarray(grey).save(tmp_path / "p" / name / f"{i}.png")
    found = chosen(tmp_path / "p", tmp_path)
    assert found.config.augment.flip is False and "augment.flip False (all images are grey" in found.lines[-1]
    assert load_config_file("photos").augment.flip is True


def test_a_prepared_set(data_directory):
    found = choose(load_config_file("photos"), "digits")
    config = found.config
    assert (config.data.name, config.data.side, config.data.cut, config.augment.flip) == ("digits", 0, "content", False)
    assert "1,295 train, 142 validation, 360 test; validation cut off train, a tenth" in "\n".join(found.lines)
    assert resolve(config).data.image_shape == (8, 8, 1) and config.model.conv_layers == 1


def test_a_table_by_its_own_path(tmp_path, monkeypatch):
    path = photos(tmp_path / "p", a=6, b=6)
    rows = [f"{file.relative_to(path)},{file.parent.name}x" for file in sorted(path.rglob("*.png"))]
    (path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    monkeypatch.chdir(tmp_path)
    assert data_name("p/labels.csv") == f"image_table:{path}/labels.csv"
    found = chosen("p/labels.csv", tmp_path)
    assert "classes: ax 6, bx 6" in found.lines[1] and found.config.data.name.startswith("image_table:/")


def test_shards_get_the_choices_of_the_folder_of_the_same_images(tmp_path):
    path = photos(tmp_path / "pets", cat=12, dog=12)
    write_tar(tmp_path / "shards" / "0.tar", members(path))
    folder, shards = chosen(path, tmp_path), chosen(f"{tmp_path}/shards/*.tar", tmp_path)
    said = "  shards: 1 train (0.tar); no shard's name has the name of a part"
    assert [line for line in shards.lines[1:] if line != said] == list(folder.lines[1:]) and said in shards.lines
    assert shards.config.data.name == f"tar:{tmp_path}/shards/*.tar"
    with folder.config.unlocked(), shards.config.unlocked():
        folder.config.data.name = shards.config.data.name
    assert folder.config == shards.config


def test_names_and_folders_of_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets.v2").mkdir()
    assert data_name("pets.v2") == f"image_folder:{tmp_path}/pets.v2" and data_name("cifar10") == "cifar10"
    assert data_name("image_folder:pets.v2") == f"image_folder:{tmp_path}/pets.v2"
    assert (
        default_workdir(data_name("pets.v2")) == "runs/pets.v2" and default_workdir("digits", 5) == "runs/digits-5folds"
    )
    assert default_workdir("image_table:/x/labels.csv") == "runs/labels"
    assert data_name("x/{a,b}-*.tar") == f"tar:{tmp_path}/x/{{a,b}}-*.tar"
    assert data_name("x/*.parquet") == f"parquet:{tmp_path}/x/*.parquet"
    assert data_name("x.tar.gz").startswith("tar:")  # its error names the remedy
    assert default_workdir("tar:/a/pets/**/*.tar") == default_workdir("tar:/a/pets/{a,b}.tar") == "runs/pets"
    assert default_workdir("parquet:/a/pets.parquet") == "runs/pets"
    with pytest.raises(UsageError, match=r"--data=./gone: .*/gone does not exist"):
        data_name("./gone")
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(UsageError, match="is neither a folder nor a table"):
        data_name("file.txt")


@pytest.mark.parametrize(
    ("images", "batch", "epochs"), [(3, 3, 200), (27, 8, 200), (400, 32, 150), (4000, 128, 60), (45_000, 128, 30)]
)
def test_batch_and_length(images, batch, epochs):
    assert (choose_batch(images), choose_epochs(images, batch)) == (batch, epochs)


def test_sides():
    assert [choose_side(n) for n in (3000, 64, 63, 40, 32, 28, 8)] == [64, 64, 48, 32, 32, 28, 8]


def test_what_cannot_be_learned_is_refused(tmp_path):
    one = photos(tmp_path / "one", only=20)
    with pytest.raises(UsageError, match=r"all of its images are of one class \(only\).*PATH/CLASS/IMAGE.jpg"):
        chosen(one, tmp_path)
    (one / "dog").mkdir()
    with pytest.raises(UsageError, match=r"of one class .*; left out: class folders without an image: 1 \(dog\)"):
        chosen(one, tmp_path)
    photos(tmp_path / "only" / "test", cat=3, dog=3)
    with pytest.raises(UsageError, match=r"there are no training images, only test; to evaluate .* jaxvit evaluate"):
        chosen(tmp_path / "only", tmp_path)
    with pytest.raises(UsageError, match=r"--data=gone: there is no such folder or table here, and no such data set: "):
        chosen("gone", tmp_path)
    photos(tmp_path / "p" / "train", cat=9, dog=9)
    photos(tmp_path / "p" / "test", ant=1, cat=1)
    with pytest.raises(UsageError, match=r"1 of its 3 classes \(ant\) have no image in train.*data.classes='\(1, 2\)'"):
        chosen(tmp_path / "p", tmp_path)
    config = chosen(tmp_path / "p", tmp_path, given=("data.classes",), data__classes=(1, 2)).config
    assert resolve(config).data.class_names == ("cat", "dog")
