"""Crop, flip and cutout against loops, and where their random numbers come from."""

from __future__ import annotations

import pytest
import torch

from strongreg.experiments.data import Augmentation


def _images(num_images=64, channels=3, height=7, width=9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 256, (num_images, channels, height, width), generator=generator, dtype=torch.uint8)


def _generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_with_everything_off_the_images_themselves_come_back_and_nothing_is_drawn():
    images, generator = _images(), _generator()
    before = generator.get_state()
    assert Augmentation()(images, generator) is images
    assert torch.equal(generator.get_state(), before)


def test_a_crop_is_a_window_of_the_padded_image_each_image_its_own():
    images = _images(300)
    result = Augmentation(crop_padding=2)(images, _generator())
    seen = set()
    for image, cropped in zip(images, result, strict=True):
        padded = torch.nn.functional.pad(image, [2] * 4)
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(cropped, padded[:, y : y + 7, x : x + 9])]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 25


def test_a_flip_mirrors_about_half_of_the_images_left_to_right():
    images = _images(400)
    result = Augmentation(flip=True)(images, _generator())
    flipped = [torch.equal(a, b.flip(2)) for a, b in zip(result, images, strict=True)]
    assert all(f or torch.equal(a, b) for f, a, b in zip(flipped, result, images, strict=True))
    assert 150 < sum(flipped) < 250


@pytest.mark.parametrize("side", [1, 2, 3, 4, 20])
def test_cutout_sets_one_square_around_a_pixel_to_0(side):
    images = _images(500)
    result = Augmentation(cutout=side)(images, _generator())
    centres = set()
    for image, cut in zip(images, result, strict=True):
        zeros = (cut == 0).all(dim=0)
        assert torch.equal(cut, image.masked_fill(zeros, 0))
        fits = []
        for y in range(7):
            for x in range(9):
                expected = torch.zeros(7, 9, dtype=torch.bool)
                top, left = y - side // 2, x - side // 2
                expected[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = True
                if torch.equal(zeros, expected):
                    fits.append((y, x))
        assert fits
        centres |= set(fits)
    assert len(centres) == 63


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float64])
def test_type_shape_and_input_are_kept_and_all_types_are_changed_alike(dtype):
    images = _images().to(dtype)
    before = images.clone()
    result = Augmentation(crop_padding=3, flip=True, cutout=4)(images, _generator())
    assert (result.dtype, result.shape, result.is_contiguous()) == (dtype, images.shape, True)
    assert torch.equal(images, before)
    assert torch.equal(result, Augmentation(3, True, 4)(_images(), _generator()).to(dtype))


def test_the_generator_alone_decides():
    augmentation, images = Augmentation(2, True, 3), _images()
    generator = _generator(5)
    first, second = augmentation(images, generator), augmentation(images, generator)
    before = torch.get_rng_state()
    again = augmentation(images, _generator(5))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_how_many_numbers_are_drawn_does_not_depend_on_the_pixels():
    states = []
    for images in (_images(), torch.zeros(64, 3, 7, 9)):
        generator = _generator()
        Augmentation(2, True, 3)(images, generator)
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_numbers_are_drawn_on_the_generators_device_and_moved_to_the_images():
    images = torch.empty(4, 3, 7, 9, device="meta")
    assert Augmentation(2, True, 3)(images, _generator()).device.type == "meta"


@pytest.mark.parametrize("num_images", [0, 1])
def test_small_batches_pass(num_images):
    assert Augmentation(2, True, 3)(_images(num_images), _generator()).shape == (num_images, 3, 7, 9)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"crop_padding": -1}, ValueError, "crop_padding=-1: must be at least 0"),
        ({"cutout": -2}, ValueError, "cutout=-2: must be at least 0"),
        ({"crop_padding": 1.5}, TypeError, "crop_padding=1.5: must be an int"),
        ({"cutout": True}, TypeError, "cutout=True: must be an int"),
        ({"flip": 1}, TypeError, "flip=1: must be a bool"),
    ],
)
def test_wrong_settings_are_errors(settings, error, message):
    with pytest.raises(error, match=message):
        Augmentation(**settings)
