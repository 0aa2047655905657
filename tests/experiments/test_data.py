"""The data sets: their splits and values."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from strongreg.experiments.data import load_data
from strongreg.experiments.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def _rows(images: torch.Tensor) -> list[tuple[float, ...]]:
    return [tuple(image.flatten().tolist()) for image in images]


def test_digits_have_the_documented_shapes_types_and_range(digits):
    assert digits.name == "digits"
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    assert digits.train_labels.shape == (1437,)
    assert digits.test_labels.shape == (360,)
    assert digits.image_shape == (1, 8, 8)
    assert digits.num_classes == 10
    for images, labels in ((digits.train_images, digits.train_labels), (digits.test_images, digits.test_labels)):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.min() == 0.0
        assert images.max() == 1.0


def test_no_image_is_in_both_splits_and_none_is_lost(digits):
    train, test = _rows(digits.train_images), _rows(digits.test_images)
    assert not set(train) & set(test)
    assert sorted(train + test) == sorted(_rows(torch.tensor(load_digits().images, dtype=torch.float32) / 16))


def test_every_image_keeps_its_label(digits):
    bunch = load_digits()
    label_of = dict(
        zip(_rows(torch.tensor(bunch.images, dtype=torch.float32) / 16), bunch.target.tolist(), strict=True)
    )
    assert [label_of[row] for row in _rows(digits.train_images)] == digits.train_labels.tolist()
    assert [label_of[row] for row in _rows(digits.test_images)] == digits.test_labels.tolist()


def test_both_splits_hold_the_same_share_of_every_class(digits):
    train, test = (labels.bincount(minlength=10) for labels in (digits.train_labels, digits.test_labels))
    assert ((test - 0.2 * (train + test)).abs() < 1).all()


def test_the_split_is_the_same_whatever_the_seed(digits):
    torch.manual_seed(17)
    again = load_data("digits")
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(again, name), getattr(digits, name))


def test_loading_draws_no_random_number():
    before = torch.get_rng_state()
    load_data("digits")
    assert torch.equal(torch.get_rng_state(), before)


def test_data_move_to_a_device_as_a_whole(digits):
    moved = digits.to(torch.device("meta"))
    tensors = [moved.train_images, moved.train_labels, moved.test_images, moved.test_labels]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.name, moved.num_classes, moved.image_shape) == ("digits", 10, (1, 8, 8))
    assert digits.train_images.device.type == "cpu"


@pytest.mark.parametrize(("name", "hint"), [("digit", "did you mean 'digits'"), ("", "choose one of digits")])
def test_unknown_data_are_an_error_that_lists_the_known_ones(name, hint):
    with pytest.raises(UserError, match=f"unknown data set '{name}': {hint}"):
        load_data(name)
