"""A guard of the speed of a step: a ratio with a wide margin, so that a busy machine does not fail it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from torch import nn

import strongreg
from strongreg.timing import interleaved_medians

BOUND = (
    4.2  # twice the bar of benchmarks/step.py; it was 16 before the loops were compiled, and is 5 or more without them
)
ATTEMPTS = 6
WIDTHS = (3, 64, 128, 256, 256, 512, 256)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _vgg_like() -> nn.Module:
    """Three million weights in the shapes of a VGG."""
    convolutions = [nn.Conv2d(inputs, outputs, 3) for inputs, outputs in pairwise(WIDTHS)]
    return nn.Sequential(*convolutions, nn.Linear(256, 512), nn.Linear(512, 10))


def _fused_sgd(model: nn.Module) -> torch.optim.Optimizer:
    for param in model.parameters():
        param.grad = 1e-2 * torch.randn_like(param)
    return torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, fused=True)


def best_ratio(function: Callable[[], object], base: Callable[[], object], enough: float) -> float:
    """The smallest of some ratios of medians: other processes make single ones larger, hardly all."""
    best = float("inf")
    for _ in range(ATTEMPTS):
        times = interleaved_medians([base, function], seconds=0.5)
        best = min(best, times[1] / times[0])
        if best <= enough:
            break
    return best


@pytest.mark.usefixtures("one_thread")
def test_a_step_with_l1_and_gate_takes_a_few_times_a_bare_step_and_not_more():
    model = _vgg_like()
    assert 2.5e6 < sum(param.numel() for param in model.parameters()) < 3.5e6
    bare, ours = _fused_sgd(model), _fused_sgd(other := copy.deepcopy(model))
    reg = strongreg.Regularizer(other, strongreg.L1(1e-3)).attach(ours)
    assert best_ratio(ours.step, bare.step, BOUND) <= BOUND
    assert reg.summary().total.open_fraction == 1


@pytest.mark.usefixtures("one_thread")
def test_the_guard_sees_a_step_that_is_slow():
    bare = _fused_sgd(_vgg_like())

    def slow() -> None:
        for _ in range(8):
            bare.step()

    assert best_ratio(slow, bare.step, BOUND) > BOUND
