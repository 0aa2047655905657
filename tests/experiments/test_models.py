"""The networks: their sizes, outputs and initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from strongreg.experiments.errors import UserError
from strongreg.experiments.models import MODELS, build_model

# counted by hand: inputs * outputs (* 9 for a 3x3 convolution) + one bias per output
LENET300_DIGITS = (64 * 300 + 300) + (300 * 100 + 100) + (100 * 10 + 10)
LENET300_COLOR = (3 * 30 * 26 * 300 + 300) + (300 * 100 + 100) + (100 * 7 + 7)
CONVOLUTIONS = 3 * (16 * 16 * 9 + 16) + (16 * 32 * 9 + 32) + 3 * (32 * 32 * 9 + 32)
CNN_DIGITS = (1 * 16 * 9 + 16) + CONVOLUTIONS + (32 * 2 * 2 * 64 + 64) + (64 * 64 + 64) + (64 * 10 + 10)
CNN_COLOR = (3 * 16 * 9 + 16) + CONVOLUTIONS + (32 * 7 * 6 * 64 + 64) + (64 * 64 + 64) + (64 * 7 + 7)


@pytest.mark.parametrize(
    ("name", "image_shape", "num_classes", "num_parameters"),
    [
        ("lenet300", (1, 8, 8), 10, LENET300_DIGITS),
        ("lenet300", (3, 30, 26), 7, LENET300_COLOR),
        ("plain_cnn", (1, 8, 8), 10, CNN_DIGITS),
        ("plain_cnn", (3, 30, 26), 7, CNN_COLOR),
    ],
)
def test_a_network_has_the_parameters_counted_by_hand_and_one_output_per_class(
    name, image_shape, num_classes, num_parameters
):
    model = build_model(name, image_shape, num_classes)
    assert sum(p.numel() for p in model.parameters()) == num_parameters
    assert model(torch.rand(5, *image_shape)).shape == (5, num_classes)


def test_plain_cnn_is_eight_convolutions_and_three_linear_layers_without_normalization():
    kinds = [type(module) for module in build_model("plain_cnn", (1, 8, 8), 10)]
    assert kinds.count(nn.Conv2d) == 8
    assert kinds.count(nn.Linear) == 3
    assert set(kinds) == {nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Linear}


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_he_normal_and_biases_zero(name):
    for module in build_model(name, (1, 8, 8), 10):
        if isinstance(module, nn.Conv2d | nn.Linear):
            num_inputs = module.weight[0].numel()
            error = (2 / module.weight.numel()) ** 0.5  # two relative standard errors of a standard deviation, doubled
            assert module.weight.std().item() == pytest.approx((2 / num_inputs) ** 0.5, rel=2 * error)
            assert (module.bias == 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_builds_the_same_network(name):
    def built(seed):
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build_model(name, (1, 8, 8), 10).parameters())

    assert torch.equal(built(3), built(3))
    assert not torch.equal(built(3), built(4))


@pytest.mark.parametrize("size", [(3, 8), (8, 3), (1, 1)])
def test_too_small_images_are_an_error_that_names_their_size(size):
    with pytest.raises(UserError, match=rf"plain_cnn .* needs at least 4x4 pixels, got {size[0]}x{size[1]}"):
        build_model("plain_cnn", (1, *size), 10)


def test_the_smallest_images_are_enough():
    assert build_model("plain_cnn", (1, 4, 4), 10)(torch.rand(2, 1, 4, 4)).shape == (2, 10)
    assert build_model("lenet300", (1, 1, 1), 2)(torch.rand(2, 1, 1, 1)).shape == (2, 2)


def test_an_unknown_model_is_an_error_that_suggests_the_nearest():
    with pytest.raises(UserError, match=r"unknown model 'plaincnn': did you mean 'plain_cnn'\?"):
        build_model("plaincnn", (1, 8, 8), 10)
