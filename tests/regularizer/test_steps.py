"""What counts as one step of the optimizer: nested calls, failed ones, learning rates at and below 0."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from contract.optimizers import make_model, same_bits, take_step, train
from strongreg import L1, AlwaysOpen, CoherenceGate, LinearRamp, Refit, Regularizer

_MODES = pytest.mark.parametrize("mode", ["proximal", "gradient"])
_CLOSURES = pytest.mark.parametrize("with_closure", [False, True], ids=["plain", "closure"])


def _of_the_user(kind):
    """A subclass whose step goes through torch's own, and may fail before and after it."""

    class OfTheUser(kind):
        def __init__(self, *args, **options):
            kind([nn.Parameter(torch.zeros(1))], lr=0.1)  # from now on torch calls hooks at kind.step, too
            super().__init__(*args, **options)
            self.fails = ""

        def step(self, closure=None):
            if self.fails == "before":
                raise ZeroDivisionError
            loss = super().step(closure)
            if self.fails == "after":
                raise ZeroDivisionError
            return loss

    return OfTheUser


def _weights(model):
    return [p.detach().clone() for p in model.parameters()]


def _step(model, optimizer, step, with_closure):
    def closure():
        optimizer.zero_grad()
        inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        loss = model(inputs).square().sum()
        loss.backward()
        return loss

    if with_closure:
        return optimizer.step(closure)
    closure()
    return optimizer.step()


def _pair(kind, mode, **options):
    runs = []
    for each in (kind, _of_the_user(kind)):
        model = make_model()
        optimizer = each(model.parameters(), **options)
        reg = Regularizer(model, L1(0.05), gate=CoherenceGate(0.9), mode=mode, schedule=Refit(6)).attach(optimizer)
        runs.append((model, optimizer, reg))
    return runs


@_MODES
@pytest.mark.parametrize(
    ("kind", "with_closure", "options"),
    [
        (torch.optim.SGD, False, {"lr": 0.05, "momentum": 0.5}),
        (torch.optim.SGD, True, {"lr": 0.05, "momentum": 0.5}),
        (torch.optim.AdamW, False, {"lr": 0.05}),
        (torch.optim.AdamW, True, {"lr": 0.05}),
        (torch.optim.LBFGS, True, {"lr": 0.5, "max_iter": 4}),
    ],
)
def test_a_step_within_the_step_of_a_subclass_is_not_one_of_its_own(kind, with_closure, options, mode):
    (model, optimizer, reg), (same_model, same_optimizer, same_reg) = _pair(kind, mode, **options)
    for step in range(9):
        loss = _step(model, optimizer, step, with_closure)
        assert same_bits(_step(same_model, same_optimizer, step, with_closure), loss)
    assert same_bits(_weights(same_model), _weights(model))
    assert same_reg.num_steps == len(same_reg.history) == 9
    assert same_bits(same_reg.state_dict(), reg.state_dict())


@_MODES
@_CLOSURES
@pytest.mark.parametrize("fails", ["before", "after", "within"])
def test_a_failed_step_of_a_subclass_leaves_the_next_one_whole(fails, with_closure, mode):
    (model, optimizer, reg), (same_model, same_optimizer, same_reg) = _pair(torch.optim.SGD, mode, lr=0.05)
    for step in range(4):
        if step == 2:
            kept = _weights(same_model)
            same_optimizer.fails = fails
            if fails == "within":
                same_optimizer.param_groups[0]["params"].append(None)
            for _ in range(3):
                with pytest.raises((ZeroDivisionError, AttributeError, TypeError)):
                    _step(same_model, same_optimizer, step, with_closure)
            if fails == "within":
                same_optimizer.param_groups[0]["params"].pop()
            same_optimizer.fails = ""
            with torch.no_grad():
                for p, value in zip(same_model.parameters(), kept, strict=True):
                    p.copy_(value)
        _step(model, optimizer, step, with_closure)
        _step(same_model, same_optimizer, step, with_closure)
    assert same_bits(_weights(same_model), _weights(model))
    assert same_bits(same_reg.state_dict(), reg.state_dict())


