"""Whether a recipe can be run is known before anything starts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments.recipes import recipe
from strongreg.experiments.errors import UserError
from strongreg.experiments.recipe import build_recipe
from strongreg.experiments.runnable import check_runnable


def frozen(image_shape, num_classes):
    """A network of which nothing is trained."""
    return nn.Sequential(nn.Flatten(), nn.Linear(image_shape[1] * image_shape[2], num_classes)).requires_grad_(False)


def empty(image_shape, num_classes):
    """A network without parameters."""
    del image_shape
    return Cut(num_classes)


class Shift(nn.Module):
    """Has one parameter, of one dimension."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, images):
        return images.flatten(1)[:, : len(self.bias)] + self.bias


def shift(image_shape, num_classes):
    """A network without matrices."""
    del image_shape
    return Shift(num_classes)


class Cut(nn.Module):
    """Has no parameter."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, images):
        return images.flatten(1)[:, : self.num_classes]


@pytest.mark.parametrize("factory", ["frozen", "empty", "shift"])
def test_a_network_without_weights_to_penalize_is_an_error(factory):
    remedy = "nothing in it can be penalized or pruned; choose one that trains at least one weight of two or more"
    with pytest.raises(UserError, match=f"model '{__name__}:{factory}': {remedy}"):
        check_runnable(recipe(model=f"{__name__}:{factory}"), ["coherent"], None)


def test_a_method_is_checked_against_its_own_network_only():
    changes = {"model.name": "vgg_narrow", "data.num_train": 50}
    with pytest.raises(UserError, match="slimming needs batch normalization"):
        check_runnable(build_recipe(changes), ["dense", "slimming"], None)
    check_runnable(build_recipe({**changes, "methods.slimming.model.name": "resnet20"}), ["dense", "slimming"], None)


def test_a_target_that_slimming_cannot_reach_is_known_before_the_first_run():
    built = build_recipe({"model.name": "resnet20", "data.num_train": 50, "pruning.compression": 1e6})
    check_runnable(built, ["dense"], None)
    with pytest.raises(UserError, match=r"pruning\.compression=1e\+06: slimming"):
        check_runnable(built, ["dense", "slimming"], None)
