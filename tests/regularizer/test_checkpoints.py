"""What is saved, what is refused, and that a refused state changes nothing."""

from __future__ import annotations

import copy
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from strongreg import L1, AlwaysOpen, CoherenceGate, Delay, Gate, LinearRamp, Refit, Regularizer


def _net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def _sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.5, **options})


def _train(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 4)).square().sum().backward()
        optimizer.step()


def _through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_numbers_of_numpy_survive_a_safe_checkpoint():
    model = _net()
    optimizer = _sgd(model)
    schedule = Refit(np.int64(5), before=LinearRamp(np.int32(2), final=np.float32(0.5)))
    gate = CoherenceGate(np.float64(0.5))
    reg = Regularizer(model, L1(np.float32(0.25)), gate=gate, schedule=schedule, history_every=np.int64(2))
    reg.attach(optimizer)
    _train(model, optimizer)
    state = _through_a_file(optimizer.state_dict())
    optimizer.load_state_dict(state)
    assert (reg.gate, reg.schedule) == (CoherenceGate(0.5), Refit(5, before=LinearRamp(2, final=0.5)))
    assert type(reg.targets[0].penalty.strength) is float
    assert type(Delay(np.int16(3)).steps) is int


@pytest.mark.parametrize(("key", "error"), [("state", ValueError), ("param_groups", ValueError), ("", ValueError)])
def test_the_entries_of_torch_are_not_taken_for_ours(key, error):
    model = _net()
    optimizer = _sgd(model)
    with pytest.raises(error, match=r"torch keeps its own state there"):
        Regularizer(model, L1(0.1)).attach(optimizer, key=key)
    with pytest.raises(TypeError, match=r"attach\(key=3\): key must be a string"):
        Regularizer(model, L1(0.1)).attach(optimizer, key=3)


def test_a_state_that_torch_refuses_leaves_the_regularizer_as_it_was():
    model, other = _net(), nn.Sequential(*_net(), nn.Linear(2, 2))
    optimizer, other_optimizer = _sgd(model), _sgd(other)
    reg = Regularizer(model, L1(0.1)).attach(optimizer)
    Regularizer(other, {"0.weight": L1(0.1), "2.weight": L1(0.1)}).attach(other_optimizer)
    _train(other, other_optimizer)
    before = copy.deepcopy(reg.state_dict())
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(other_optimizer.state_dict())
    assert str(reg.state_dict()) == str(before)
    _train(model, optimizer, steps=1)
    assert reg.num_steps == 1


@pytest.mark.parametrize("missing", ["penalties", "gate", "counts", "zero_masks", "history", "scales"])
def test_a_damaged_state_is_one_clear_error_and_changes_nothing(missing):
    model = _net()
    optimizer = _sgd(model)
    reg = Regularizer(model, L1(0.1)).attach(optimizer)
    _train(model, optimizer)
    state = reg.state_dict()
    del state[missing]
    before = copy.deepcopy(reg.state_dict())
    with pytest.raises(ValueError, match=rf"damaged .*{missing}|other parameters"):
        reg.load_state_dict(state)
    with pytest.raises(ValueError, match=r"relative strengths"):
        reg.load_state_dict({**before, "scales": [1.0]})
    assert str(reg.state_dict()) == str(before)


def test_relative_strengths_of_an_untrained_run_are_restored_too():
    model = _net()
    reg = Regularizer(model, L1(0.1), strength_scale="inverse_std").attach(_sgd(model))
    saved = reg.state_dict()
    with torch.no_grad():
        model[0].weight.mul_(10)
    resumed = Regularizer(model, L1(0.1), strength_scale="inverse_std")
    resumed.load_state_dict(saved)
    resumed.attach(_sgd(model))
    assert resumed.state_dict()["scales"] == saved["scales"]


def test_relative_strengths_are_taken_at_the_first_attachment_whatever_was_saved_before_it():
    model = _net()
    unattached = Regularizer(model, L1(0.1), strength_scale="inverse_std")
    resumed = Regularizer(model, L1(0.1), strength_scale="inverse_std")
    resumed.load_state_dict(unattached.state_dict())
    expected = Regularizer(model, L1(0.1), strength_scale="inverse_std").attach(_sgd(model)).state_dict()["scales"]
    assert resumed.attach(_sgd(model)).state_dict()["scales"] == expected != [1.0, 1.0]