@_MODES
def test_a_subclass_that_tries_again_when_its_inner_step_fails_takes_one_step(mode):
    class Stubborn(torch.optim.SGD):
        def step(self, closure=None):
            try:
                return super().step(lambda: 1 / 0)
            except ZeroDivisionError:
                return super().step(closure)

    (model, optimizer, reg), _ = _pair(torch.optim.SGD, mode, lr=0.05)
    same_model = make_model()
    stubborn = Stubborn(same_model.parameters(), lr=0.05)
    same_reg = Regularizer(same_model, L1(0.05), gate=CoherenceGate(0.9), mode=mode, schedule=Refit(6)).attach(stubborn)
    for step in range(4):
        _step(model, optimizer, step, with_closure=False)
        _step(same_model, stubborn, step, with_closure=False)
    assert same_bits(_weights(same_model), _weights(model))
    assert same_bits(same_reg.state_dict(), reg.state_dict())


@pytest.mark.parametrize("lr", [-9e-19, torch.tensor(-9e-19)], ids=["number", "tensor"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam], ids=lambda kind: kind.__name__)
def test_a_learning_rate_below_0_by_rounding_moves_no_weight_by_the_penalty(lr, kind):
    model, bare = make_model(), make_model()
    optimizer, bare_optimizer = kind(model.parameters(), lr=0.1), kind(bare.parameters(), lr=0.1)
    reg = Regularizer(model, L1(0.5), gate=AlwaysOpen()).attach(optimizer)
    for each in (optimizer, bare_optimizer):
        each.param_groups[0]["lr"] = lr
    train(model, optimizer, range(3))
    train(bare, bare_optimizer, range(3))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), bare.parameters(), strict=True))
    assert reg.num_steps == 3
    with pytest.raises(ValueError, match="step must be >= 0"):
        L1(0.5).prox(torch.ones(2), -9e-19)


def test_a_linear_schedule_down_to_0_runs_beyond_its_end():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, end_factor=0.0, total_iters=10)
    reg = Regularizer(model, L1(0.01), gate=AlwaysOpen()).attach(optimizer)
    for step in range(12):
        take_step(model, optimizer, step)
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] <= 0
    assert reg.num_steps == 12


def _distributed_run(steps):
    model = make_model("adam")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = Refit(6, before=LinearRamp(3))
    reg = Regularizer(model, L1(0.3), gate=CoherenceGate(0.5), schedule=schedule).attach(optimizer)
    train(model, optimizer, range(steps))
    return model, optimizer, reg


def test_a_distributed_checkpoint_resumes_bit_exactly_when_our_state_is_loaded_last():
    model, optimizer, reg = _distributed_run(4)
    saved = copy.deepcopy([model.state_dict(), get_optimizer_state_dict(model, optimizer)])
    own = reg.state_dict()
    resumed_model, resumed_optimizer, resumed = _distributed_run(0)
    get_optimizer_state_dict(resumed_model, resumed_optimizer)  # what a checkpointer reads into
    resumed_model.load_state_dict(saved[0])
    with pytest.warns(UserWarning, match=r"has no entry 'strongreg'.*call its load_state_dict\(\) after this"):
        set_optimizer_state_dict(resumed_model, resumed_optimizer, saved[1])
    resumed.load_state_dict(own)
    train(model, optimizer, range(4, 10))
    train(resumed_model, resumed_optimizer, range(4, 10))
    assert same_bits(_weights(resumed_model), _weights(model))
    assert same_bits(resumed.state_dict(), reg.state_dict())


def test_the_step_that_makes_an_optimizer_create_its_state_does_not_count():
    for lr in (0.01, torch.tensor(0.01)):
        model = make_model("adam")
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        reg = Regularizer(model, L1(0.3), gate=AlwaysOpen()).attach(optimizer)
        get_optimizer_state_dict(model, optimizer)
        assert (reg.num_steps, len(reg.history), reg.summary().advice) == (0, 0, "")


def test_a_step_of_learning_rate_0_counts_where_there_is_a_gradient():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    reg = Regularizer(model, {"0.weight": L1(0.3)}, gate=AlwaysOpen()).attach(optimizer)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert reg.num_steps == 0
    model[2].bias.grad[0] = 1.0
    optimizer.step()
    assert reg.num_steps == 1
