"""Any torch data set: kinds of images and labels, and errors that name the item."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from strongreg.experiments.data import from_datasets
from strongreg.experiments.errors import UserError

LABELS = [0, 1, 2, 1, 0, 2]


class Items(Dataset):
    def __init__(self, items, **attributes):
        self.items = items
        vars(self).update(attributes)

    def __len__(self):
        """Number of items."""
        return len(self.items)

    def __getitem__(self, index):
        """One pair."""
        return self.items[index]


@pytest.fixture
def pixels(make_image):
    return [make_image(i) for i in range(6)]


@pytest.fixture
def grey(make_image):
    return [make_image(i, (8, 6)) for i in range(6)]


def _load(images, labels=LABELS, **options):
    items = Items(list(zip(images, labels, strict=True)))
    return from_datasets("mine", items, items, **options)


def _channels_first(array):
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def _to_tensor(array):
    """What torchvision's ToTensor gives."""
    return _channels_first(array).float().div(255)


@pytest.mark.parametrize(
    "convert",
    [
        Image.fromarray,
        _channels_first,
        lambda array: array,
        _to_tensor,
        lambda array: _to_tensor(array).double(),
        lambda array: _to_tensor(array).permute(1, 2, 0).numpy(),
    ],
)
def test_each_kind_of_colour_image_gives_its_pixels(pixels, convert):
    data = _load([convert(array) for array in pixels])
    expected = np.stack(pixels).transpose(0, 3, 1, 2)
    assert (data.train.images.numpy() == expected).all()
    assert (data.test.images.numpy() == expected).all()
    assert data.train.labels.tolist() == LABELS


@pytest.mark.parametrize("convert", [Image.fromarray, torch.from_numpy, lambda array: array, lambda a: a[..., None]])
def test_each_kind_of_grey_image_gives_its_pixels(grey, convert):
    data = _load([convert(array) for array in grey])
    assert data.image_shape == (1, 8, 6)
    assert (data.train.images[:, 0].numpy() == np.stack(grey)).all()


def test_every_pixel_value_survives_the_way_through_float():
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    data = _load([values.float() / 255] * 6)
    assert torch.equal(data.train.images[0], values)


@pytest.mark.parametrize("convert", [int, np.int64, torch.tensor, lambda x: np.array([x]), lambda x: torch.tensor([x])])
def test_each_kind_of_label_is_read(pixels, convert):
    assert _load(pixels, [convert(label) for label in LABELS]).train.labels.tolist() == LABELS


def test_a_tensor_data_set_is_read(pixels):
    images = torch.stack([_channels_first(array) for array in pixels])
    train = TensorDataset(images, torch.tensor(LABELS))
    data = from_datasets("mine", train, train, validation_share=0.5, num_train=2, seed=3)
    assert (len(data.train), len(data.validation), len(data.test), data.name) == (2, 3, 6, "mine")
    assert (data.num_classes, data.class_names) == (3, ("0", "1", "2"))
    assert data.mean is not None


def test_names_and_number_of_classes(pixels):
    items = list(zip(pixels, LABELS, strict=True))
    named = Items(items, classes=["x", "y", "z", "w"])
    assert from_datasets("mine", named, named).class_names == ("x", "y", "z", "w")
    assert from_datasets("mine", named, named, num_classes=3).class_names == ("0", "1", "2")
    assert _load(pixels, num_classes=5).num_classes == 5


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((3, 8, 6), 0.5), r"train\[2\] is torch.float32 with values that are not uint8 pixels / 255"),
        (torch.full((3, 8, 6), -1.0), r"train\[2\] is torch.float32 with values that are not"),
        (torch.full((3, 8, 6), 2.0), r"train\[2\] is torch.float32 with values that are not"),
        (torch.full((3, 8, 6), float("nan")), r"train\[2\] is torch.float32 with values that are not"),
        (torch.zeros(3, 8, 6).int(), r"train\[2\] is torch.int32: give uint8"),
        (torch.zeros(3, 8, 5).byte(), r"train\[2\] has the shape \(3, 8, 5\), train\[0\] has \(3, 8, 6\)"),
        (torch.zeros(1, 8, 6).byte(), r"train\[2\] has the shape \(1, 8, 6\), train\[0\] has \(3, 8, 6\)"),
        (torch.zeros(2, 3, 8, 6).byte(), r"train\[2\] has 4 dimensions"),
        (Image.new("RGBA", (6, 8)), r"train\[2\] has the mode RGBA"),
        ("rose.png", r"train\[2\] holds a str"),
    ],
)
def test_an_image_of_another_kind_is_named(pixels, image, message):
    with pytest.raises(UserError, match=message):
        _load([*pixels[:2], image, *pixels[3:]])


@pytest.mark.parametrize("label", [1.0, True, "rose", None, torch.tensor(1.0), torch.tensor([1, 0]), np.array([])])
def test_a_label_of_another_kind_is_named(pixels, label):
    with pytest.raises(UserError, match=r"train\[5\] has the label .*: give a whole number"):
        _load(pixels, [*LABELS[:5], label])


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_named(pixels, label):
    with pytest.raises(UserError, match=rf"train\[5\] has the label {label}: with 3 classes, give 0 to 2"):
        _load(pixels, [*LABELS[:5], label], num_classes=3)


def test_data_sets_that_cannot_be_read_are_errors(pixels):
    good = Items(list(zip(pixels, LABELS, strict=True)))
    with pytest.raises(UserError, match="test=Items is empty"):
        from_datasets("mine", good, Items([]))
    with pytest.raises(UserError, match="train=Dataset has no length: give a map-style data set"):
        from_datasets("mine", Dataset(), good)
    with pytest.raises(UserError, match=r"train\[0\] is a ndarray: give pairs"):
        from_datasets("mine", Items(pixels), good)
    with pytest.raises(UserError, match=r"the test images have the shape \(1, 8, 6\), the training images \(3, 8, 6\)"):
        from_datasets("mine", good, Items([(torch.zeros(8, 6).byte(), 0)]))
    with pytest.raises(UserError, match="num_classes=0: must be at least 1"):
        _load(pixels, num_classes=0)
    with pytest.raises(UserError, match="validation_share=2"):
        _load(pixels, validation_share=2)


def test_no_number_is_drawn_from_the_global_generator(pixels):
    before = torch.get_rng_state()
    _load(pixels, validation_share=0.5, num_train=2)
    assert torch.equal(torch.get_rng_state(), before)