def test_a_run_without_its_frozen_parameters_resumes_before_and_after_attaching():
    model = _net()
    model[0].weight.requires_grad_(False)
    model[0].bias.requires_grad_(False)

    def optimizer():
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    first = optimizer()
    penalties = {"*.weight": L1(0.1)}
    with pytest.warns(UserWarning, match="frozen"):
        reg = Regularizer(model, penalties).attach(first)
    _train(model, first)
    resumed = Regularizer(model, penalties)
    resumed.load_state_dict(reg.state_dict())
    resumed.attach(optimizer())
    assert resumed.num_steps == 3
    assert [t.name for t in resumed.targets] == ["2.weight"]


def test_a_gate_whose_fields_would_not_be_saved_is_refused_at_once():
    class Memory(Gate):
        def __init__(self):
            object.__setattr__(self, "limit", 3)

        def is_open(self, coherence, step):
            return step.expand_as(coherence) > self.limit

    with pytest.raises(TypeError, match=r"\['limit'\] are not fields; decorate Memory with @dataclass"):
        Regularizer(_net(), L1(0.1), gate=Memory())


def test_a_gate_of_the_users_own_is_saved():
    @dataclass(frozen=True)
    class After(Gate):
        limit: int = 0

        def is_open(self, coherence, step):
            return (step > self.limit).expand_as(coherence)

    model = _net()
    reg = Regularizer(model, L1(0.1), gate=After(3)).attach(_sgd(model))
    other = Regularizer(model, L1(0.1), gate=After(3))
    other.load_state_dict(_through_a_file(reg.state_dict()))
    assert other.gate == After(3)


def test_names_of_compiled_and_parallel_models_do_not_count():
    plain, model = _net(), _net()
    compiled, parallel = torch.compile(model, backend="eager"), nn.DataParallel(model)
    optimizer = _sgd(model)
    penalties = {"0.weight": L1(0.1), "2.weight": L1(0.2)}
    reg = Regularizer(compiled, penalties).attach(optimizer)
    _train(model, optimizer)
    resumed = Regularizer(plain, penalties)
    resumed.load_state_dict(reg.state_dict())
    assert resumed.num_steps == 3
    assert [t.name for t in Regularizer(parallel, penalties).targets] == ["0.weight", "2.weight"]
    # a pattern that was written for the compiled model's own names still fits
    assert len(Regularizer(compiled, {"_orig_mod.*.weight": L1(0.1)}).targets) == 2
    nested = nn.Sequential(torch.compile(nn.Linear(3, 3), backend="eager"), nn.Linear(3, 3))
    assert [t.name for t in Regularizer(nested, L1(0.1)).targets] == ["0.weight", "1.weight"]


def test_records_keep_their_rhythm_over_a_resume_and_over_skipped_steps():
    def run(resume_at=None, skipped=(), every=3):
        torch.manual_seed(0)
        model = _net()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=True)
        reg = Regularizer(model, L1(0.01), gate=AlwaysOpen(), history_every=every).attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=10**6)
        for step in range(13):
            if step == resume_at:
                state = copy.deepcopy(optimizer.state_dict())
                reg.detach()
                optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=True)
                reg = Regularizer(model, L1(0.01), gate=AlwaysOpen(), history_every=every).attach(optimizer)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            scaler.scale(model(torch.randn(16, 4)).square().sum()).backward()
            if step in skipped:
                model[0].weight.grad[0, 0] = float("inf")
            scaler.step(optimizer)
            scaler.update()
        return reg

    assert run().history.steps.tolist() == [0, 3, 6, 9, 12]
    # step 3 is called twice, the first time in vain; 12 calls are done
    assert run(skipped=(3,)).history.steps.tolist() == [0, 3, 6, 9]
    assert run(skipped=(3,), resume_at=5).history.steps.tolist() == [0, 3, 6, 9]


def test_warnings_point_at_the_users_line():
    model = _net()
    optimizer = _sgd(model, weight_decay=0.1)
    plain = optimizer.state_dict()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Regularizer(model, L1(0.1)).attach(optimizer)
        optimizer.load_state_dict(plain)
        model[0].weight.grad = torch.full_like(model[0].weight, torch.nan)
        optimizer.step()
    assert [Path(w.filename).name for w in caught] == [Path(__file__).name] * 2


