"""The refit freezes the zeros that the penalty has made, also when the gate is closed just before it begins."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from strongreg import L1, AlwaysOpen, Gate, LinearRamp, Refit, Regularizer


@dataclass(frozen=True)
class _ClosedAt(Gate):
    """Open but for some steps."""

    closed: tuple[int, ...]

    def is_open(self, coherence, step):
        return torch.ones_like(coherence, dtype=torch.bool) & ~torch.isin(step, torch.tensor(self.closed))


def _train(gate, start, steps):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(20, 20))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    reg = Regularizer(nn.ParameterDict({"w": weight}), L1(0.2), gate=gate, schedule=Refit(start)).attach(optimizer)
    target = torch.randn(20, 20)
    zeros = []
    for _ in range(steps):
        weight.grad = weight.detach() - target + 0.2 * torch.randn(20, 20)
        optimizer.step()
        zeros.append(int((weight == 0).sum()))
    return weight.detach(), zeros, reg


def test_zeros_survive_a_gate_that_is_closed_when_the_refit_should_begin():
    _, always, _ = _train(AlwaysOpen(), start=30, steps=50)
    _, zeros, reg = _train(_ClosedAt((28, 29, 30, 31)), start=30, steps=50)
    # the closed steps set the zeros free; the refit waits for the first open step, which makes them again
    assert zeros[28] == zeros[31] == 0
    assert zeros[32] > 0
    assert zeros[32:] == [zeros[32]] * 18
    assert zeros[-1] > 0.5 * always[-1]
    assert reg.history["open"].tolist() == [1.0] * 28 + [0.0] * 4 + [1.0] + [0.0] * 17


def test_the_refit_begins_exactly_at_its_start_when_the_gate_was_open():
    _, zeros, reg = _train(AlwaysOpen(), start=30, steps=50)
    assert reg.history["open"].tolist() == [1.0] * 30 + [0.0] * 20
    assert zeros[29:] == [zeros[29]] * 21
    assert reg.history["penalty_norm"][29] > 0
    assert (reg.history["penalty_norm"][30:] == 0).all()


def test_a_refit_from_the_first_step_trains_a_network_that_is_sparse_already():
    weight = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    Regularizer(nn.ParameterDict({"w": weight}), L1(0.1), schedule=Refit(0)).attach(optimizer)
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert weight.detach().tolist() == [[pytest.approx(0.9), 0.0], [0.0, pytest.approx(1.9)]]


def test_each_tensor_waits_for_its_own_gate_in_layer_scope():
    @dataclass(frozen=True)
    class SecondLate(Gate):
        @property
        def decision_scope(self):
            return "layer"

        def is_open(self, coherence, step):
            del coherence
            return torch.stack([torch.tensor(True), step != 4])

    params = {"a": nn.Parameter(torch.randn(5, 5)), "b": nn.Parameter(torch.randn(5, 5))}
    optimizer = torch.optim.SGD(params.values(), lr=0.1)
    reg = Regularizer(nn.ParameterDict(params), L1(1.0), gate=SecondLate(), schedule=Refit(5)).attach(optimizer)
    for _ in range(8):
        for p in params.values():
            p.grad = torch.randn(5, 5)
        optimizer.step()
    assert reg.history.per_layer("open").T.tolist() == [[1] * 5 + [0] * 3, [1] * 4 + [0, 1, 0, 0]]


def test_the_schedule_before_the_refit_counts():
    weight = nn.Parameter(torch.ones(1, 1, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = Refit(4, before=LinearRamp(4))
    Regularizer(nn.ParameterDict({"w": weight}), L1(0.1), gate=AlwaysOpen(), schedule=schedule).attach(optimizer)
    for _ in range(6):
        weight.grad = torch.zeros(1, 1, dtype=torch.float64)
        optimizer.step()
    assert weight.item() == pytest.approx(1 - 0.1 * (0 + 0.25 + 0.5 + 0.75))


def test_the_summary_says_so_when_the_last_step_set_the_zeros_free():
    _, _, reg = _train(_ClosedAt((49,)), start=10**6, steps=50)
    assert "gate was closed at the last step" in str(reg.summary())
    assert "Refit" in str(reg.summary())
    _, _, reg = _train(AlwaysOpen(), start=10**6, steps=50)
    assert "closed at the last step" not in str(reg.summary())
    _, _, reg = _train(_ClosedAt((49,)), start=30, steps=50)
    assert "closed at the last step" not in str(reg.summary())
