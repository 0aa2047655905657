"""Data sets by their names, on tiny files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from strongreg.experiments.data import DATA_SETS, input_format, load_data
from strongreg.experiments.data.catalog import PUBLISHED
from strongreg.experiments.errors import UserError

COUNTS = {
    "mnist": (60000, 10000, 10, (1, 28, 28)),
    "fashion_mnist": (60000, 10000, 10, (1, 28, 28)),
    "cifar10": (50000, 10000, 10, (3, 32, 32)),
    "cifar100": (50000, 10000, 100, (3, 32, 32)),
    "svhn": (73257, 26032, 10, (3, 32, 32)),
}


def test_the_names_and_the_published_counts_are_these():
    assert DATA_SETS == (
        "digits",
        "mnist",
        "fashion_mnist",
        "cifar10",
        "cifar100",
        "svhn",
        "python_stdlib",
        "tiny_shakespeare",
    )
    assert {
        name: (sum(known.train_counts), sum(known.test_counts), known.num_classes, known.shape)
        for name, known in PUBLISHED.items()
    } == COUNTS
    assert all(len(known.test_counts) == known.num_classes for known in PUBLISHED.values())


@pytest.mark.usefixtures("tiny")
def test_a_published_set_is_read_from_its_folder(make_tiny, make_image, tmp_path):
    make_tiny(tmp_path / "cifar10", names=["x", "y", "z"])
    data = load_data("cifar10", data_dir=tmp_path)
    assert (data.name, data.num_classes, data.class_names, data.max_value) == ("cifar10", 3, ("x", "y", "z"), 255)
    assert data.image_shape == (3, 8, 6)
    assert data.train.labels.tolist() == [0] * 5 + [1] * 4 + [2] * 3
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for split, first in ((data.train, 0), (data.test, 100)):
        expected = np.stack([make_image(first + i) for i in range(len(split))]).transpose(0, 3, 1, 2)
        assert (split.images.numpy() == expected).all()
    assert data.normalize(data.train.images).mean(dim=(0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-6)


@pytest.mark.usefixtures("tiny")
def test_the_second_load_gives_the_same_without_decoding(make_tiny, tmp_path, monkeypatch):
    make_tiny(tmp_path / "cifar10")
    first = load_data("cifar10", data_dir=tmp_path)
    monkeypatch.setattr("strongreg.experiments.data.load.read_parquet", None)
    second = load_data("cifar10", data_dir=tmp_path)
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.test.labels, second.test.labels)
    assert (first.mean, first.class_names) == (second.mean, second.class_names)


@pytest.mark.usefixtures("tiny")
def test_validation_and_number_reach_the_splits_and_no_global_number_is_drawn(make_tiny, tmp_path):
    make_tiny(tmp_path / "cifar10")
    before = torch.get_rng_state()
    data = load_data("cifar10", data_dir=tmp_path, validation_share=0.25, num_train=6, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 3, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_counts": (5, 4, 2)}, "holds 11 training images, cifar10 has 12: take the files of someone/cifar10"),
        ({"test_counts": (2, 2, 3)}, "holds 7 test images, cifar10 has 6"),
        ({"train_counts": (4, 4, 4)}, "is not cifar10: it holds 4 training images of class 0, cifar10 has 5"),
        ({"test_counts": (3, 3)}, "is not cifar10: it holds 3 test images of class 0, cifar10 has 2"),
        ({"shape": (1, 8, 6)}, "has 6x8 pixels in grey, but the data set has 6x8 pixels in RGB"),
    ],
)
def test_another_data_set_under_the_name_is_an_error(tiny, make_tiny, tmp_path, changes, message):
    folder = make_tiny(tmp_path / "cifar10", type(tiny)(**{**vars(tiny), **changes}))
    for _ in range(2):  # nothing of it is kept
        with pytest.raises(UserError, match=message) as caught:
            load_data("cifar10", data_dir=tmp_path)
        assert str(folder) in str(caught.value)


@pytest.mark.usefixtures("tiny")
def test_a_truncated_file_among_good_ones_is_named(make_tiny, tmp_path):
    damaged = make_tiny(tmp_path / "cifar10") / "train-00001-of-00002.parquet"
    damaged.write_bytes(damaged.read_bytes()[:500])
    with pytest.raises(UserError, match=f"{damaged} is not a whole parquet file"):
        load_data("cifar10", data_dir=tmp_path)


@pytest.mark.usefixtures("tiny")
def test_a_folder_that_cannot_be_read_is_an_error_of_one_line(make_tiny, tmp_path, monkeypatch):
    make_tiny(tmp_path / "cifar10")

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"the data set cifar10 cannot be read: .*Permission denied"):
        load_data("cifar10", data_dir=tmp_path)


def test_an_image_folder_is_its_path_or_its_name(image_folder, monkeypatch):
    monkeypatch.chdir(image_folder.parent)
    for name in ("flowers", "./flowers", str(image_folder), "flowers/", "../" + image_folder.parent.name + "/flowers"):
        data = load_data(name, validation_share=0.25)
        assert (data.name, data.class_names, data.image_shape) == ("flowers", ("aster", "rose"), (3, 8, 6))
        assert (len(data.train), len(data.validation), len(data.test)) == (9, 3, 3)
    monkeypatch.chdir(image_folder)
    assert load_data(".").name == "flowers"
    with pytest.raises(UserError, match="there is no image folder elsewhere"):
        load_data("elsewhere/")


def test_the_test_images_of_a_folder_do_not_depend_on_the_seed(image_folder):
    one, two = (load_data(str(image_folder), validation_share=0.25, seed=seed) for seed in (1, 2))
    assert torch.equal(one.test.images, two.test.images)
    assert not torch.equal(one.validation.images, two.validation.images)


@pytest.mark.parametrize(("name", "hint"), [("digit", "did you mean 'digits'"), ("", "choose one of cifar10, cifar1")])
def test_unknown_data_are_an_error_that_lists_the_known_ones(name, hint):
    with pytest.raises(UserError, match=f"unknown data set '{name}': {hint}"):
        load_data(name)


def test_what_is_neither_a_data_set_nor_a_folder_says_that_it_may_be_one(image_folder, monkeypatch):
    monkeypatch.chdir(image_folder.parent)
    for reads in (load_data, input_format):
        with pytest.raises(
            UserError, match=r"shakespeare; or name a folder .* images per class, or a text file \('flower' is neither"
        ):
            reads("flower")


def test_a_folder_that_is_named_like_a_data_set_needs_a_separator(image_folder, monkeypatch):
    image_folder.rename(image_folder.parent / "digits")
    monkeypatch.chdir(image_folder.parent)
    assert load_data("digits").image_shape == input_format("digits")[0] == (1, 8, 8)
    assert load_data("./digits").image_shape == input_format("./digits")[0] == (3, 8, 6)


def test_numbers_out_of_range_are_errors_before_anything_is_read():
    with pytest.raises(UserError, match="validation_share=1"):
        load_data("cifar10", validation_share=1)
    with pytest.raises(UserError, match="num_train=0"):
        load_data("cifar10", num_train=0)


# ---------------------------------------------------------------------- what a network must fit


def test_the_format_of_published_images_is_known_without_them():
    for name, (_, _, num_classes, shape) in COUNTS.items():
        assert input_format(name) == (shape, num_classes)


def test_the_format_is_that_of_the_images_loaded(image_folder):
    for name in ("digits", str(image_folder)):
        data = load_data(name)
        assert input_format(name) == (data.image_shape, data.num_classes)


def test_an_unknown_data_set_has_no_format(tmp_path):
    with pytest.raises(UserError, match="unknown data set 'cifar': did you mean"):
        input_format("cifar")
    with pytest.raises(UserError, match="there is no image folder"):
        input_format(str(tmp_path / "none"))
