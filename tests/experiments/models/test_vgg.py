"""VGG: published sizes and the form for small images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from strongreg.experiments.errors import UserError
from strongreg.experiments.models import build_model

# convolutions of configurations A, B, D, E of arXiv 1409.1556, as in torchvision's features (14.71 M for VGG-16)
CONVOLUTIONS = {"vgg11": 9_220_480, "vgg13": 9_404_992, "vgg16": 14_714_688, "vgg19": 20_024_384}
CHANNELS = {
    "vgg11": 2752,
    "vgg13": 2944,
    "vgg16": 4224,
    "vgg19": 5504,
}  # of all convolutions: one scale, one shift each
CLASSIFIER = 2 * (512 * 512 + 512) + (512 * 10 + 10)


def _count(name, image_shape, num_classes=10, **options) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(name, image_shape, num_classes, **options).parameters())


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_parameters_are_the_published_convolutions_and_the_classifier(name):
    plain = CONVOLUTIONS[name] + CLASSIFIER
    assert _count(name, (3, 32, 32)) == plain
    assert _count(name, (3, 32, 32), norm="batch") == plain + 2 * CHANNELS[name]
    assert _count(name, (1, 28, 28)) == plain - 2 * 64 * 9  # two colors less in the first convolution


def test_vgg16_has_its_published_size():
    assert _count("vgg16", (3, 32, 32)) == 15_245_130
    assert (
        _count("vgg16", (3, 32, 32), norm="batch") == 15_253_578
    )  # 15.25 M: github.com/chengyangfu/pytorch-vgg-cifar10


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_name_counts_the_layers_with_weights(name):
    with torch.device("meta"):
        modules = list(build_model(name, (3, 32, 32), 10).modules())
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in modules) == int(name.removeprefix("vgg"))


def test_the_classifier_begins_with_dropout():
    classifier = build_model("vgg11", (3, 32, 32), 10).get_submodule("classifier")
    kinds = [type(module) for module in classifier]
    hidden = [nn.Dropout, nn.Linear, nn.ReLU]
    assert kinds == [nn.Flatten, *hidden, *hidden, nn.Linear]


def test_larger_images_have_more_inputs_to_the_classifier():
    assert _count("vgg11", (3, 64, 40)) == _count("vgg11", (3, 32, 32)) + 3 * 512 * 512  # 2x2 pixels at the end


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_digits_of_8x8_are_an_error_that_names_the_size(name):
    with pytest.raises(UserError, match=rf"{name} halves the image five times and needs .* 17x17 pixels, got 8x8"):
        build_model(name, (1, 8, 8), 10)


def test_pooling_up_changes_nothing_on_32x32():
    model = build_model("vgg11", (3, 32, 32), 10).eval()
    images = torch.rand(2, 3, 32, 32)
    expected = model(images)
    for module in model.modules():
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = False
    assert torch.equal(model(images), expected)


# ---------------------------------------------------------------------- narrow


@pytest.mark.parametrize(
    ("image_shape", "num_features"),
    [((1, 14, 14), 64 * 3 * 3), ((1, 28, 28), 64 * 7 * 7), ((3, 28, 28), 64 * 7 * 7), ((3, 32, 32), 64 * 8 * 8)],
)
def test_the_narrow_network_has_the_parameters_counted_by_hand(image_shape, num_features):
    first = (image_shape[0] * 16 * 9 + 16) + 2 * (16 * 16 * 9 + 16)
    second = (16 * 32 * 9 + 32) + 2 * (32 * 32 * 9 + 32)
    third = (32 * 64 * 9 + 64) + 2 * (64 * 64 * 9 + 64)
    linear = (num_features * 128 + 128) + (128 * 128 + 128) + (128 * 10 + 10)
    assert _count("vgg_narrow", image_shape) == first + second + third + linear
    assert build_model("vgg_narrow", image_shape, 10)(torch.rand(4, *image_shape)).shape == (4, 10)


def test_the_narrow_network_drops_neurons_after_each_hidden_linear_layer():
    model = build_model("vgg_narrow", (1, 14, 14), 10)
    hidden = [nn.Linear, nn.ReLU, nn.Dropout]
    assert [type(module) for module in model.get_submodule("classifier")] == [nn.Flatten, *hidden, *hidden, nn.Linear]
    assert nn.BatchNorm2d not in [type(module) for module in model.modules()]