def test_the_history_cannot_be_changed_from_outside():
    model = _net()
    optimizer = _sgd(model)
    reg = Regularizer(model, L1(0.1)).attach(optimizer)
    _train(model, optimizer)
    before = copy.deepcopy(reg.history.state_dict())
    for array in (reg.history["coherence"], reg.history.per_layer("open"), reg.history.steps):
        array[...] = 7
    after = reg.history.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_repr_shows_the_parts_and_the_attachment():
    model = _net()
    reg = Regularizer(model, {"0.weight": L1(0.1), "2.weight": L1(0.2)}, gate=Delay(3))
    assert repr(reg) == (
        "Regularizer(L1(strength=0.1), L1(strength=0.2) on 2 parameters, gate=Delay(steps=3), schedule=Constant(), "
        "mode='proximal', not attached)"
    )
    assert repr(reg.attach(_sgd(model))).endswith("attached to SGD)")
    asked = Regularizer(model, L1(0.1), schedule=Refit(60), target_compression=20)
    assert repr(asked).endswith("mode='proximal', target_compression=20.0, not attached)")


_DAMAGES = {
    "penalties-none": lambda s: s.update(penalties=None),
    "penalty-none": lambda s: s["penalties"].update({"0.weight": None}),
    "gate-none": lambda s: s.update(gate=None),
    "counts-none": lambda s: s.update(counts=None),
    "counts-short": lambda s: s["counts"]["num_open"].pop(),
    "counts-long": lambda s: s["counts"]["last_open"].append(True),
    "counts-nested": lambda s: s["counts"].update(num_open=[[1], [2]]),
    "counts-floats": lambda s: s["counts"].update(num_open=[0.5, 1.5]),
    "counts-number": lambda s: s["counts"].update(num_open=3),
    "counts-of-bools": lambda s: s["counts"].update(last_open=[1, 0]),
    "allowed-text": lambda s: s["counts"].update(num_allowed=["1", "2"]),
    "step-negative": lambda s: s["counts"].update(step=-1),
    "step-float": lambda s: s["counts"].update(step=1.5),
    "step-list": lambda s: s["counts"].update(step=[1]),
    "step-huge": lambda s: s["counts"].update(step=10**30),
    "nonfinite-none": lambda s: s["counts"].update(num_nonfinite=None),
    "calls-negative": lambda s: s.update(num_calls=-3),
    "calls-none": lambda s: s.update(num_calls=None),
    "scales-text": lambda s: s.update(scales=["1", "2"]),
    "scales-nan": lambda s: s.update(scales=[1.0, float("nan")]),
    "scales-negative": lambda s: s.update(scales=[1.0, -1.0]),
    "scales-number": lambda s: s.update(scales=1.0),
    "history-none": lambda s: s.update(history=None),
    "history-short": lambda s: s["history"].update(steps=s["history"]["steps"][1:]),
    "history-floats": lambda s: s["history"].update(steps=s["history"]["steps"] + 0.5),
    "history-flat": lambda s: s["history"].update(records=s["history"]["records"].flatten()),
    "history-whole-numbers": lambda s: s["history"].update(records=s["history"]["records"].long()),
    "history-lists": lambda s: s["history"].update(steps=[0, 1, 2]),
    "every-negative": lambda s: s.update(history_every=-1),
    "masks-none": lambda s: s.update(zero_masks=None),
    "mask-of-floats": lambda s: s["zero_masks"].update({"0.weight": torch.zeros(8, 4)}),
    "mask-of-nothing": lambda s: s["zero_masks"].update({"7.weight": torch.zeros(8, 4, dtype=torch.bool)}),
    "mask-list": lambda s: s["zero_masks"].update({"0.weight": [True]}),
    "mode-unknown": lambda s: s.update(mode="prox"),
    "strength-text": lambda s: s["penalties"]["0.weight"].update(strength="1"),
    "strength-infinite-in-float32": lambda s: s["penalties"]["0.weight"].update(strength=1e300),
}


