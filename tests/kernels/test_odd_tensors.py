"""Tensors that are not what they were, or not what they seem: nothing is read or written beside them."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from strongreg import L1, L2, AlwaysOpen, CoherenceGate, Gate, Refit, Regularizer, Schedule
from strongreg.groups import Target
from strongreg.kernels import Passes, compiled, size_of_all
from strongreg.kernels.blocks import BlockedPasses
from strongreg.kernels.layout import all_laid_out_as

CPU = torch.device("cpu")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a process of its own says, that may be killed."""
    options = {"capture_output": True, "text": True, "check": False, "timeout": 300}
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, **options)


@pytest.mark.parametrize("rows", [4, 20])
def test_a_parameter_may_change_its_number_of_rows(rows):
    flat = torch.ones(200)
    model = nn.Linear(6, 10, bias=False)
    model.weight.data = flat[:60].view(10, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reg = Regularizer(model, L1(0.5), gate=AlwaysOpen()).attach(optimizer)
    for shape in (10, rows):
        optimizer.zero_grad()
        model.weight.data = flat[: shape * 6].view(shape, 6)
        model(torch.zeros(1, 6)).sum().backward()
        optimizer.step()
    expected = torch.ones(200)
    expected[:60] -= 0.05
    expected[: rows * 6] -= 0.05
    torch.testing.assert_close(flat, expected)
    sizes = [0.95] * min(6 * rows, 60) + [1.0] * max(6 * rows - 60, 0)
    assert reg.history["weight_norm"][-1] == pytest.approx(math.sqrt(sum(size**2 for size in sizes)), rel=1e-5)


class Wrapped(torch.Tensor):
    """A tensor whose entries lie elsewhere."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, strides=inner.stride())

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # noqa: D105
        def unwrapped(x):
            return x.inner if isinstance(x, cls) else x

        args = [[unwrapped(x) for x in a] if isinstance(a, list | tuple) else unwrapped(a) for a in args]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["wrapped", "zero", "negative"])
def test_gradients_that_are_no_plain_memory(kind, bias):
    made = {
        "wrapped": Wrapped,
        "zero": lambda grad: torch._efficientzerotensor(grad.shape),
        "negative": lambda grad: torch._neg_view(-grad),
    }[kind]
    numbers = []
    for odd in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(6, 10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        reg = Regularizer(model, L1(0.1)).attach(optimizer)
        grads = [torch.randn_like(param) * (kind != "zero") for param in model.parameters()]
        for param, grad in zip(model.parameters(), grads, strict=True):
            param.grad = made(grad) if odd and bias == (param.dim() == 1) else grad
        reg._before_step(optimizer, (optimizer,), {})
        assert not reg.num_nonfinite
        numbers.append((reg._decision.opened.tolist(), reg._before.gradient_sq.tolist()))
        reg._before = reg._decision = None
    assert numbers[1] == numbers[0]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_odd_tensor_among_plain_ones_is_laid_out_and_the_others_are_left_as_they_are(place):
    odd = {
        "none": lambda tensor: None,
        "wrapped": Wrapped,
        "negative": lambda tensor: torch._neg_view(-tensor),
        "double": lambda tensor: tensor.double(),
        "transposed": lambda tensor: tensor.t().contiguous().t(),
        "of no entries": lambda tensor: tensor,
    }
    for kind, made in odd.items():
        shapes = [(4, 6) if kind != "of no entries" or i != place else (0, 6) for i in range(3)]
        weights, others = ([torch.randn(shape) for shape in shapes] for _ in range(2))
        given = [made(other) if i == place else other for i, other in enumerate(others)]
        laid_out = all_laid_out_as(weights, given)
        assert [each is other for each, other in zip(laid_out, others, strict=True)] == [
            i != place or kind == "of no entries" for i in range(3)
        ]
        expected = [None if kind == "none" and i == place else other for i, other in enumerate(others)]
        for each, other in zip(laid_out, expected, strict=True):
            assert each is other or torch.equal(each, other)


def test_a_tensor_whose_memory_was_freed_is_an_error():
    each = Target("weight", nn.Parameter(torch.randn(4, 3)), L1(0.1), by_pattern=False)
    gradient = torch.randn(4, 3)
    gradient.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError):
        Passes([each]).products([gradient], [each.param.detach()], CPU)


def test_a_state_of_another_shape_is_an_error():
    each = Target("weight", nn.Parameter(torch.randn(4, 3)), L1(0.1), by_pattern=False)
    with pytest.raises(RuntimeError, match=r"shape \(2, 3\).*\(4, 3\).*anew"):
        Passes([each]).products([torch.randn(2, 3)], [each.param.detach()], CPU)


def test_large_weights_with_gaps():
    weight = torch.randn(300, 600)[:, :400]
    each = Target("weight", nn.Parameter(weight), L1(0.1), by_pattern=False)
    gradient = torch.randn(300, 400)
    sums = BlockedPasses([each]).products([gradient], [None], [weight])
    expected = 0.1 * (gradient * weight.sign()).double().sum()
    torch.testing.assert_close(sums[0, 1], expected, rtol=1e-4, atol=1e-3)


def test_gradients_that_are_finer_than_the_weights_are_not_rounded():
    each = Target("weight", nn.Parameter(torch.ones(30, 30, dtype=torch.float16)), L1(0.1), by_pattern=False)
    gradient = torch.full((30, 30), 3e-8)
    sums = Passes([each]).products([gradient], [each.param.detach()], CPU)
    assert sums[0, 0].item() == pytest.approx(900 * 3e-8**2, rel=1e-3)


@pytest.mark.parametrize("value", [1e200, 1e-200])
def test_the_size_of_float64_does_not_overflow_or_underflow(value):
    assert 0 < size_of_all([torch.full((4,), value, dtype=torch.float64)], CPU).item() < math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_a_penalty_of_strength_0_sees_closes_no_gate(value):
    weights = nn.ParameterDict({"a": nn.Parameter(torch.randn(5, 5)), "b": nn.Parameter(torch.randn(5, 5))})
    optimizer = torch.optim.SGD(weights.parameters(), lr=0.1)
    reg = Regularizer(weights, {"a": L1(0.01), "b": L2(0.0)}).attach(optimizer)
    with torch.no_grad():
        weights["b"][0, 0] = value
    for param in weights.parameters():
        param.grad = torch.randn(5, 5)
    optimizer.step()
    assert reg.history.per_layer("open")[-1].tolist() == [1.0, 0.0]


def test_gradients_near_the_end_of_float32_are_recorded_without_a_warning():
    weights = nn.ParameterList([torch.randn(5, 5)])
    optimizer = torch.optim.SGD(weights.parameters(), lr=1e-40)
    reg = Regularizer(weights, L1(0.01)).attach(optimizer)
    weights[0].grad = torch.full((5, 5), 3e38)
    optimizer.step()
    assert reg.history["gradient_norm"][-1] == math.inf


class Half(Schedule):
    def factor(self, step):  # noqa: ARG002
        return 0.5


class Open(Gate):
    def is_open(self, coherence, step):  # noqa: ARG002
        return bool(coherence > -2)


def test_a_users_gate_and_schedule_may_return_numbers():
    weights = nn.ParameterList([torch.ones(2, 2)])
    optimizer = torch.optim.SGD(weights.parameters(), lr=0.1)
    Regularizer(weights, L1(1.0), gate=Open(), schedule=Half()).attach(optimizer)
    weights[0].grad = torch.zeros(2, 2)
    optimizer.step()
    torch.testing.assert_close(weights[0].detach(), torch.full((2, 2), 0.95))


def test_the_zeros_that_a_refit_keeps_take_no_memory_between_the_steps():
    weights = nn.ParameterList([torch.zeros(2, 2)])
    optimizer = torch.optim.SGD(weights.parameters(), lr=0.1)
    reg = Regularizer(weights, L1(1.0), schedule=Refit(0)).attach(optimizer)
    weights[0].grad = torch.ones(2, 2)
    optimizer.step()
    assert weights[0].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert reg._marked is None


def test_a_hook_of_others_that_changes_the_gradient_counts_under_adam():
    def coherence(order):
        torch.manual_seed(0)
        weights = nn.ParameterList([torch.randn(8, 8)])
        optimizer = torch.optim.Adam(weights.parameters(), lr=0.01)
        kept = []
        if order == "foreign":
            optimizer.register_step_pre_hook(lambda *_: kept.append(weights[0].grad.mul_(1e-12)) and None)
        reg = Regularizer(weights, L1(0.3), gate=CoherenceGate(0.7)).attach(optimizer)
        if order == "after":
            optimizer.register_step_pre_hook(lambda *_: kept.append(weights[0].grad.mul_(1e-12)) and None)
        weights[0].grad = torch.randn(8, 8)
        optimizer.step()
        return reg.history["coherence"][-1]

    assert coherence("after") == pytest.approx(coherence("foreign"), abs=1e-4)
    assert coherence("none") > 0.5 > coherence("after")


def test_at_a_learning_rate_of_0_the_gate_is_closed_under_adam():
    weights = nn.ParameterList([torch.randn(8, 8)])
    optimizer = torch.optim.AdamW(weights.parameters(), lr=0.0)
    reg = Regularizer(weights, L1(0.01)).attach(optimizer)
    weights[0].grad = torch.randn(8, 8)
    optimizer.step()
    assert reg.history["open"].tolist() == [0.0]


_STEP = """
import torch, strongreg
torch.manual_seed(0)
model = torch.nn.Linear(20, 30)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
reg = strongreg.Regularizer(model, strongreg.L1(0.1)).attach(optimizer)
model(torch.ones(2, 20)).square().sum().backward()
%s
print(reg.history["coherence"].tolist(), float(model.weight.abs().sum()))
"""


@pytest.mark.slow
def test_a_compiled_step_and_a_numba_that_is_turned_off_give_the_same():
    expected = run(_STEP % "optimizer.step()")
    assert expected.returncode == 0, expected.stderr
    compiled_step = 'torch.compile(lambda: optimizer.step(), backend="eager")()'
    for code, environment in ((compiled_step, {}), ("optimizer.step()", {"NUMBA_DISABLE_JIT": "1"})):
        done = run(_STEP % code, **environment)
        assert done.returncode == 0, done.stderr
        (cosine,), size = (eval(part) for part in done.stdout.rsplit(" ", 1))
        (same,), same_size = (eval(part) for part in expected.stdout.rsplit(" ", 1))
        assert (cosine, size) == pytest.approx((same, same_size), rel=1e-6)


def test_a_numba_that_fails_at_its_first_call_is_done_without(monkeypatch):
    class Broken:
        def __getattr__(self, name):
            raise EOFError("the cache ends here")

    monkeypatch.setattr(compiled, "_loops", Broken)
    compiled._tried.cache_clear()
    each = Target("weight", nn.Parameter(torch.randn(4, 3)), L1(0.1), by_pattern=False)
    try:
        with pytest.warns(RuntimeWarning, match=r"numba does not work here \(EOFError.*STRONGREG_COMPILED=0"):
            sums = Passes([each]).products([each.param.detach()], [each.param.detach()], CPU)
        assert sums[0, 3].item() == pytest.approx(float(each.param.detach().square().sum()))
    finally:
        compiled._tried.cache_clear()


def test_a_step_after_the_main_thread_has_ended(monkeypatch):
    def refuse(_count):
        class Ended:
            def submit(self, *_):
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")

        return Ended()

    weight = torch.randn(300, 400)
    way = compiled.CompiledPasses([Target("weight", nn.Parameter(weight), L1(0.1), by_pattern=False)])
    expected = way.products([weight], [None], [weight])
    monkeypatch.setattr(compiled, "_WORTH_A_THREAD", 1000)
    monkeypatch.setattr(compiled, "_threads", refuse)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert torch.equal(way.products([weight], [None], [weight]), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_may_have_biases(dtype):
    torch.manual_seed(0)
    model = nn.Linear(20, 4).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    reg = Regularizer(model, L1(0.05), gate=AlwaysOpen()).attach(optimizer)
    model(torch.ones(3, 20, dtype=dtype)).sum().backward()
    model.weight.grad.zero_()
    before = model.weight.detach().clone()
    optimizer.step()
    expected = (before.float().abs() - 0.025).clamp(min=0).to(dtype)
    torch.testing.assert_close(model.weight.abs(), expected, rtol=0, atol=0)
    assert reg.num_nonfinite == 0
    assert torch.isfinite(torch.as_tensor(size_of_all([model.bias.grad], CPU)))
