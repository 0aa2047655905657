"""The refit freezes the zeros that the penalty has made, also when the gate is closed just before it begins."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from strongreg import L1, AlwaysOpen, Delay, Gate, LinearRamp, Refit, Regularizer
from strongreg.refit import ZeroMasks


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
    # the closed steps set the zeros free; the refit puts back those of step 27, the last at which the penalty acted
    assert zeros[28] == zeros[29] == 0
    assert zeros[30:] == [zeros[27]] * 20
    assert zeros[-1] > 0.5 * always[-1]
    assert reg.history["open"].tolist() == [1.0] * 28 + [0.0] * 22


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


def test_each_tensor_keeps_the_zeros_of_its_own_last_open_step_in_layer_scope():
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
    zeros = []
    for _ in range(8):
        for p in params.values():
            p.grad = torch.randn(5, 5)
        optimizer.step()
        zeros.append([p.detach() == 0 for p in params.values()])
    assert reg.history.per_layer("open").T.tolist() == [[1] * 5 + [0] * 3, [1] * 4 + [0] * 4]
    assert not zeros[4][1].any()
    for after in zeros[5:]:
        assert torch.equal(after[0], zeros[4][0])
        assert torch.equal(after[1], zeros[3][1])


def test_a_gate_that_never_opened_leaves_nothing_to_freeze():
    """Weights that are 0 from the start, such as a zero-initialized last layer, are not taken for the penalty's."""
    weight = nn.Parameter(torch.zeros(3, 3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    Regularizer(nn.ParameterDict({"w": weight}), L1(0.1), gate=Delay(100), schedule=Refit(4)).attach(optimizer)
    for _ in range(8):
        weight.grad = torch.randn(3, 3)
        optimizer.step()
    assert (weight != 0).all()


@pytest.mark.parametrize("never", [{"gate": Delay(100)}, {"penalty": L1(0.0)}], ids=["closed", "strength-0"])
def test_zeros_that_the_penalty_had_no_part_in_stay_free(never):
    weight, bare = (nn.Parameter(torch.tensor([[0.0, -0.0, 1.0]])) for _ in range(2))
    optimizer, bare_optimizer = torch.optim.SGD([weight], lr=0.1), torch.optim.SGD([bare], lr=0.1)
    penalty, gate = never.get("penalty", L1(0.1)), never.get("gate", AlwaysOpen())
    Regularizer(nn.ParameterDict({"w": weight}), penalty, gate=gate, schedule=Refit(2)).attach(optimizer)
    for step in range(6):
        for p in (weight, bare):
            p.grad = torch.full((1, 3), float(step > 3))
        optimizer.step()
        bare_optimizer.step()
        assert torch.equal(weight.detach().view(torch.int32), bare.detach().view(torch.int32))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_zeros_that_a_closed_gate_sets_free_are_remembered_by_a_bit_for_each_weight(layout):
    weight = torch.randn(6, 8, 5, 5).to(memory_format=layout)
    weight[torch.rand(weight.shape) < 0.4] = 0.0
    masks = ZeroMasks(2)
    masks.before_step([weight, weight], [True, False], [False, False])
    kept, none = masks._masks
    assert kept.bits.nbytes == weight.numel() // 8
    assert none is None
    assert torch.equal(kept.unpacked(), weight == 0)
    assert kept.unpacked().stride() == weight.stride()
    assert torch.equal(masks.select([0]).laid_out_as([weight])[0], weight == 0)


@pytest.mark.parametrize("saved_after", range(27, 34))
def test_a_resumed_run_freezes_the_same_zeros(saved_after):
    closed, steps = (28, 29, 30, 31), 50

    def resumed(weight, target, checkpoint):
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        gate = _ClosedAt(closed)
        reg = Regularizer(nn.ParameterDict({"w": weight}), L1(0.2), gate=gate, schedule=Refit(30)).attach(optimizer)
        noise = torch.Generator().manual_seed(1)
        for t in range(steps):
            weight.grad = weight.detach() - target + 0.2 * torch.randn(20, 20, generator=noise)
            if checkpoint is None or t >= checkpoint[0]:
                optimizer.step()
            if checkpoint is not None and t + 1 == checkpoint[0]:
                with torch.no_grad():
                    weight.copy_(checkpoint[1])
                optimizer.load_state_dict(checkpoint[2])
            if checkpoint is None and t + 1 == saved_after:
                saved = (t + 1, weight.detach().clone(), copy.deepcopy(optimizer.state_dict()))
        return weight.detach(), saved if checkpoint is None else None, reg

    start, target = torch.randn(2, 20, 20).unbind()
    whole, checkpoint, _ = resumed(nn.Parameter(start.clone()), target, None)
    parts, _, _ = resumed(nn.Parameter(torch.zeros(20, 20)), target, checkpoint)
    assert (whole == 0).sum() > 20
    assert torch.equal(whole, parts)


def test_saved_zeros_of_another_shape_are_an_error():
    _, _, reg = _train(_ClosedAt((9,)), start=20, steps=10)
    state = reg.state_dict()
    assert list(state["zero_masks"]) == ["w"]
    state["zero_masks"]["w"] = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"saved zeros of 'w' have shape \(3,\), the parameter \(20, 20\)"):
        reg.load_state_dict(state)


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


def test_a_schedule_at_0_does_not_count_as_open_and_its_refit_keeps_the_zeros_of_the_last_step_that_acted():
    weight = nn.Parameter(torch.randn(20, 20))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    schedule = Refit(30, before=LinearRamp(10, initial=1.0, final=0.0, start=10))
    reg = Regularizer(nn.ParameterDict({"w": weight}), L1(0.2), gate=AlwaysOpen(), schedule=schedule).attach(optimizer)
    target = torch.randn(20, 20)
    zeros = []
    for _ in range(40):
        weight.grad = weight.detach() - target + 0.2 * torch.randn(20, 20)
        optimizer.step()
        zeros.append(weight.detach() == 0)
    assert reg.history["open"].tolist() == [1.0] * 20 + [0.0] * 20
    assert zeros[19].any()
    assert not zeros[29].any()
    assert all(torch.equal(after, zeros[19]) for after in zeros[30:])
