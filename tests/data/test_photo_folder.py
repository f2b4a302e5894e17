"""Splits and classes of a folder of photos, from its layout; skipped files are reported."""

import pytest
from photos import photo, photos

from jaxvit.data.image_folder import refuse_among_images
from jaxvit.data.photo_folder import read_photo_folder
from jaxvit.errors import UsageError


def read(folder):
    found = read_photo_folder(folder, "--data=x")
    return {part: len(files) for part, files in found.parts.items()}, found


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [("train", "val", "test"), ("Training", "VALID", "Testing"), ("TRAIN", "Dev", "Test")],
)
def test_parts_by_their_usual_names_in_any_case(tmp_path, train, validation, test):
    photos(tmp_path / train, cat=3, dog=2)
    photos(tmp_path / validation, cat=1, dog=1)
    photos(tmp_path / test, cat=1, dog=2)
    sizes, found = read(tmp_path)
    assert sizes == {"train": 5, "validation": 2, "test": 3} and found.class_names == ("cat", "dog")


def test_a_flat_tree_is_all_train_and_classes_may_have_folders_of_their_own(tmp_path):
    photos(tmp_path, cat=2, dog=1)
    photo(tmp_path / "cat" / "2024" / "may" / "x.png")
    sizes, found = read(tmp_path)
    assert sizes == {"train": 4}
    assert sorted((file.parts[len(tmp_path.parts)], found.class_names[n]) for file, n in found.parts["train"]) == [
        *[("cat", "cat")] * 3,
        ("dog", "dog"),
    ]


def test_two_folders_for_one_part_are_refused(tmp_path):
    for part in ("train", "val", "valid"):
        photos(tmp_path / part, cat=1, dog=1)
    with pytest.raises(UsageError, match=r"val and valid are both the validation part; put their images into one"):
        read(tmp_path)


def test_parts_without_classes_are_not_taken_for_classes(tmp_path):
    photos(tmp_path, Training=2, Testing=2)
    with pytest.raises(
        UsageError, match=r"Test(ing)? lie in no class's folder; it should look like .*/CLASS/IMAGE.jpg"
    ):
        read(tmp_path)


def test_a_test_folder_without_labels_is_left_out_and_said(tmp_path):
    photos(tmp_path / "train", cat=2, dog=2)
    photos(tmp_path, test=4)
    sizes, found = read(tmp_path)
    assert sizes == {"train": 4}
    assert [str(one) for one in found.left_out] == [
        "images without a class, which `jaxvit predict` takes: 4 (test/0.png, test/1.png, test/2.png, …)"
    ]


def test_a_class_that_is_called_test(tmp_path):
    photos(tmp_path, control=2, test=3)
    sizes, found = read(tmp_path)
    assert sizes == {"train": 5} and found.class_names == ("control", "test")


def test_what_is_passed_over_is_counted_and_named(tmp_path):
    photos(tmp_path / "train", cat=2, dog=1)
    (tmp_path / "train" / "bird").mkdir()
    photo(tmp_path / "train" / "loose.png")
    (tmp_path / "val").mkdir()
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    photos(tmp_path, backup=2)
    said = "; ".join(str(one) for one in read(tmp_path)[1].left_out)
    for phrase in (
        "class folders without an image: 1 (train/bird)",
        "images that lie in no class's folder: 1 (train/loose.png)",
        "empty folders: 1 (val)",
        "images in the folder backup, which is not a part: 2 (backup/0.png, backup/1.png)",
        "(train/cat/notes.txt)",
    ):
        assert phrase in said


def test_a_class_that_stands_only_in_test_is_known(tmp_path):
    photos(tmp_path / "train", cat=1, dog=1)
    photos(tmp_path / "test", cat=1, zebra=1)
    assert read(tmp_path)[1].without_training_images() == ("zebra",)


def test_no_images_and_no_folder(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(UsageError, match="holds no images in folders named after their classes"):
        read(tmp_path)
    with pytest.raises(UsageError, match="there is no such folder"):
        read(tmp_path / "nowhere")


def test_a_run_is_not_put_where_its_figures_would_be_images(tmp_path):
    photos(tmp_path / "flat", cat=1, dog=1)
    photos(tmp_path / "parts" / "Train", cat=1, dog=1)
    (tmp_path / "link").symlink_to(tmp_path / "flat")
    for place in ("flat/run", "link/run", "flat/cat/run", "parts/Train/run", "parts/test"):
        name = f"image_folder:{tmp_path / place.split('/')[0].replace('link', 'flat')}"
        with pytest.raises(UsageError, match=r"^--workdir=.*: this is among the images of .* become training images"):
            refuse_among_images(tmp_path / place, name)
    for place, name in [("flat/.runs/run", "flat"), ("parts/run", "parts"), ("flat2/run", "flat"), ("x", "missing")]:
        refuse_among_images(tmp_path / place, f"image_folder:{tmp_path / name}")
    refuse_among_images(tmp_path / "flat" / "run", f"image_table:{tmp_path / 'flat' / 'labels.csv'}")
    refuse_among_images(tmp_path / "flat" / "run", "digits")
