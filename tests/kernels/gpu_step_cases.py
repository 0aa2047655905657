"""Whole steps on a GPU held to those on the CPU, in Triton's interpreter: ``test_multi_tensor.py`` runs this file."""

from __future__ import annotations

import gc
import sys
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from triton.runtime.interpreter import InterpretedFunction

from contract.devices import launches_of_a_step, take_the_cpu_for_an_accelerator
from strongreg import (
    L1,
    MCP,
    AlwaysOpen,
    CoherenceGate,
    Constant,
    CosineRamp,
    Delay,
    GroupL2,
    LinearRamp,
    Refit,
    Regularizer,
    SparseGroup,
)
from strongreg.gpu import fast_path
from strongreg.gpu.step import GpuStep
from strongreg.history import QUANTITIES
from strongreg.kernels import multi_tensor

_SGD = "sgd"
_OPTIMIZERS = {
    _SGD: lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
}
_NUM_STEPS = 4


@pytest.fixture(autouse=True)
def quiet():
    """As on a GPU: numbers leave their range without a word."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture
def on_gpu(monkeypatch):
    """Takes the CPU for a GPU, and counts the steps that were done there alone."""
    done, after_step = [], GpuStep.after_step
    monkeypatch.setattr(GpuStep, "after_step", lambda *a, **k: (done.append(1), after_step(*a, **k)))

    def begin():
        monkeypatch.setattr(multi_tensor, "DEVICES", ("cpu",))
        take_the_cpu_for_an_accelerator(monkeypatch)
        assert fast_path._work_on(torch.device("cpu"), torch.float32)
        done.clear()
        return done

    return begin


class _Run:
    """A small network in training; what it does depends on nothing but the step."""

    def __init__(self, name=_SGD, penalty=None, optimizer=None, **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 8), nn.Tanh(), nn.Linear(8, 3)
        )
        self.optimizer = (optimizer or _OPTIMIZERS[name])(self.model.parameters())
        self.reg = Regularizer(self.model, L1(0.01) if penalty is None else penalty, **options)
        self.reg.attach(self.optimizer)

    def gradients(self, step):
        torch.manual_seed(step)
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(torch.randn(8, 1, 5, 5)), torch.randint(3, (8,)))
        loss.backward()
        return loss

    def train(self, steps=range(_NUM_STEPS), change=lambda run, step: None):
        for step in steps:
            self.gradients(step)
            change(self, step)
            self.optimizer.step()
        return self


def _assert_same(found, expected):
    for a, b in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert torch.equal(a == 0, b == 0)
    assert found.reg._counts.state_dict() == expected.reg._counts.state_dict()
    assert found.reg.history.steps.tolist() == expected.reg.history.steps.tolist()
    for quantity in QUANTITIES:
        for read in (found.reg.history.per_layer, found.reg.history.__getitem__):
            other = getattr(expected.reg.history, read.__name__)(quantity)
            np.testing.assert_allclose(read(quantity), other, rtol=1e-5, atol=1e-6)
    hidden = [each.reg._zero_masks.state_dict(each.reg.targets) for each in (found, expected)]
    assert {name: mask.sum().item() for name, mask in hidden[0].items()} == {
        name: mask.sum().item() for name, mask in hidden[1].items()
    }


@pytest.mark.parametrize(
    ("name", "penalty", "options"),
    [
        (_SGD, L1(0.01), {}),
        ("adamw", L1(0.01), {}),
        (_SGD, L1(0.03), {"gate": CoherenceGate(0.8, scope="layer"), "schedule": LinearRamp(4, initial=0.2, start=1)}),
        ("adamw", GroupL2(0.05), {"gate": Delay(2), "schedule": CosineRamp(5, final=0.2), "history_every": 2}),
        (_SGD, SparseGroup(0.02), {"gate": AlwaysOpen(), "strength_scale": "inverse_std", "history_every": 0}),
        (
            "adamw",
            {"0.weight": L1(0.05), "4.weight": MCP(0.0), "6.weight": GroupL2(0.05)},
            {"gate": CoherenceGate(0.9)},
        ),
    ],
    ids=["l1", "l1-adamw", "by-layer", "group", "always-open", "mixed"],
)
def test_whole_steps_are_those_on_the_cpu(name, penalty, options, on_gpu):
    expected = _Run(name, penalty, **options).train()
    done = on_gpu()
    found = _Run(name, penalty, **options).train()
    assert len(done) == _NUM_STEPS
    _assert_same(found, expected)


@pytest.mark.parametrize(
    ("name", "start", "scope"), [(_SGD, 0, "global"), (_SGD, 3, "layer"), ("adamw", 1, "layer"), ("adamw", 3, "global")]
)
def test_a_refit_holds_the_zeros_that_it_holds_on_the_cpu(name, start, scope, on_gpu):
    """The gate closes just before the refit, or opens again."""
    penalty, schedule = L1(0.03 if name == _SGD else 0.5), Refit(start, before=LinearRamp(4, initial=0.5))
    options = {"gate": CoherenceGate(0.85 if name == _SGD else 0.5, scope=scope), "schedule": schedule}

    def change(run, step):
        if step == 0:
            with torch.no_grad():
                run.model[4].weight[:, ::3] = 0
        if step == 2 or (scope == "layer" and step == 1):
            for param in run.model.parameters():
                param.grad *= 1e-5

    expected = _Run(name, penalty, **options).train(change=change)
    done = on_gpu()
    found = _Run(name, penalty, **options).train(change=change)
    assert len(done) == _NUM_STEPS
    _assert_same(found, expected)
    opened = found.reg.history["open"].tolist()
    assert start < 3 or name != _SGD or (opened[0] > 0 and opened[2] == 0)
    assert (found.model[4].weight == 0).any()


@pytest.mark.parametrize("name", [_SGD, "adamw"])
def test_gradients_that_are_not_finite_close_the_gate_whosever_they_are(name, on_gpu):
    def spoil(run, step):
        if step in (1, 3):
            run.model[1 if step == 1 else 4].bias.grad[1] = float("nan" if step == 1 else "inf")

    with pytest.warns(RuntimeWarning, match="NaN or infinity"):
        expected = _Run(name, gate=AlwaysOpen()).train(range(4), spoil)
    done = on_gpu()
    with pytest.warns(RuntimeWarning, match="NaN or infinity"):
        found = _Run(name, gate=AlwaysOpen()).train(range(4), spoil)
        found.reg._counts.warn_once_of_nonfinite()
    assert len(done) == 4
    assert found.reg.num_nonfinite == expected.reg.num_nonfinite >= 2
    assert found.reg.history["open"].tolist() == expected.reg.history["open"].tolist()


def test_tensors_without_a_gradient_and_without_entries_are_left_alone(on_gpu):
    def lose(run, step):
        run.model[4].weight.grad = None if step % 3 == 1 else run.model[4].weight.grad
        run.model[1].bias.grad = None

    expected = _Run(schedule=Refit(3)).train(change=lose)
    done = on_gpu()
    found = _Run(schedule=Refit(3)).train(change=lose)
    assert len(done) == _NUM_STEPS
    _assert_same(found, expected)


def _optimized_by(run, groups, **options):
    run.reg.detach()
    run.optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, **options)
    run.reg.attach(run.optimizer)


def _two_learning_rates(run):
    params = list(run.model.parameters())
    _optimized_by(run, [{"params": params[:4]}, {"params": params[4:], "lr": 0.02}])


def _loss_scale(run):
    _optimized_by(run, run.model.parameters(), fused=True)
    run.optimizer.grad_scale, run.optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)


def _another_dtype(run):
    run.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3, dtype=torch.float64))]})


class _Mine(CoherenceGate):
    """A class of a user's, which may decide by something else."""


