"""Encoded images: formats, modes, and files that are none."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from strongreg.experiments.data import decode
from strongreg.experiments.data.decode import decode_images
from strongreg.experiments.errors import UserError


def _describe(i):
    return f"image {i}"


def _saved(image, format, **options):  # noqa: A002
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("format", "options", "shape"),
    [
        ("PNG", {}, (8, 6, 3)),
        ("PNG", {}, (8, 6)),
        ("BMP", {}, (8, 6, 3)),
        ("BMP", {}, (8, 6)),
        ("WEBP", {"lossless": True}, (8, 6, 3)),
    ],
)
def test_lossless_formats_give_the_pixels(make_image, format, options, shape):  # noqa: A002
    pixels = [make_image(i, shape) for i in range(3)]
    files = [_saved(Image.fromarray(p), format, **options) for p in pixels]
    images, found = decode_images(files, _describe)
    expected = np.stack(pixels).reshape(3, 8, 6, -1).transpose(0, 3, 1, 2)
    assert found == expected.shape[1:]
    assert (images.numpy() == expected).all()
    assert images.is_contiguous()


def test_jpeg_is_close_to_the_pixels():
    pixels = np.full((8, 8, 3), (200, 100, 50), dtype=np.uint8)
    images, _ = decode_images([_saved(Image.fromarray(pixels), "JPEG", quality=95)], _describe)
    assert abs(images[0].permute(1, 2, 0).numpy().astype(int) - pixels).max() < 8


def test_order_is_kept_over_many_tasks(make_image, monkeypatch):
    monkeypatch.setattr(decode, "_CHUNK", 2)
    pixels = [make_image(i, (4, 4)) for i in range(21)]
    images, _ = decode_images([_saved(Image.fromarray(p), "PNG") for p in pixels], _describe)
    assert (images[:, 0].numpy() == np.stack(pixels)).all()


def test_palettes_become_colours_and_bits_become_grey():
    colours = Image.new("RGB", (4, 4), (255, 0, 0)).convert("P")
    images, _ = decode_images([_saved(colours, "PNG")], _describe)
    assert images[0, :, 0, 0].tolist() == [255, 0, 0]
    images, _ = decode_images([_saved(Image.new("1", (4, 4), 1), "PNG")], _describe)
    assert images.unique().tolist() == [255]


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    images, _ = decode_images([_saved(frames[0], "GIF", save_all=True, append_images=frames[1:])], _describe)
    assert images[0, :, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("mode", "format"), [("RGBA", "PNG"), ("LA", "PNG"), ("I;16", "PNG"), ("CMYK", "JPEG")])
def test_other_modes_are_an_error(mode, format):  # noqa: A002
    with pytest.raises(UserError, match=f"image 0 has the mode {mode}: save it as RGB or L"):
        decode_images([_saved(Image.new(mode, (4, 4)), format)], _describe)


def test_the_odd_image_is_named(make_image, encoded):
    files = [encoded(make_image(i)) for i in range(3)] + [encoded(make_image(3, (8, 7, 3)))]
    with pytest.raises(UserError, match="image 3 has 7x8 pixels in RGB, but image 0, the first, has 6x8 pixels in RGB"):
        decode_images(files, _describe)
    files[1] = encoded(make_image(1, (8, 6)))
    with pytest.raises(UserError, match="image 1 has 6x8 pixels in grey, but the data set has 6x8 pixels in RGB"):
        decode_images(files, _describe, (3, 8, 6))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_a_truncated_image_is_named(make_image, format):  # noqa: A002
    whole = _saved(Image.fromarray(make_image(0, (40, 40, 3))), format)
    for share in (0.2, 0.5, 0.9):
        with pytest.raises(UserError, match=r"image 1 is (damaged|not an image)") as caught:
            decode_images([whole, whole[: int(len(whole) * share)]], _describe)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\0" * 1000])
def test_what_is_no_image_is_named(content):
    with pytest.raises(UserError, match=r"image 0 is (damaged|not an image)"):
        decode_images([content], _describe)


def test_other_formats_are_foreign():
    with pytest.raises(UserError, match="image 0 is not an image"):
        decode_images([_saved(Image.new("RGB", (4, 4)), "TIFF")], _describe)


def test_a_file_that_is_not_there_is_an_error_of_one_line(tmp_path):
    with pytest.raises(UserError, match=r"image 0 is damaged: .*No such file"):
        decode_images([tmp_path / "missing.png"], _describe)


def test_without_pillow_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UserError, match=r"reading images needs pillow: run pip install '\.\[experiments\]'"):
        decode_images([b""], _describe)
