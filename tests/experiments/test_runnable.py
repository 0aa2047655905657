"""Whether a recipe can be run is known before anything starts."""

from __future__ import annotations

import pytest
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
    del image_shape, num_classes
    return nn.Flatten()


@pytest.mark.parametrize("factory", ["frozen", "empty"])
def test_a_network_without_weights_to_penalize_is_an_error(factory):
    with pytest.raises(UserError, match=f"model '{__name__}:{factory}': "):
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