_OTHERWISE = {
    "tensor-lr": lambda run: run.optimizer.param_groups[0].update(lr=torch.tensor(0.1)),
    "maximize": lambda run: run.optimizer.param_groups[0].update(maximize=True),
    "loss-scale": _loss_scale,
    "two-groups": _two_learning_rates,
    "another-dtype": _another_dtype,
    "gate-of-ones-own": lambda run: setattr(run.reg, "gate", _Mine(0.7)),
}


@pytest.mark.parametrize("name", _OTHERWISE)
def test_what_the_loops_do_not_know_goes_the_general_way(name, on_gpu):
    expected = _Run()
    _OTHERWISE[name](expected)
    expected.train(range(4))
    done = on_gpu()
    found = _Run()
    _OTHERWISE[name](found)
    found.train(range(4))
    assert not done
    _assert_same(found, expected)


def test_a_gradient_of_another_layout_goes_the_general_way_for_its_step(on_gpu):
    def restride(run, step):
        if step % 2:
            run.model[4].weight.grad = run.model[4].weight.grad.T.contiguous().T

    expected = _Run(schedule=Refit(3)).train(change=restride)
    done = on_gpu()
    found = _Run(schedule=Refit(3)).train(change=restride)
    assert len(done) == _NUM_STEPS // 2
    _assert_same(found, expected)


