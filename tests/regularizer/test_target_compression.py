"""A strength that adapts: the asked compression is reached from any strength, resumed or not, or a warning says why."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from strongreg import (
    L1,
    L2,
    MCP,
    AlwaysOpen,
    CoherenceGate,
    Delay,
    Gate,
    GroupL2,
    LinearRamp,
    Refit,
    Regularizer,
    SparseGroup,
    strength_control,
)
from strongreg.counts import StepCounts
from strongreg.strength_control import CompressionControl

BATCH_SIZE, STEPS_PER_EPOCH = 64, 22


@functools.cache
def _digits():
    images, labels = load_digits(return_X_y=True)
    return train_test_split(torch.tensor(images / 16).float(), torch.tensor(labels), random_state=0)


class _Run:
    """A digit classifier of 50,200 weights in training; the refit takes the second half of the steps."""

    def __init__(self, penalty, target, *, epochs=40, seed=0, optimizer="sgd", **options):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
        if optimizer == "sgd":
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        else:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-3, weight_decay=0.0)
        self.epochs = epochs
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda e: min(1.0, 2 - 2 * e / epochs))
        self.refit_start = epochs // 2 * STEPS_PER_EPOCH
        options = {"schedule": Refit(self.refit_start), "gate": CoherenceGate(0.7), **options}
        self.reg = Regularizer(self.model, penalty, target_compression=target, **options).attach(self.optimizer)
        self.epoch = 0
        self.factors = []

    def train(self, until=None):
        x, _, y, _ = _digits()
        while self.epoch < (until or self.epochs):
            generator = torch.Generator().manual_seed(self.epoch)
            for batch in torch.randperm(len(x), generator=generator).split(BATCH_SIZE):
                self.optimizer.zero_grad()
                nn.functional.cross_entropy(self.model(x[batch]), y[batch]).backward()
                self.optimizer.step()
                self.factors.append(self.reg.strength_factor)
            self.scheduler.step()
            self.epoch += 1
        return self

    @property
    def compression(self):
        total = self.reg.summary().total
        return total.num_weights / (total.num_weights - total.num_zeros)

    @property
    def accuracy(self):
        _, x, _, y = _digits()
        with torch.no_grad():
            return float((self.model(x).argmax(dim=1) == y).float().mean())


# ---------------------------------------------------------------------- it is reached


@pytest.mark.parametrize("target", [5, 10, 20, 50])
def test_a_run_ends_at_the_asked_compression(target):
    run = _Run(L1(1e-3), target).train()
    assert run.compression == pytest.approx(target, rel=0.05)
    assert run.accuracy > 0.93
    assert len(set(run.factors)) > 100
    assert max(run.factors) < 100


@pytest.mark.parametrize("strength", [1e-5, 5e-2])
def test_from_any_strength(strength):
    run = _Run(L1(strength), 10).train()
    assert run.compression == pytest.approx(10, rel=0.05)
    assert run.accuracy > 0.93


@pytest.mark.parametrize(
    ("penalty", "options"),
    [
        (MCP(1e-3, cutoff=0.5), {}),
        (SparseGroup(1e-3, dim=1), {}),
        (L1(1e-3), {"strength_scale": "inverse_std"}),
        (L1(1e-3), {"gate": CoherenceGate(0.7, scope="layer")}),
        (L1(1e-3), {"gate": AlwaysOpen()}),
    ],
    ids=["mcp", "sparse-group", "inverse-std", "layer", "always"],
)
def test_with_other_penalties_gates_and_optimizers(penalty, options):
    run = _Run(penalty, 10, **{"epochs": 24, **options}).train()
    assert run.compression == pytest.approx(10, rel=0.05)
    assert run.accuracy > 0.9


@pytest.mark.parametrize(("threshold", "reached"), [(0.7, 2.06), (0.3, 5.2), (0.0, 10.0)])
def test_with_adam_the_threshold_limits_what_is_reached(threshold, reached):
    """The figures of docs/theory.md."""
    run = _Run(L1(1e-2), 10, epochs=40, optimizer="adamw", gate=CoherenceGate(threshold))
    with pytest.warns(UserWarning, match="lower the gate's threshold") if threshold > 0 else contextlib.nullcontext():
        run.train()
    assert run.compression == pytest.approx(reached, rel=0.3 if threshold > 0 else 0.05)
    assert run.accuracy > 0.95


def test_the_last_step_before_the_refit_leaves_exactly_so_many():
    run = _Run(L1(1e-3), 8, epochs=20).train(until=10)
    assert run.reg.num_steps == run.refit_start
    assert run.compression == pytest.approx(8, rel=0.005)


def test_the_strength_of_penalties_without_zeros_stays():
    both = _Run({"0.weight": L1(1e-3), "4.weight": L2(1e-2)}, 5, epochs=10)
    factors = both.reg._control.factors(both.reg.targets, [1.0, 1.0], torch.device("cpu"))
    assert factors.tolist() == [1.0, 1.0]
    both.train(until=4)
    factor = both.reg.strength_factor
    assert factor != 1
    factors = both.reg._control.factors(both.reg.targets, [1.0, 0.5], torch.device("cpu"))
    assert factors.tolist() == [factor, 0.5]


def test_without_a_target_the_strength_is_left_alone():
    reg = Regularizer(nn.Linear(4, 2), L1(0.1))
    assert (reg.target_compression, reg.strength_factor) == (None, 1.0)


def _after_looks(compressions, *, opened=True, start=1000):
    """The factor after each look at a run that has reached so much, at these steps."""
    control, counts = CompressionControl(5.0, start, [True]), StepCounts(1)
    counts.last_open[:] = True
    factors = {}
    for step in range(1, start - 50):
        zeros = round(10**6 * (1 - 1 / compressions(step / start)))
        counts.step += 1
        counts.num_open += int(opened)
        counts.num_allowed += 1
        control.look(SimpleNamespace(sizes=[10**6], num_zeros=lambda zeros=zeros: [zeros]), counts, step)
        factors[step] = control.factor
    return factors


def test_a_run_that_is_ahead_keeps_its_strength_until_it_is_beyond_the_target():
    """Lowered then, the network would fit its images so well that no penalty is coherent with what is left."""
    factors = _after_looks(lambda progress: min(5.0, 1 + 10 * progress))
    assert list(factors.values()) == pytest.approx([1.0] * len(factors), rel=1e-3)


def test_a_run_that_is_behind_gets_more_but_not_at_once_and_one_beyond_less():
    behind = _after_looks(lambda _: 1.01)
    assert all(behind[step] == 1 for step in range(1, 150))
    assert 1 < behind[300] < behind[400] <= behind[300] * math.exp(20 * 0.1) * 1.001
    beyond = _after_looks(lambda _: 8.0)
    assert beyond[10] > beyond[100] > beyond[400]


def test_what_is_not_endured_is_lowered_however_little_was_reached():
    factors = _after_looks(lambda _: 1.01, opened=False)
    assert factors[30] < factors[10] < 1
    assert factors[900] == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("penalty", "options"),
    [
        ({"0.weight": L1(0.0), "2.weight": L1(1e-3), "4.weight": L1(1e-3)}, {}),
        (L1(1e-3), {"gate": Delay(88)}),
        (L1(1e-3), {"schedule": Refit(264, LinearRamp(20, start=44))}),
    ],
    ids=["one-is-off", "delay", "schedule-of-0"],
)
def test_steps_at_which_the_penalty_could_not_act_say_nothing_of_what_is_endured(penalty, options):
    target = 2 if isinstance(penalty, dict) else 10
    run = _Run(penalty, target, epochs=24, **options).train()
    assert run.compression == pytest.approx(target, rel=0.05)
    assert run.accuracy > 0.9


def test_tensors_without_gradient_do_not_lower_the_strength():
    run = _Run({"0.weight": L1(1e-3), "2.weight": L1(1e-3), "4.weight": L1(1e-3)}, 2, epochs=24)
    run.model[0].weight.requires_grad_(False)
    run.train()
    assert run.compression == pytest.approx(2, rel=0.05)


def test_no_step_imposes_more_than_twice_what_the_gate_has_seen(monkeypatch):
    """Out of reach: the last steps would take whatever makes the zeros."""
    run = _Run(L1(1e-3), 200, epochs=6)
    seen = []
    shrink = run.reg._passes.shrink

    def noted(factors, step_sizes):
        seen.append(max(factors))
        shrink(factors, step_sizes)

    monkeypatch.setattr(run.reg._passes, "shrink", noted)
    with pytest.warns(UserWarning, match="target_compression=200"):
        run.train()
    assert max(seen) <= 2.001 * max(run.factors)


def test_the_nearest_number_of_groups_is_taken():
    """Ten groups of equal size: 10 / 4 is nearer to 2.6 than 10 / 3, in the logarithm."""
    torch.manual_seed(0)
    model = nn.Linear(20, 10, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reg = Regularizer(
        model, GroupL2(1e-2), gate=AlwaysOpen(), schedule=Refit(200), target_compression=2.6, warn_of_collapse=False
    ).attach(optimizer)
    inputs, weights = torch.randn(50, 20), torch.randn(20, 10) * torch.arange(1, 11) / 10
    for _ in range(200):
        optimizer.zero_grad()
        (model(inputs) - inputs @ weights).square().mean().backward()
        optimizer.step()
    total = reg.summary().total
    assert total.num_weights / (total.num_weights - total.num_zeros) == pytest.approx(2.5)


def test_a_captured_step_is_an_error_at_once(monkeypatch):
    run = _Run(L1(1e-3), 10, schedule=Refit(10_000))
    monkeypatch.setattr(strength_control, "is_captured", lambda _: True)
    with pytest.raises(RuntimeError, match="CUDA graph"):
        run.train(until=1)
    assert run.factors == []


def test_an_optimizer_of_fewer_tensors_goes_on_with_the_factor():
    run = _Run(L1(1e-3), 10, epochs=20).train(until=5)
    factor = run.reg.strength_factor
    assert factor != 1
    run.reg.detach()
    run.model[2].weight.requires_grad_(False)
    run.reg.attach(torch.optim.SGD([run.model[0].weight, run.model[4].weight], lr=0.1))
    assert run.reg.strength_factor == factor
    assert [t.name for t in run.reg.targets] == ["0.weight", "4.weight"]


def test_an_optimizer_with_which_the_target_is_out_of_reach_changes_nothing():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    model[0].weight.requires_grad_(False)
    penalties = {"0.weight": L1(0.1), "1.weight": L2(0.1)}
    reg = Regularizer(model, penalties, schedule=Refit(100), target_compression=1.5)
    with (
        pytest.warns(UserWarning, match="not penalized, since they are frozen"),
        pytest.raises(ValueError, match="100 of 100 penalized weights"),
    ):
        reg.attach(torch.optim.SGD(model[1].parameters(), lr=0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reg.attach(optimizer)
    model(torch.ones(1, 10)).sum().backward()
    optimizer.step()
    assert reg.num_steps == 1


# ---------------------------------------------------------------------- resumed


@pytest.mark.parametrize("epoch", [3, 9, 12])
def test_a_resumed_run_is_the_same_bit_for_bit(epoch):
    whole = _Run(L1(1e-3), 10, epochs=20).train()
    first = _Run(L1(1e-3), 10, epochs=20).train(until=epoch)
    file = io.BytesIO()
    torch.save([first.model.state_dict(), first.optimizer.state_dict(), first.scheduler.state_dict()], file)
    file.seek(0)
    second = _Run(L1(1e-3), 10, epochs=20, seed=1)
    states = torch.load(file, weights_only=True)
    for part, state in zip((second.model, second.optimizer, second.scheduler), states, strict=True):
        part.load_state_dict(state)
    second.epoch = epoch
    second.train()
    assert first.factors + second.factors == whole.factors
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert whole.compression == pytest.approx(10, rel=0.05)


def test_the_saved_target_replaces_that_of_the_object_with_a_warning():
    run = _Run(L1(1e-3), 10, epochs=6).train(until=2)
    state = copy.deepcopy(run.reg.state_dict())
    other = _Run(L1(1e-3), None, epochs=6)
    with pytest.warns(UserWarning, match=r"target_compression was None, is now 10\.0"):
        other.reg.load_state_dict(state)
    assert other.reg.target_compression == 10
    assert other.reg.strength_factor == run.reg.strength_factor != 1


def test_a_state_from_before_there_were_targets_is_read():
    run = _Run(L1(1e-3), None, epochs=6).train(until=1)
    state = run.reg.state_dict()
    del state["target_compression"], state["control"]
    other = _Run(L1(1e-3), None, epochs=6)
    other.reg.load_state_dict(state)
    assert other.reg.num_steps == STEPS_PER_EPOCH
    assert (other.reg.target_compression, other.reg.strength_factor) == (None, 1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"log_factor": math.nan},
        {"log_factor": "1"},
        {"last_look": 1.5},
        {"nonzeros": [1, 2]},
        {"num_open": 3},
        {"num_open": [1, True, 2]},
    ],
    ids=str,
)
def test_a_damaged_state_is_refused_and_changes_nothing(change):
    run = _Run(L1(1e-3), 10, epochs=6).train(until=1)
    before = run.reg.state_dict()
    state = copy.deepcopy(before)
    state["control"].update(change)
    with pytest.raises(ValueError, match=f"target_compression holds {next(iter(change))}="):
        run.reg.load_state_dict(state)
    state = copy.deepcopy(before)
    del state["control"]["cap"]
    with pytest.raises(ValueError, match="damaged"):
        run.reg.load_state_dict(state)
    assert run.reg.state_dict()["control"] == before["control"]


# ---------------------------------------------------------------------- what cannot be


def test_a_target_that_is_missed_is_a_warning_that_says_so():
    with pytest.warns(UserWarning, match=r"target_compression=1000: the refit at step 66 begins at [\d.]+; "):
        run = _Run(L1(1e-5), 1000, epochs=6).train()
    assert run.compression < 900


@dataclass(frozen=True)
class _OpenUntil(Gate):
    steps: int

    def is_open(self, coherence, step):
        return (step < self.steps).expand_as(coherence)


def test_a_target_that_is_exceeded_is_not_told_to_ask_for_less():
    remedy = "smaller than asked; give the network more steps before the refit or lower the gate's threshold"
    with pytest.warns(UserWarning, match=rf"target_compression=2: .* begins at [\d.]+, {remedy}") as told:
        _Run(L1(0.05), 2, epochs=6, gate=_OpenUntil(3)).train()
    assert not any("ask for less" in str(warning.message) for warning in told)


def test_a_gate_that_stays_closed_lowers_the_strength_and_makes_no_zeros():
    with pytest.warns(UserWarning, match=r"begins at 1; give the network more steps .* lower the gate's threshold"):
        run = _Run(L1(1e-3), 10, epochs=6, gate=CoherenceGate(1.0)).train()
    assert run.compression == 1
    assert run.factors[-1] < 0.1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target_compression": 1.0}, "target_compression must be finite and > 1"),
        ({"target_compression": math.inf}, "target_compression must be finite"),
        ({"mode": "gradient"}, "target_compression=8 needs mode='proximal'"),
        ({"schedule": None}, r"target_compression=8 needs to know by which step: pass schedule=Refit\(start=...\)"),
        ({"schedule": Refit(49)}, r"needs 50 steps or more before the refit, got Refit\(start=49"),
        ({"gate": Delay(60)}, r"needs 50 steps or more at which the gate may be open, .*Delay\(steps=60\)"),
        ({"target_compression": 9}, "there are 8 penalized weights; ask for less"),
        ({"penalty": L2(0.1)}, "8 of 8 penalized weights have a penalty that makes no zeros"),
        (
            {"penalty": L1(0.0)},
            "8 of 8 .* makes no zeros, which allows no compression",
        ),
    ],
    ids=["1", "infinite", "gradient", "no-refit", "early", "delay", "more", "l2", "off"],
)
def test_what_cannot_be_is_refused_with_the_remedy(changed, message):
    arguments = {"penalty": L1(0.1), "schedule": Refit(100), "target_compression": 8.0, **changed}
    with pytest.raises(ValueError, match=message):
        Regularizer(nn.Linear(4, 2), **arguments)


def test_weights_that_never_become_zero_limit_what_can_be_asked_for():
    model = nn.Sequential(nn.Linear(10, 9), nn.Linear(9, 10))
    penalties = {"0.weight": L1(0.1), "1.weight": L2(0.1)}
    with pytest.raises(ValueError, match=r"90 of 180 penalized .* allows at most 2; choose L1 .* leave them out"):
        Regularizer(model, penalties, schedule=Refit(100), target_compression=2)
    Regularizer(model, penalties, schedule=Refit(100), target_compression=1.9)


def test_a_target_must_be_a_number():
    with pytest.raises(TypeError, match="target_compression must be a number, got str"):
        Regularizer(nn.Linear(4, 2), L1(0.1), schedule=Refit(100), target_compression="20")
