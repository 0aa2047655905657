"""Folders of images: their two layouts, and what is wrong in others."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from strongreg.experiments.data.folder import list_images, read_folder
from strongreg.experiments.errors import UserError


def _read(root):
    return read_folder(list_images(root))


@pytest.fixture
def divided(image_folder):
    """The same images in root/train/<class> and, the last three of each class, in root/test/<class>."""
    for name in ("rose", "aster"):
        shutil.move(image_folder / name, image_folder / "train" / name)
        (image_folder / "test" / name).mkdir(parents=True)
        for file in sorted((image_folder / "train" / name).iterdir())[-3:]:
            shutil.move(file, image_folder / "test" / name / file.name)
    return image_folder


def _rows(images):
    return sorted(tuple(image.flatten().tolist()) for image in images)


def test_a_stratified_fifth_is_held_out_always_the_same(image_folder, make_image):
    source = _read(image_folder)
    assert source.class_names == ("aster", "rose")
    assert source.train.labels.bincount().tolist() == [4, 8]
    assert source.test.labels.bincount().tolist() == [1, 2]
    every = torch.cat([source.train.images, source.test.images])
    known = np.stack([make_image(i) for i in [*range(10), *range(50, 55)]]).transpose(0, 3, 1, 2)
    assert _rows(every) == _rows(torch.from_numpy(known))
    torch.manual_seed(5)
    assert torch.equal(_read(image_folder).test.images, source.test.images)


def test_a_train_and_a_test_folder_are_taken_as_they_are(divided, make_image):
    source = _read(divided)
    assert source.train.labels.tolist() == [0] * 2 + [1] * 7
    assert source.test.labels.tolist() == [0] * 3 + [1] * 3
    expected = [50, 51, 0, 1, 2, 3, 4, 5, 6]
    assert (source.train.images.permute(0, 2, 3, 1).numpy() == np.stack([make_image(i) for i in expected])).all()


def test_a_class_may_be_missing_in_the_test_folder_and_keeps_its_label(divided):
    shutil.rmtree(divided / "test" / "aster")
    assert _read(divided).test.labels.tolist() == [1, 1, 1]


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"])
def test_each_format_is_read(tmp_path, suffix):
    for name, colour in (("a", "white"), ("b", "black")):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (4, 4), colour).save(tmp_path / name / f"{i}{suffix}")
    source = _read(tmp_path)
    assert len(source.train) == 5
    assert source.train.images[source.train.labels == 0].min() >= 250


def test_other_and_hidden_files_are_left_out(image_folder):
    (image_folder / "rose" / "notes.txt").write_text("red")
    (image_folder / "rose" / ".00.png").write_text("no image")
    (image_folder / ".git").mkdir()
    (image_folder / "rose" / "folder.png").mkdir()
    assert len(list_images(image_folder).train) == 15


def test_the_odd_file_is_named(image_folder, make_image):
    odd = image_folder / "rose" / "04.png"
    Image.fromarray(make_image(0, (8, 7, 3))).save(odd)
    with pytest.raises(UserError, match=f"{odd} has 7x8 pixels in RGB, but {image_folder / 'aster' / '00.png'}, the"):
        _read(image_folder)
    Image.fromarray(make_image(0, (8, 6))).save(odd)
    with pytest.raises(UserError, match=f"{odd} has 6x8 pixels in grey"):
        _read(image_folder)


@pytest.mark.parametrize("content", [b"", b"red"])
def test_a_file_that_is_no_image_is_named(image_folder, content):
    odd = image_folder / "rose" / "04.png"
    odd.write_bytes(content)
    with pytest.raises(UserError, match=f"{odd} is not an image"):
        _read(image_folder)


def test_a_class_without_images_is_an_error(image_folder):
    (image_folder / "empty").mkdir()
    with pytest.raises(UserError, match=f"{image_folder / 'empty'} holds no images"):
        list_images(image_folder)


def test_a_single_class_is_an_error(image_folder):
    shutil.rmtree(image_folder / "rose")
    with pytest.raises(UserError, match=f"{image_folder} holds 1 folders: give one per class, at least two"):
        list_images(image_folder)


@pytest.mark.parametrize(("kept", "missing"), [("train", "test"), ("test", "train")])
def test_half_of_a_division_is_an_error(divided, kept, missing):
    shutil.rmtree(divided / missing)
    with pytest.raises(UserError, match=f"{divided} holds no folder {missing}: add it next to {kept}"):
        list_images(divided)


def test_a_class_that_is_not_trained_on_is_an_error(divided):
    shutil.move(divided / "test" / "rose", divided / "test" / "tulip")
    with pytest.raises(UserError, match=r"must hold folders of .*, not \['tulip'\]"):
        list_images(divided)


def test_further_folders_next_to_train_and_test_are_a_warning(divided):
    (divided / "val").mkdir()
    with pytest.warns(UserWarning, match="only train and test are read, not val"):
        list_images(divided)


def test_too_few_images_are_an_error(image_folder):
    for name in ("rose", "aster"):
        for file in sorted((image_folder / name).iterdir())[1:]:
            file.unlink()
    with pytest.raises(UserError, match="holds 2 images: too few"):
        _read(image_folder)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="there is no image folder"):
        list_images(tmp_path / "missing")