def test_parameters_that_were_moved_or_replaced_groups_are_noticed(on_gpu):
    def move(run, step):
        if step == 1:
            run.model[4].weight.data = run.model[4].weight.data.clone()
        if step == 2:
            run.optimizer.load_state_dict(run.optimizer.state_dict())
        if step == 3:
            run.optimizer.param_groups[0]["lr"] = 0.05

    expected = _Run().train(change=move)
    done = on_gpu()
    found = _Run().train(change=move)
    assert len(done) == _NUM_STEPS
    _assert_same(found, expected)


class _Replacing(torch.optim.Optimizer):
    """Puts new tensors into its parameters, as some optimizers do."""

    def __init__(self, params, dtype=None):
        super().__init__(params, {"lr": 0.1})
        self._dtype = dtype

    @torch.no_grad()
    def step(self):
        self._held = [param.data for param in self.param_groups[0]["params"]]  # so that their memory is not taken again
        for param in self.param_groups[0]["params"]:
            param.data = (param.data - 0.1 * param.grad).to(self._dtype or param.dtype)


@pytest.mark.parametrize("coherence_of", ["gradient", "step"])
def test_an_optimizer_may_replace_the_tensors_of_its_parameters(coherence_of, on_gpu):
    def run():
        return _Run(gate=AlwaysOpen(), schedule=Refit(2), coherence_of=coherence_of, optimizer=_Replacing).train()

    expected, done = run(), on_gpu()
    found = run()
    assert len(done) == _NUM_STEPS
    _assert_same(found, expected)


def test_an_optimizer_that_changes_dtypes_on_the_way_is_an_error(on_gpu):
    on_gpu()
    run = _Run(optimizer=lambda params: _Replacing(params, torch.float64))
    with pytest.raises(RuntimeError, match="STRONGREG_COMPILED=0"):
        run.train(range(1))


@pytest.mark.parametrize("change", [lambda w: w[:4], lambda w: w.view(18, 8), lambda w: w.view(8, 18).t()])
def test_another_shape_at_the_same_address_goes_the_general_way(change, on_gpu):
    done = on_gpu()
    run = _Run().train(range(1))
    weight = run.model[4].weight
    weight.data, weight.grad = change(weight.data), change(weight.grad)
    assert run.reg._fast_path._step.before_step(run.optimizer, run.reg._counts, run.reg._zero_masks, 1) is False
    assert len(done) == 1


@pytest.mark.parametrize("name", [_SGD, "adamw"])
def test_a_learning_rate_may_become_0_within_the_step(name, on_gpu):
    def train():
        run = _Run(name)
        run.reg.detach()
        run.optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.param_groups[0].update(lr=0.0))
        run.reg.attach(run.optimizer)
        return run.train(range(1))

    expected, done = train(), on_gpu()
    found = train()
    assert len(done) == 1
    _assert_same(found, expected)


def test_a_parameter_without_entries_counts_as_one_with_a_gradient(on_gpu):
    model = nn.ParameterList([nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(0, 3))])
    counts = []
    for begin in (lambda: None, on_gpu):
        begin()
        optimizer = torch.optim.SGD(model, lr=0.1)
        reg = Regularizer(model, L1(0.1), gate=AlwaysOpen()).attach(optimizer)
        for param in model:
            param.grad = torch.ones_like(param)
        optimizer.step()
        counts.append(reg._counts.state_dict())
        reg.detach()
    assert counts[0] == counts[1]
    assert counts[0]["num_open"] == [1, 1]


