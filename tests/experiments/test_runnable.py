"""Whether a recipe can be run is known before anything starts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments.recipes import recipe
from strongreg.experiments.errors import UserError
from strongreg.experiments.recipe import METHODS, build_recipe
from strongreg.experiments.runnable import check_runnable, slow_choices


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


def _message(device: str) -> str:
    with pytest.raises(UserError) as caught:
        check_runnable(recipe(device=device), ["dense"], None)
    return str(caught.value)


@pytest.mark.parametrize(("accelerator", "here"), [(None, "auto or cpu"), ("cuda", "auto or cpu or cuda or cuda:1")])
def test_a_device_that_cannot_be_used_says_which_can(monkeypatch, accelerator, here):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(accelerator))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    remedy = f"; choose {here} here"
    assert _message("tpu") == f"device 'tpu' cannot be used: write auto, cpu, cuda, cuda:1 or mps{remedy}"
    assert _message("meta") == f"device 'meta' cannot be used: its tensors hold no numbers{remedy}"
    for name in ("cuda:99", "privateuseone", ""):
        assert _message(name).startswith(f"device {name!r} cannot be used: ")
        assert _message(name).endswith(remedy)


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


def test_too_few_steps_for_a_target_compression_are_known_before_the_first_run():
    few = recipe(model="lenet300", epochs=4, penalty__target_compression=5.0)  # 23 steps each, and half of them a refit
    check_runnable(recipe(model="lenet300", epochs=5, penalty__target_compression=5.0), ["coherent"], None)
    with pytest.raises(UserError, match=r"target_compression=5 needs 50 steps or more .* this run has 46: give it"):
        check_runnable(few, ["coherent"], None)
    check_runnable(few, ["dense", "magnitude"], None)


def test_slow_choices_are_those_of_the_methods_that_are_trained():
    assert slow_choices(build_recipe({}), METHODS) == []
    assert slow_choices(build_recipe({"training.precision": "bf16"}), METHODS) == []
    assert slow_choices(build_recipe({"training.precision": "fp16", "training.device": "cuda"}), METHODS) == []
    (half,) = slow_choices(build_recipe({"training.precision": "fp16"}), ["always"])
    assert half.startswith("training.precision=fp16 on the CPU is tens of times slower than fp32")
    of_one = build_recipe({"methods.dense.training.compile": True})
    assert slow_choices(of_one, ["always"]) == slow_choices(of_one, []) == []
    (compiled,) = slow_choices(of_one, ["always", "dense"])
    assert compiled.startswith("training.compile=true: every run begins with compiling")
