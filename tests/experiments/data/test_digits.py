"""The digits: their split and values."""

from __future__ import annotations

import sys

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from strongreg.experiments.data import load_data
from strongreg.experiments.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def _rows(images: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(image.flatten().tolist()) for image in images]


def test_digits_have_the_documented_shapes_types_and_range(digits):
    assert digits.name == "digits"
    assert digits.train.images.shape == (1437, 1, 8, 8)
    assert digits.test.images.shape == (360, 1, 8, 8)
    assert (len(digits.train), len(digits.validation), len(digits.test)) == (1437, 0, 360)
    assert digits.image_shape == (1, 8, 8)
    assert digits.class_names == tuple("0123456789")
    assert (digits.num_classes, digits.max_value, digits.mean, digits.std) == (10, 16, None, None)
    for split in (digits.train, digits.test):
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64
        assert (split.images.min(), split.images.max()) == (0, 16)


def test_normalized_digits_are_the_pixels_through_16_to_the_bit_in_the_documented_split(digits):
    bunch = load_digits()
    floats = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    train, test = train_test_split(range(1797), test_size=0.2, random_state=0, stratify=bunch.target)
    for split, indices in ((digits.train, train), (digits.test, test)):
        assert torch.equal(digits.normalize(split.images), floats[indices])
        assert torch.equal(split.labels, torch.tensor(bunch.target)[indices])


def test_no_image_is_in_both_splits_and_none_is_lost(digits):
    train, test = _rows(digits.train.images), _rows(digits.test.images)
    assert not set(train) & set(test)
    assert sorted(train + test) == sorted(_rows(torch.tensor(load_digits().images, dtype=torch.uint8)))


def test_every_image_keeps_its_label(digits):
    bunch = load_digits()
    rows = _rows(torch.tensor(bunch.images, dtype=torch.uint8))
    label_of = dict(zip(rows, bunch.target.tolist(), strict=True))
    assert [label_of[row] for row in _rows(digits.train.images)] == digits.train.labels.tolist()
    assert [label_of[row] for row in _rows(digits.test.images)] == digits.test.labels.tolist()


def test_both_splits_hold_the_same_share_of_every_class(digits):
    train, test = (split.labels.bincount(minlength=10) for split in (digits.train, digits.test))
    assert ((test - 0.2 * (train + test)).abs() < 1).all()


def test_the_split_is_the_same_whatever_the_seed(digits):
    torch.manual_seed(17)
    again = load_data("digits", seed=5)
    for split in ("train", "test"):
        for name in ("images", "labels"):
            assert torch.equal(getattr(getattr(again, split), name), getattr(getattr(digits, split), name))


def test_loading_draws_no_random_number():
    before = torch.get_rng_state()
    load_data("digits", validation_share=0.2, num_train=100)
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_images_come_from_the_training_images_and_the_test_images_stay(digits):
    data = load_data("digits", validation_share=0.1, seed=3)
    assert (len(data.train), len(data.validation)) == (1293, 144)
    assert sorted(_rows(data.train.images) + _rows(data.validation.images)) == sorted(_rows(digits.train.images))
    assert torch.equal(data.test.images, digits.test.images)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"the digits data needs scikit-learn: run pip install '\.\[experiments\]'"):
        load_data("digits")