def test_a_captured_step_records_nothing_and_a_captured_refit_is_an_error(on_gpu, monkeypatch):
    """On the CPU as if a graph were captured; that it is replayed well, ``test_on_cuda.py`` shows."""
    done = on_gpu()
    run, refit = _Run().train(range(2)), _Run(schedule=Refit(3)).train(range(1))
    spare = lambda shape: torch.empty(shape, dtype=torch.int64)  # noqa: E731
    monkeypatch.setattr(multi_tensor, "_pinned", spare)
    for name in ("gpu.step", "gpu.fast_path", "kernels.multi_tensor", "refit", "history"):
        monkeypatch.setattr(f"strongreg.{name}.is_captured", lambda device: True)
    run.train(range(2, 3))
    step = run.reg._fast_path._step
    assert (len(done), run.reg.num_steps, len(run.reg.history)) == (4, 3, 2)
    with pytest.raises(RuntimeError, match="capture forward and backward alone"):
        refit.train(range(1, 2))
    run.reg.detach()
    assert run.reg._fast_path._step is None
    assert run.reg._fast_path._in_graphs[0][0] is step


def test_a_detached_regularizer_lets_the_optimizer_go(on_gpu):
    on_gpu()
    run = _Run().train(range(1))
    optimizer = weakref.ref(run.optimizer)
    run.reg.detach()
    del run.optimizer
    gc.collect()
    assert optimizer() is None


def test_loops_that_do_not_compile_are_a_warning_and_the_general_way(on_gpu, monkeypatch):
    done = on_gpu()
    expected = _Run().train(range(2))
    done.clear()
    fast_path._work_on.cache_clear()
    monkeypatch.setattr(GpuStep, "_decide", lambda *a, **k: 1 / 0)
    with pytest.warns(RuntimeWarning, match="Triton does not work on cpu .ZeroDivisionError"):
        found = _Run().train(range(2))
    fast_path._work_on.cache_clear()
    assert not done
    _assert_same(found, expected)


@pytest.mark.parametrize("schedule", [Constant(), Refit(2)], ids=repr)
def test_a_closure_is_measured_once(schedule, on_gpu):
    def train(run):
        for step in range(4):
            evaluations = []

            def closure(step=step, evaluations=evaluations):
                evaluations.append(1)
                return run.gradients(step)

            run.optimizer.step(closure)
            assert len(evaluations) == 1
        return run

    expected = train(_Run(schedule=schedule))
    done = on_gpu()
    found = train(_Run(schedule=schedule))
    assert len(done) == 4
    _assert_same(found, expected)


def test_a_step_that_fails_does_not_count(on_gpu, monkeypatch):
    done = on_gpu()
    run = _Run(schedule=Refit(2)).train(range(2))

    def fail(*_args, **_kwargs):
        raise RuntimeError("the optimizer failed")

    run.gradients(2)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[torch.optim.SGD.__module__], "sgd", fail)
        with pytest.raises(RuntimeError, match="the optimizer failed"):
            run.optimizer.step()
    assert (run.reg.num_steps, len(run.reg.history), len(done)) == (2, 2, 2)
    run.train(range(2, 5))
    assert (run.reg.num_steps, len(done)) == (5, 5)


def test_more_tensors_than_are_worked_on_at_once(on_gpu, monkeypatch):
    monkeypatch.setattr("strongreg.gpu.step._MOST_AT_ONCE", 2)
    expected = _Run(gate=CoherenceGate(0.9, scope="layer"), schedule=Refit(3)).train()
    done = on_gpu()
    found = _Run(gate=CoherenceGate(0.9, scope="layer"), schedule=Refit(3)).train()
    assert len(done) == _NUM_STEPS
    _assert_same(found, expected)


def test_a_copy_of_the_regularizer_goes_on_by_itself(on_gpu):
    import copy

    done = on_gpu()
    run = _Run().train(range(2))
    other = copy.deepcopy(run.reg)
    run.train(range(2, 4))
    assert (run.reg.num_steps, other.num_steps, len(done)) == (4, 2, 4)
    assert other.history["coherence"].tolist() == run.reg.history["coherence"][:2].tolist()


@pytest.mark.parametrize(("name", "num_loops"), [("sgd", 4), ("adamw", 7)])
def test_a_step_takes_few_launches_whatever_the_number_of_tensors(name, num_loops, on_gpu, monkeypatch):
    on_gpu()
    launched, run = [], InterpretedFunction.run
    monkeypatch.setattr(InterpretedFunction, "run", lambda self, *a, **k: (launched.append(self), run(self, *a, **k)))
    for num_layers in (3, 9):
        launched.clear()
        launches_of_a_step(num_layers, L1(0.1), name, by_group=False)
        assert len(launched) == 3 * num_loops
