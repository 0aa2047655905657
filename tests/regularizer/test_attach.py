"""Attaching, detaching, and the errors and warnings that say what to change."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
import re
import weakref

import pytest
import torch
from torch import nn

from strongreg import L1, L2, AlwaysOpen, CoherenceGate, Delay, ElasticNet, Gate, GroupL2, Refit, Regularizer


def _net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def _sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **options})


def _step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(16, 4)).square().sum().backward()
    optimizer.step()


def test_a_penalized_parameter_that_the_optimizer_does_not_hold_is_an_error():
    model = _net()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"does not hold the penalized parameters \['2.weight'\].*exclude"):
        Regularizer(model, L1(0.1)).attach(optimizer)
    Regularizer(model, {"2.weight": None, "*.weight": L1(0.1)}).attach(optimizer)


def test_frozen_parameters_outside_the_optimizer_are_left_out():
    model = _net()
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    reg = Regularizer(model, L1(0.1)).attach(optimizer)
    assert [t.name for t in reg.targets] == ["2.weight"]
    reg.detach()
    with pytest.warns(UserWarning, match=r"frozen.*\['0.weight'\]"):
        Regularizer(model, {"*.weight": L1(0.1)}).attach(optimizer)
    with pytest.raises(ValueError, match=r"nothing to regularize"):
        Regularizer(model, {"0.weight": L1(0.1)}).attach(optimizer)


def test_attach_twice_and_competing_regularizers_are_errors():
    model = _net()
    optimizer = _sgd(model)
    reg = Regularizer(model, {"0.weight": L1(0.1)}).attach(optimizer)
    with pytest.raises(RuntimeError, match=r"call detach\(\) first"):
        reg.attach(optimizer)
    with pytest.raises(ValueError, match=r"penalizes \['0.weight'\] already"):
        Regularizer(model, L1(0.1)).attach(optimizer)
    with pytest.raises(ValueError, match=r"has the key 'strongreg'"):
        Regularizer(model, {"2.weight": L2(0.1)}).attach(optimizer)
    other = Regularizer(model, {"2.weight": L2(0.1)}).attach(optimizer, key="second")
    _step(model, optimizer)
    assert {"strongreg", "second"} <= set(optimizer.state_dict())
    reg.detach()
    other.detach()
    Regularizer(model, L1(0.1)).attach(optimizer)


def test_a_failed_attach_leaves_nothing_behind():
    model = _net()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    reg = Regularizer(model, L1(0.1))
    with pytest.raises(ValueError, match=r"does not hold"):
        reg.attach(optimizer)
    assert "strongreg" not in optimizer.state_dict()
    reg.attach(_sgd(model))


@pytest.mark.parametrize("penalty", [L2(0.1), ElasticNet(0.1)], ids=repr)
def test_weight_decay_on_top_of_a_ridge_penalty_is_a_warning_that_says_what_to_change(penalty):
    model = _net()
    with pytest.warns(UserWarning, match=r"\['0.weight', '2.weight'\].*set weight_decay=0"):
        Regularizer(model, penalty).attach(torch.optim.AdamW(model.parameters()))
    Regularizer(model, penalty).attach(_sgd(model))
    Regularizer(model, L1(0.1)).attach(torch.optim.AdamW(model.parameters()))


def test_momentum_of_one_and_missing_lr_are_errors():
    model = _net()
    with pytest.raises(ValueError, match=r"momentum must be < 1"):
        Regularizer(model, L1(0.1)).attach(_sgd(model, momentum=1.0))
    optimizer = _sgd(model)
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(TypeError, match=r"without 'lr'"):
        Regularizer(model, L1(0.1)).attach(optimizer)


def test_wrong_parts_are_named():
    model = _net()
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        Regularizer(model.parameters(), L1(0.1))
    with pytest.raises(TypeError, match=r"gate must be a strongreg.Gate, got 0.7"):
        Regularizer(model, L1(0.1), gate=0.7)
    with pytest.raises(TypeError, match=r"did you mean CoherenceGate\(0.7\)"):
        Regularizer(model, L1(0.1), gate=0.7)
    with pytest.raises(TypeError, match=r"that is the class, write AlwaysOpen\(...\)"):
        Regularizer(model, L1(0.1), gate=AlwaysOpen)
    with pytest.raises(TypeError, match=r"schedule must be a strongreg.Schedule"):
        Regularizer(model, L1(0.1), schedule=10)
    with pytest.raises(TypeError, match=r"Delay is a gate, pass it as gate="):
        Regularizer(model, L1(0.1), schedule=Delay(3))
    with pytest.raises(TypeError, match=r"Refit is a schedule, pass it as schedule="):
        Regularizer(model, L1(0.1), gate=Refit(3))
    with pytest.raises(ValueError, match=r"mode='prox'.*'proximal', 'gradient'"):
        Regularizer(model, L1(0.1), mode="prox")
    with pytest.raises(ValueError, match=r"strength_scale='std'"):
        Regularizer(model, L1(0.1), strength_scale="std")
    with pytest.raises(ValueError, match=r"history_every=-1"):
        Regularizer(model, L1(0.1), history_every=-1)
    with pytest.raises(TypeError, match=r"penalty must be a strongreg penalty"):
        Regularizer(model, 0.1)
    with pytest.raises(TypeError, match=r"attach needs a torch.optim.Optimizer, got Sequential"):
        Regularizer(model, L1(0.1)).attach(model)


def test_a_wrapper_that_holds_the_optimizer_is_looked_through():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = _net()
    optimizer = _sgd(model)
    reg = Regularizer(model, L1(0.1)).attach(Wrapper(optimizer))
    _step(model, optimizer)
    assert reg.num_steps == 1


def test_groups_may_be_added_and_replaced_after_attaching():
    model, extra = _net(), nn.Linear(3, 3)
    optimizer = _sgd(model)
    reg = Regularizer(model, L1(0.1)).attach(optimizer)
    optimizer.add_param_group({"params": extra.parameters(), "lr": 1.0})
    _step(model, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(state)  # torch replaces the group dictionaries
    _step(model, optimizer)
    assert reg.num_steps == 2


def test_a_parameter_that_was_replaced_is_reported_by_name():
    model = _net()
    optimizer = _sgd(model)
    Regularizer(model, L1(0.1)).attach(optimizer)
    optimizer.param_groups[0]["params"][0] = nn.Parameter(torch.zeros(8, 4))
    with pytest.raises(RuntimeError, match=r"does not hold the penalized parameters \['0.weight'\]"):
        optimizer.step()


def test_each_parameter_is_shrunk_by_the_step_size_of_its_own_group():
    model = _net().double()
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters(), "lr": 0.5}]
    optimizer = torch.optim.SGD(groups)
    Regularizer(model, L1(0.01), gate=AlwaysOpen()).attach(optimizer)
    first, second = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(model[0].weight, first)
    assert torch.allclose(model[2].weight, L1(0.01).prox(second, 0.5), atol=1e-15)


def test_inverse_std_strengths_have_weighted_mean_one_and_are_saved():
    model = _net()
    with torch.no_grad():
        model[0].weight.normal_(std=0.1)
        model[2].weight.normal_(std=1.0)
    reg = Regularizer(model, L1(0.1), strength_scale="inverse_std").attach(_sgd(model))
    scales = reg.state_dict()["scales"]
    stds = [model[i].weight.std().item() for i in (0, 2)]
    assert scales[0] / scales[1] == pytest.approx(stds[1] / stds[0], rel=1e-5)
    assert (32 * scales[0] + 16 * scales[1]) / 48 == pytest.approx(1.0)
    other = Regularizer(_net(), L1(0.1), strength_scale="inverse_std")
    other.load_state_dict(reg.state_dict())
    assert other.state_dict()["scales"] == scales


def test_inverse_std_keeps_constant_tensors_at_one_with_a_warning():
    model = _net()
    nn.init.zeros_(model[2].weight)
    with pytest.warns(UserWarning, match=r"\['2.weight'\] have no spread"):
        reg = Regularizer(model, L1(0.1), strength_scale="inverse_std").attach(_sgd(model))
    assert reg.state_dict()["scales"] == pytest.approx([1.0, 1.0])


def test_saved_hyperparameters_replace_those_of_the_object_with_a_warning():
    model = _net()
    reg = Regularizer(model, L1(0.1), gate=CoherenceGate(0.5), schedule=Refit(10))
    other = Regularizer(model, L1(0.2), gate=CoherenceGate(0.7), schedule=Refit(20))
    with pytest.warns(UserWarning, match=r"gate was .*0.7.*is now .*0.5"):
        other.load_state_dict(reg.state_dict())
    assert other.gate == CoherenceGate(0.5)
    assert other.schedule == Refit(10)
    assert {t.penalty for t in other.targets} == {L1(0.1)}


def test_a_state_for_something_else_is_refused_and_changes_nothing():
    model = _net()
    reg = Regularizer(model, L1(0.1))
    before = reg.state_dict()
    for other, message in [
        (Regularizer(model, L1(0.1), gate=Delay(3)), "for Delay, but .* CoherenceGate"),
        (Regularizer(model, L2(0.1)), "for L2, but .* L1"),
        (Regularizer(model, {"0.weight": L1(0.1)}), r"other parameters \(\['2.weight'\]\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            reg.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match=r"version 99"):
        reg.load_state_dict({**before, "version": 99})
    assert str(reg.state_dict()) == str(before)


def test_pickle_and_deepcopy_of_the_regularizer_drop_the_attachment_only():
    model = _net()
    optimizer = _sgd(model)
    reg = Regularizer(model, L1(0.1)).attach(optimizer)
    _step(model, optimizer)
    for clone in (copy.deepcopy(reg), pickle.loads(pickle.dumps(reg))):
        assert clone.num_steps == 1
        clone.detach()
    model_copy, reg_copy = copy.deepcopy((model, reg))
    reg_copy.attach(_sgd(model_copy))
    assert reg_copy.targets[0].param is model_copy[0].weight


def test_nothing_keeps_a_dropped_optimizer_alive():
    model = _net()
    optimizer = _sgd(model)
    Regularizer(model, L1(0.1)).attach(optimizer)
    alive = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert alive() is None


def test_the_regularizer_works_when_the_user_does_not_keep_it():
    model = _net()
    optimizer = _sgd(model)
    Regularizer(model, L1(0.5), gate=AlwaysOpen()).attach(optimizer)
    gc.collect()
    for _ in range(30):
        _step(model, optimizer)
    assert int((model[0].weight == 0).sum()) > 0


def test_group_penalty_takes_the_output_channels_of_transposed_convolutions():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 6, 3))
    reg = Regularizer(model, GroupL2(0.1))
    assert [t.penalty.dim for t in reg.targets] == [0, 1]


def test_a_scheduler_is_not_taken_for_its_optimizer():
    model = _net()
    scheduler = torch.optim.lr_scheduler.StepLR(_sgd(model), 1)
    with pytest.raises(TypeError, match=r"needs a torch.optim.Optimizer, got StepLR"):
        Regularizer(model, L1(0.1)).attach(scheduler)


@pytest.mark.parametrize("penalty", [L1(0.1), L2(0.1)], ids=repr)
def test_the_summary_says_that_a_penalty_which_never_acted_had_no_effect(penalty):
    model = _net()
    optimizer = _sgd(model)
    reg = Regularizer(model, penalty, gate=Delay(100)).attach(optimizer)
    assert "little effect" not in str(reg.summary())
    _step(model, optimizer)
    assert "the penalty acted at 0.0% of the steps at which it might have, and had little effect" in str(reg.summary())


def test_the_summary_does_not_speak_of_zeros_where_the_penalty_makes_none():
    model = _net()
    optimizer = _sgd(model)
    reg = Regularizer(model, L2(0.1), gate=CoherenceGate(1.0)).attach(optimizer)
    for _ in range(3):
        _step(model, optimizer)
    assert "zeros free" not in str(reg.summary())


def test_the_summary_of_a_pure_refit_does_not_ask_for_a_lower_strength():
    model = _net()
    optimizer = _sgd(model)
    reg = Regularizer(model, L1(0.1), schedule=Refit(0)).attach(optimizer)
    _step(model, optimizer)
    assert reg.summary().advice == ""


def _summary_of(penalties, gate=None, *, frozen=(), schedule=None, steps=3):
    model = _net()
    optimizer = _sgd(model, lr=1e-4)
    reg = Regularizer(model, penalties, gate=gate or AlwaysOpen(), schedule=schedule).attach(optimizer)
    for step in range(steps):
        for i in frozen if step >= steps - 2 else ():
            model[i].requires_grad_(False)
        _step(model, optimizer)
    return reg.summary()


@dataclasses.dataclass(frozen=True)
class _OnlyTheSecondTensor(Gate):
    until: int = 0

    @property
    def decision_scope(self):
        return "layer"

    def is_open(self, coherence, step):
        return (torch.arange(len(coherence)) == 1) | (step < self.until)


def test_advice_does_not_count_tensors_of_strength_0():
    model = nn.Sequential(nn.Linear(4, 500), nn.Linear(500, 2))
    penalties = {"0.weight": L1(0.0), "1.weight": L1(1e-3)}
    optimizer = _sgd(model, lr=1e-4)
    reg = Regularizer(model, penalties, gate=AlwaysOpen()).attach(optimizer)
    _step(model, optimizer)
    assert [row.open_fraction for row in reg.summary().layers] == [0.0, 1.0]
    assert reg.summary().advice == ""
    assert "acted at 0.0%" in _summary_of({"0.weight": L1(0.0), "2.weight": L1(0.1)}, Delay(10)).advice


def test_advice_does_not_count_tensors_that_have_no_gradient():
    assert _summary_of(L1(1e-3), frozen=[0]).advice == ""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1000).requires_grad_(False))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    reg = Regularizer(model, {"*.weight": L1(1e-3)}, gate=AlwaysOpen()).attach(optimizer)
    _step(model, optimizer)
    assert reg.summary().total.open_fraction < 0.01
    assert reg.summary().advice == ""


def test_advice_speaks_of_zeros_only_where_a_penalty_that_makes_them_was_at_work():
    never = _summary_of({"0.weight": L2(1e-3), "2.weight": L1(1e-3)}, _OnlyTheSecondTensor())
    assert never.advice == ""  # only the gate of L2 was closed
    moved = _summary_of({"0.weight": L1(1e-3), "2.weight": L2(1e-3)}, _OnlyTheSecondTensor(until=2))
    assert "sets its zeros free" in moved.advice
    none = _summary_of({"0.weight": L1(1e-3), "2.weight": L1(1e-3)}, _OnlyTheSecondTensor(until=1), frozen=[0])
    assert none.advice == ""  # the weights stand still, and the zeros with them


def test_advice_on_a_refit_looks_at_the_steps_before_it():
    assert _summary_of(L1(1e-3), schedule=Refit(1), steps=200).advice == ""
    assert "acted at 0.0%" in _summary_of(L1(1e-3), Delay(5), schedule=Refit(1)).advice


@dataclasses.dataclass(frozen=True)
class _ClosedFrom(Gate):
    start: int

    def is_open(self, coherence, step):
        return (step < self.start).expand_as(coherence)


@pytest.mark.parametrize("through_a_state", [False, True])
def test_an_optimizer_that_holds_fewer_parameters_keeps_what_is_known_of_them(through_a_state):
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    options = {"gate": _ClosedFrom(3), "schedule": Refit(100), "strength_scale": "inverse_std"}
    optimizer = _sgd(model, lr=0.02)
    reg = Regularizer(model, L1(0.2), **options).attach(optimizer)
    for _ in range(5):
        _step(model, optimizer)
    model[1].requires_grad_(False)
    reg.detach()
    before = reg.state_dict()
    coherence, total = reg.history.per_layer("coherence"), reg.history["coherence"]
    assert {"0.weight", "1.weight"} <= set(before["zero_masks"])
    if through_a_state:
        model[1].requires_grad_(True)
        reg = Regularizer(model, L1(0.2), **options)
        reg.load_state_dict(before)
        model[1].requires_grad_(False)
    reg.attach(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02))
    after = reg.state_dict()
    assert [t.name for t in reg.targets] == reg.history.layers == ["0.weight", "2.weight"]
    assert after["scales"] == [before["scales"][0], before["scales"][2]]
    assert after["counts"]["num_open"] == [3, 3]
    assert (reg.num_steps, after["num_calls"]) == (5, 5)
    assert reg.history.per_layer("coherence").tolist() == coherence[:, [0, 2]].tolist()
    assert reg.history["coherence"].tolist() == total.tolist()
    assert set(after["zero_masks"]) == set(before["zero_masks"]) - {"1.weight"}
    assert all(torch.equal(after["zero_masks"][name], before["zero_masks"][name]) for name in after["zero_masks"])
    _step(model, reg._attachment.optimizer)
    assert len(reg.summary().layers) == 2


@pytest.mark.parametrize(
    ("dtype", "strength"),
    [(torch.float32, 1e300), (torch.float16, 1e39), (torch.bfloat16, 3.5e38), (torch.float64, 1e308)],
    ids=str,
)
@pytest.mark.parametrize("make", [L1, L2, GroupL2], ids=lambda make: make.__name__)
def test_a_strength_that_is_infinite_in_the_weights_precision_is_refused_by_name(make, dtype, strength):
    model = _net().to(dtype)
    with torch.no_grad():
        model[2].weight.mul_(1e-2)  # of the larger relative strength
    optimizer = _sgd(model)
    scale = "inverse_std" if dtype == torch.float64 else "uniform"
    reg = Regularizer(model, {"2.weight": make(strength), "0.weight": L1(0.0)}, strength_scale=scale)
    with pytest.raises(
        ValueError, match=rf"{make.__name__}.*on parameter .2.weight.*strength {re.escape(f'{strength:g}')}.*lower the"
    ):
        reg.attach(optimizer)
    assert "strongreg" not in optimizer.state_dict()
    assert reg.state_dict()["scales"] is None
    Regularizer(model, make(1e30)).attach(optimizer)