@pytest.mark.parametrize("channel", ["optimizer", "own"])
@pytest.mark.parametrize("damage", _DAMAGES)
def test_whatever_is_damaged_is_a_value_error_and_changes_nothing(damage, channel):
    model = _net()
    optimizer = _sgd(model)
    reg = Regularizer(model, L1(0.1), schedule=Refit(100)).attach(optimizer)
    _train(model, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    state = copy.deepcopy(before)
    _DAMAGES[damage](state["strongreg"])
    with pytest.raises(ValueError, match=r"saved|history_every|mode=|lower the strength"):
        optimizer.load_state_dict(state) if channel == "optimizer" else reg.load_state_dict(state["strongreg"])
    assert str(optimizer.state_dict()) == str(before)


@pytest.mark.parametrize("state", [None, [], "state", {}])
def test_something_else_than_a_state_is_a_value_error(state):
    reg = Regularizer(_net(), L1(0.1))
    with pytest.raises(ValueError, match=r"damaged: a dictionary is wanted|has version None"):
        reg.load_state_dict(state)


def test_a_state_from_before_there_were_calls_reads_them_as_steps():
    model = _net()
    optimizer = _sgd(model)
    reg = Regularizer(model, L1(0.1)).attach(optimizer)
    _train(model, optimizer)
    state = reg.state_dict()
    del state["num_calls"], state["counts"]["num_allowed"]
    other = Regularizer(model, L1(0.1))
    other.load_state_dict(state)
    assert other.state_dict()["num_calls"] == other.num_steps == 3
    assert other.state_dict()["counts"]["num_allowed"] == [3, 3]


def test_relative_strengths_of_a_state_saved_before_its_attachment_are_taken_when_it_is_loaded():
    model = _net()
    unattached = Regularizer(model, L1(0.1), strength_scale="inverse_std").state_dict()
    expected = Regularizer(model, L1(0.1), strength_scale="inverse_std").attach(_sgd(model)).state_dict()["scales"]
    reg = Regularizer(model, L1(0.1)).attach(_sgd(model))
    with pytest.warns(UserWarning, match="strength_scale was uniform, is now inverse_std"):
        reg.load_state_dict(unattached)
    assert reg.state_dict()["scales"] == expected != [1.0, 1.0]
    other = Regularizer(model, L1(0.1), strength_scale="inverse_std").attach(_sgd(model))
    with pytest.warns(UserWarning, match="strength_scale was inverse_std, is now uniform"):
        other.load_state_dict(Regularizer(model, L1(0.1)).state_dict())
    assert other.state_dict()["scales"] == [1.0, 1.0]


def test_a_resumed_run_does_not_warn_again_of_what_it_has_warned_of():
    model = _net()
    optimizer = _sgd(model)
    Regularizer(model, L1(0.1)).attach(optimizer)

    def bad_step():
        model[0].weight.grad = torch.full_like(model[0].weight, torch.nan)
        optimizer.step()

    with pytest.warns(RuntimeWarning, match="warned about once"):
        bad_step()
    state = optimizer.state_dict()
    for _ in range(2):
        optimizer.load_state_dict(state)
        bad_step()


def test_names_of_data_parallelism_do_not_count_wherever_it_sits():
    def names(model, penalty=None):
        return [t.name for t in Regularizer(model, penalty or {"*weight": L1(0.1)}).targets]

    model = _net()
    compiled_parallel = torch.compile(nn.DataParallel(model), backend="eager")
    parallel_compiled = nn.DataParallel(torch.compile(model, backend="eager"))
    for wrapped in (nn.DataParallel(model), nn.DataParallel(nn.DataParallel(model)), compiled_parallel):
        assert names(wrapped) == names(wrapped, L1(0.1)) == ["0.weight", "2.weight"]
    assert names(parallel_compiled) == ["0.weight", "2.weight"]
    nested = nn.ModuleDict({"body": nn.DataParallel(model), "module": nn.Linear(2, 2)})
    assert names(nested) == ["body.0.weight", "body.2.weight", "module.weight"]
    # as the model given prints them, which is how one would copy them into a pattern
    for wrapped in (nn.DataParallel(model), compiled_parallel, parallel_compiled, nested):
        full = [name for name, _ in wrapped.named_parameters() if name.endswith("0.weight")]
        assert len(names(wrapped, {full[0]: L1(0.1)})) == 1
    optimizer = _sgd(model)
    reg = Regularizer(compiled_parallel, L1(0.1)).attach(optimizer)
    _train(model, optimizer)
    resumed = Regularizer(model, L1(0.1))
    resumed.load_state_dict(reg.state_dict())
    assert resumed.num_steps == 3
