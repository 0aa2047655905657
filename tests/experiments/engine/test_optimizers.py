"""Optimizers hold every parameter once, and learning rates follow their schedules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from experiments.recipes import NEEDS_MUON
from strongreg.experiments.engine.optimizers import build_optimizers, lr_schedule
from strongreg.experiments.errors import UserError
from strongreg.experiments.recipe import OptimizerSection


def _net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.Linear(5, 3))


@pytest.mark.parametrize("name", ["sgd", "adamw", pytest.param("muon", marks=NEEDS_MUON)])
def test_every_parameter_is_held_once(name):
    model = _net()
    optimizers = build_optimizers(model, OptimizerSection(name=name, lr=0.1, weight_decay=0.01))
    held = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    assert all(group["weight_decay"] == 0.01 for optimizer in optimizers for group in optimizer.param_groups)


@NEEDS_MUON
def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    model = _net()
    muon, adamw = build_optimizers(model, OptimizerSection(name="muon", lr=0.1))
    assert isinstance(muon, torch.optim.Muon)
    assert muon.param_groups[0]["params"] == [model[2].weight, model[4].weight]
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["lr"] == pytest.approx(0.01)
    only_head = build_optimizers(nn.Linear(3, 2), OptimizerSection(name="muon"))
    assert [type(optimizer) for optimizer in only_head] == [torch.optim.AdamW]


def test_sgd_has_the_momentum_of_the_recipe():
    (sgd,) = build_optimizers(_net(), OptimizerSection(momentum=0.8, nesterov=True))
    group = sgd.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["lr"]) == (0.8, True, 0.02)


def _factors(num_steps=100, **options):
    factor = lr_schedule(OptimizerSection(**options), num_steps)
    return [factor(step) for step in range(num_steps)]


def test_hold_cosine_holds_and_then_falls_along_half_a_cosine():
    factors = _factors(schedule="hold_cosine", hold_share=0.25)
    assert factors[:25] == [1.0] * 25
    assert factors[25:] == pytest.approx([(1 + math.cos(math.pi * i / 75)) / 2 for i in range(75)])


def test_cosine_after_a_warm_up():
    factors = _factors(schedule="cosine", warmup_share=0.1)
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10:] == pytest.approx([(1 + math.cos(math.pi * i / 90)) / 2 for i in range(90)])


def test_steps_multiply_at_the_milestones():
    factors = _factors(schedule="step", milestones=(0.5, 0.75), gamma=0.1)
    assert factors == pytest.approx([1.0] * 50 + [0.1] * 25 + [0.01] * 25)


@pytest.mark.parametrize("rise", [{}, {"warmup_share": 0.3}], ids=["default", "given"])
def test_one_cycle_goes_up_and_down(rise):
    factors = _factors(schedule="one_cycle", **rise)
    peak = factors.index(max(factors))
    assert 29 <= peak <= 30
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_constant_is_constant():
    assert set(_factors(schedule="constant")) == {1.0}


@pytest.mark.parametrize("schedule", ["hold_cosine", "cosine", "step", "one_cycle", "constant"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_short_runs_have_a_positive_learning_rate_at_every_step(schedule, share, num_steps):
    rise = min(share, 0.99) if schedule == "one_cycle" else share
    factors = _factors(num_steps, schedule=schedule, warmup_share=rise, hold_share=share)
    assert all(0 < factor <= 1 for factor in factors)


def test_muon_of_a_torch_without_it_is_an_error_that_says_which_has_it(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(UserError, match=r"^optimizer\.name=muon needs torch 2\.9 or later, this is .*: choose adamw$"):
        build_optimizers(nn.Linear(3, 2), OptimizerSection(name="muon"))
