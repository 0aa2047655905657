"""Plain networks: layers, sizes, and initial weights that never change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from strongreg.experiments.models import build_model

# counted by hand: inputs * outputs (* 9 for a 3x3 convolution) + one bias per output
LENET300_DIGITS = (64 * 300 + 300) + (300 * 100 + 100) + (100 * 10 + 10)
LENET300_COLOR = (3 * 30 * 26 * 300 + 300) + (300 * 100 + 100) + (100 * 7 + 7)
CONVOLUTIONS = 3 * (16 * 16 * 9 + 16) + (16 * 32 * 9 + 32) + 3 * (32 * 32 * 9 + 32)
CNN_DIGITS = (1 * 16 * 9 + 16) + CONVOLUTIONS + (32 * 2 * 2 * 64 + 64) + (64 * 64 + 64) + (64 * 10 + 10)
CNN_COLOR = (3 * 16 * 9 + 16) + CONVOLUTIONS + (32 * 7 * 6 * 64 + 64) + (64 * 64 + 64) + (64 * 7 + 7)
# 28 - 4 = 24, 12, 12 - 4 = 8, 4: 50 channels of 4x4; 32 - 4 = 28, 14, 14 - 4 = 10, 5: 50 channels of 5x5
LENET5_COLOR = (3 * 20 * 25 + 20) + (20 * 50 * 25 + 50) + (50 * 5 * 5 * 500 + 500) + (500 * 10 + 10)
ALEXNET_CONVOLUTIONS = (
    (64 * 192 * 25 + 192) + (192 * 384 * 9 + 384) + (384 * 256 * 9 + 256) + (256 * 256 * 9 + 256)  # after the first
)
ALEXNET_COLOR = (3 * 64 * 121 + 64) + ALEXNET_CONVOLUTIONS + (256 * 10 + 10)
ALEXNET_GRAY = (1 * 64 * 121 + 64) + ALEXNET_CONVOLUTIONS + (256 * 10 + 10)


@pytest.mark.parametrize(
    ("name", "image_shape", "num_classes", "num_parameters"),
    [
        ("lenet300", (1, 8, 8), 10, LENET300_DIGITS),
        ("lenet300", (3, 30, 26), 7, LENET300_COLOR),
        ("lenet300", (1, 28, 28), 10, 266_610),  # 267 K in Han et al., arXiv 1506.02626, table 1
        ("plain_cnn", (1, 8, 8), 10, CNN_DIGITS),
        ("plain_cnn", (3, 30, 26), 7, CNN_COLOR),
        ("lenet5", (1, 28, 28), 10, 431_080),  # 431 K in Han et al., arXiv 1506.02626, table 1
        ("lenet5", (3, 32, 32), 10, LENET5_COLOR),
        ("alexnet", (3, 32, 32), 10, ALEXNET_COLOR),
        ("alexnet", (1, 28, 28), 10, ALEXNET_GRAY),
    ],
)
def test_a_network_has_the_parameters_counted_by_hand_and_one_output_per_class(
    name, image_shape, num_classes, num_parameters
):
    model = build_model(name, image_shape, num_classes)
    assert sum(p.numel() for p in model.parameters()) == num_parameters
    assert model(torch.rand(5, *image_shape)).shape == (5, num_classes)


def test_alexnet_has_its_published_size():
    assert ALEXNET_COLOR == 2_472_266  # 2.47 M in the README of github.com/bearpaw/pytorch-classification


def test_plain_cnn_is_eight_convolutions_and_three_linear_layers_without_normalization():
    kinds = [type(module) for module in build_model("plain_cnn", (1, 8, 8), 10)]
    assert kinds.count(nn.Conv2d) == 8
    assert kinds.count(nn.Linear) == 3
    assert set(kinds) == {nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Linear}


def _literal_plain_cnn(channels: int, num_features: int) -> nn.Sequential:
    convolutions = []
    for before, after in ((channels, 16), (16, 16), (16, 16), (16, 16), (16, 32), (32, 32), (32, 32), (32, 32)):
        convolutions.append(nn.Conv2d(before, after, 3, padding=1))
    return nn.Sequential(*convolutions, nn.Linear(num_features, 64), nn.Linear(64, 64), nn.Linear(64, 10))


def _literal_lenet300(num_pixels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(num_pixels, 300), nn.Linear(300, 100), nn.Linear(100, 10))


@pytest.mark.parametrize(
    ("name", "image_shape", "literal"),
    [
        ("plain_cnn", (1, 8, 8), lambda: _literal_plain_cnn(1, 128)),
        ("plain_cnn", (3, 30, 26), lambda: _literal_plain_cnn(3, 32 * 7 * 6)),
        ("lenet300", (1, 8, 8), lambda: _literal_lenet300(64)),
        ("lenet300", (3, 5, 7), lambda: _literal_lenet300(105)),
    ],
)
def test_published_results_can_be_repeated_the_random_numbers_are_drawn_in_the_order_they_always_were(
    name, image_shape, literal
):
    """First torch's own for every layer, then the He-normal ones for every layer."""
    torch.manual_seed(5)
    expected = literal()
    for layer in expected:
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    after = torch.rand(1)
    torch.manual_seed(5)
    actual = build_model(name, image_shape, 10)
    assert torch.equal(torch.rand(1), after)
    for one, other in zip(actual.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


def test_pooling_up_changes_nothing_for_alexnet_on_32x32():
    model = build_model("alexnet", (3, 32, 32), 10)
    images = torch.rand(2, 3, 32, 32)
    expected = model(images)
    for module in model:
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = False
    assert torch.equal(model(images), expected)
