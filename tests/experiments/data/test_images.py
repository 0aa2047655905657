"""Splits and data sets: what they hold, and normalization."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from strongreg.experiments.data import ImageData, Split
from strongreg.experiments.data.images import channel_statistics


def _split(num_images: int, channels: int = 3, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (num_images, channels, 5, 4), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(num_images) % 2)


@pytest.fixture
def data() -> ImageData:
    mean, std = channel_statistics(_split(40).images, 255.0)
    return ImageData("noise", _split(40), _split(0), _split(8, seed=1), 2, ("a", "b"), 255.0, mean, std)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 3, 3), torch.zeros(2).long(), "images=torch.float32 of shape"),
        (torch.zeros(2, 3, 3).byte(), torch.zeros(2).long(), "images=torch.uint8 of shape"),
        (torch.zeros(2, 1, 3, 3).byte(), torch.zeros(2).int(), "labels=torch.int32"),
        (torch.zeros(2, 1, 3, 3).byte(), torch.zeros(3).long(), r"labels=torch.int64 of shape \(3,\)"),
    ],
)
def test_a_split_refuses_other_types_and_shapes(images, labels, message):
    with pytest.raises(ValueError, match=message):
        Split(images, labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": _split(2, channels=1)}, "different shapes"),
        ({"class_names": ("a",)}, "give 2 names"),
        ({"mean": None}, "give both for 3 channels"),
        ({"std": None}, "give both for 3 channels"),
        ({"mean": (), "std": ()}, "give both for 3 channels"),
        ({"mean": (0.5,), "std": (1.0,)}, "give both for 3 channels"),
    ],
)
def test_a_data_set_refuses_parts_that_do_not_fit(data, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(data, **changes)


def test_a_split_has_a_length_and_gives_chosen_images():
    split = _split(6)
    chosen = split.select(torch.tensor([4, 1]))
    assert (len(split), len(chosen)) == (6, 2)
    assert torch.equal(chosen.images, split.images[[4, 1]])
    assert chosen.labels.tolist() == [0, 1]


def test_data_move_to_a_device_as_a_whole(data):
    moved = data.to(torch.device("meta"))
    splits = (moved.train, moved.validation, moved.test)
    assert {tensor.device.type for split in splits for tensor in (split.images, split.labels)} == {"meta"}
    assert (moved.name, moved.num_classes, moved.image_shape, moved.mean) == ("noise", 2, (3, 5, 4), data.mean)
    assert data.train.images.device.type == "cpu"
    assert moved.normalize(moved.train.images).device.type == "meta"


def test_normalized_training_images_have_mean_0_and_deviation_1(data):
    images = data.normalize(data.train.images)
    assert images.dtype == torch.float32
    assert images.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-6)
    assert images.std(dim=(0, 2, 3), correction=0).tolist() == pytest.approx([1] * 3, rel=1e-6)


def test_normalization_follows_its_equation_and_leaves_its_input(data):
    pixels = data.test.images.clone()
    expected = (pixels.numpy() / 255.0 - np.reshape(data.mean, (-1, 1, 1))) / np.reshape(data.std, (-1, 1, 1))
    assert torch.allclose(data.normalize(data.test.images), torch.tensor(expected, dtype=torch.float32), atol=1e-6)
    assert torch.equal(data.test.images, pixels)
    assert data.normalize(data.validation.images).shape == (0, 3, 5, 4)


def test_an_image_is_normalized_the_same_alone_and_in_a_batch(data):
    together = data.normalize(data.test.images)
    assert all(torch.equal(data.normalize(data.test.images[i : i + 1])[0], together[i]) for i in range(8))


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 5, 4), torch.zeros(2, 1, 5, 4).byte(), torch.zeros(3, 5).byte()])
def test_normalization_refuses_other_types_and_channels(data, images):
    with pytest.raises(ValueError, match=r"give uint8 of shape \(num_images, 3, height, width\)"):
        data.normalize(images)


@pytest.mark.parametrize("max_value", [255.0, 16.0])
def test_statistics_are_those_of_the_float64_pixels(max_value):
    images = _split(5000).images
    mean, std = channel_statistics(images, max_value)
    pixels = images.numpy() / max_value
    assert mean == pytest.approx(pixels.mean(axis=(0, 2, 3)), rel=1e-12)
    assert std == pytest.approx(pixels.std(axis=(0, 2, 3)), rel=1e-12)


def test_a_constant_channel_is_not_divided_by_0():
    images = torch.full((3, 1, 2, 2), 77, dtype=torch.uint8)
    assert channel_statistics(images, 255.0) == ((pytest.approx(77 / 255),), (1.0,))


class _LargestFloat64(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            self.numel = max(self.numel, result.numel())
        return result


def test_no_float64_copy_of_the_images_is_made(data):
    with _LargestFloat64() as seen:
        channel_statistics(data.train.images, 255.0)
        data.normalize(data.train.images)
    assert seen.numel <= 256
