"""The ways of the CPU compute what the penalties' own methods compute."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from contract.penalties import CASES
from strongreg import L1, L2, ElasticNet, GroupL2
from strongreg.groups import Target
from strongreg.kernels import Passes, compiled, size_of_all
from strongreg.kernels.blocks import BlockedPasses
from strongreg.kernels.compiled import CompiledPasses
from strongreg.kernels.reference import ReferencePasses
from strongreg.pull import foreseen_steps

WAYS = (CompiledPasses, BlockedPasses)
every_way = pytest.mark.parametrize("way", WAYS)
SHAPES = [(), (0,), (1,), (255,), (256, 1), (257,), (3, 0), (0, 2), (7, 300), (65537,), (300, 2, 200), (3, 70000)]
SHAPES_OF_GROUPS = [shape for shape in SHAPES if len(shape) > 1]


def target(penalty, weight, name="weight"):
    return Target(name, nn.Parameter(weight), penalty, by_pattern=False)


def tensors(shape, dtype=torch.float32):
    """Weights with zeros, a gradient, and weights after a step."""
    weight = torch.randn(shape, dtype=torch.float64)
    weight = torch.where(torch.rand(shape) < 0.3, 0.0, weight)
    if weight.dim() > 1 and len(weight) > 2:
        weight[1] = 0.0
    return [each.to(dtype) for each in (weight, torch.randn(shape), weight + 0.1 * torch.randn(shape))]


def exact_products(targets, pulls, minus, weights):
    """What the penalties' own methods give in float64."""
    wide = [[None if each is None else each.double() for each in column] for column in (pulls, minus, weights)]
    return ReferencePasses(targets).products(*wide)


def assert_same_sums(sums, expected):
    """Inner products by their natural size: the product of the norms."""
    size = torch.stack(
        [expected[:, 0], (expected[:, 0] * expected[:, 2]).sqrt(), expected[:, 2], expected[:, 3]], dim=1
    )
    assert torch.equal(sums.isfinite(), expected.isfinite())
    finite = expected.isfinite()
    assert ((sums - expected).abs()[finite] <= 5e-5 * size[finite]).all()  # blocks are summed in float32


def assert_same_weights(weight, expected):
    """Equal to the last bit but one; zeros and their signs exactly."""
    assert torch.equal(weight == 0, expected == 0)
    assert torch.equal(weight.signbit(), expected.signbit())
    torch.testing.assert_close(weight, expected, rtol=2 * torch.finfo(weight.dtype).eps, atol=0)


_FITTING = [
    pytest.param(case.penalty, shape, id=f"{name}-{shape}")
    for name, case in CASES.items()
    for shape in (SHAPES_OF_GROUPS if case.within else SHAPES)
    if getattr(case.penalty, "dim", None) is None
]


@every_way
@pytest.mark.parametrize(("penalty", "shape"), _FITTING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_both_passes(way, penalty, shape, dtype):
    weight, grad, moved = tensors(shape, dtype)
    each = target(penalty, weight.clone())
    if way is CompiledPasses and dtype == torch.bfloat16:
        assert not way.accepts(each)
        return
    assert way.accepts(each)
    fast, reference = way([each]), ReferencePasses([each])
    for pull, minus in ((grad, None), (None, None), (weight, moved)):
        assert_same_sums(fast.products([pull], [minus], [weight]), exact_products([each], [pull], [minus], [weight]))
    torch.testing.assert_close(fast.squares([grad]), grad.double().square().sum()[None], rtol=5e-5, atol=0)
    for step in (0.3, 0.01):
        ours, theirs = weight.clone(), weight.clone()
        fast.shrink([ours], [0.5], [step])
        reference.shrink([theirs], [0.5], [step])
        assert_same_weights(ours, theirs)


@pytest.mark.parametrize("way", [*WAYS, ReferencePasses])
@pytest.mark.parametrize("penalty", [L1(0.7), ElasticNet(0.7), GroupL2(0.7)], ids=repr)
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.3}, {"maximize": True, "weight_decay": 0.1}, {"betas": (0.5, 0.6), "eps": 0.1}],
    ids=str,
)
def test_the_foreseen_step_of_adam_is_the_one_that_it_takes(way, penalty, kind, options):
    weight, _, _ = tensors((9, 70, 120), torch.float64)
    each = target(penalty, weight.clone())
    optimizer = kind([each.param], lr=1e-3, **options)
    for _ in range(3):
        each.param.grad = torch.randn_like(each.param)
        before, grad = each.param.detach().clone(), each.param.grad
        (foreseen,) = foreseen_steps([each], optimizer, optimizer.param_groups)
        sums = way([each]).foreseen([grad], [foreseen], [before])
        optimizer.step()
        expected = exact_products([each], [(before - each.param.detach()) / 1e-3], [None], [before])
        assert_same_sums(sums[:, :4], expected)
        assert sums[0, 4].item() == pytest.approx(grad.square().sum().item())
    assert way([each]).foreseen([None], [foreseen], [before])[0, [0, 1, 2, 4]].tolist() == [0, 0, 0, 0]


@every_way
@pytest.mark.parametrize("penalty", [L1(0.7), GroupL2(0.7)], ids=repr)
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "expanded gradient", "gaps"])
def test_memory_layouts(way, penalty, layout):
    weight, grad, _ = tensors((8, 6, 5, 5))
    if layout == "channels_last":
        weight = weight.to(memory_format=torch.channels_last)
    elif layout == "transposed":
        weight = weight.mT.contiguous().mT
    elif layout == "expanded gradient":
        grad = grad[:, :, :1, :1].expand(8, 6, 5, 5)
    else:
        weight = torch.cat([weight, weight], dim=1)[:, :6]
    each = target(penalty, weight)
    assert CompiledPasses.accepts(each) is (layout != "gaps")
    if not way.accepts(each):
        return
    expected = exact_products([each], [grad], [None], [weight])
    assert_same_sums(way([each]).products([grad], [None], [weight]), expected)
    shrunk = penalty.prox(weight, 0.1)
    way([each]).shrink([each.param.detach()], [1.0], [0.1])
    assert_same_weights(each.param.detach(), shrunk)


@every_way
@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e22, 1e30])
def test_gradients_whose_squares_leave_the_range_of_float32(way, scale):
    weight, grad, _ = tensors((40, 300))
    each = target(L1(1e-3), weight)
    sums = way([each]).products([grad * scale], [None], [weight])
    exact = (grad * scale).double()
    expected = torch.stack([exact.square().sum(), 1e-3 * (exact * weight.sign()).sum()])
    torch.testing.assert_close(sums[0, :2], expected, rtol=1e-5, atol=1e-12 * float(expected[0].sqrt()))


@every_way
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("penalty", [L1(0.5), L2(0.5), GroupL2(0.5)], ids=repr)
def test_what_is_not_finite_shows(way, value, penalty):
    weight, grad, _ = tensors((9, 500))
    each = target(penalty, weight.clone())
    broken = grad.clone()
    broken[4, 321] = value
    sums = way([each]).products([broken], [None], [weight])
    assert not sums[0, 0].isfinite()
    assert not way([each]).squares([broken]).isfinite()
    assert not size_of_all([grad, broken], torch.device("cpu")).item() < math.inf
    weight[4, 321] = value
    assert not way([each]).products([grad], [None], [weight])[0, 3].isfinite()
    expected = penalty.prox(weight, 0.1)
    way([each]).shrink([weight], [1.0], [0.1])
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=0, equal_nan=True)


@every_way
@pytest.mark.parametrize(("factor", "step_size"), [(0.0, 1.0), (1.0, 0.0), (1.0, -0.1)])
def test_a_closed_gate_changes_no_bit(way, factor, step_size):
    weight = torch.tensor([0.0, -0.0, 0.3, -0.3])
    way([target(L1(1.0), weight)]).shrink([weight], [factor], [step_size])
    assert torch.equal(weight.view(torch.int32), torch.tensor([0.0, -0.0, 0.3, -0.3]).view(torch.int32))


@every_way
def test_tensors_on_the_host_may_be_given_as_factors(way):
    weight = torch.tensor([0.5, -2.0])
    way([target(L1(1.0), weight)]).shrink([weight], [torch.tensor(0.5)], [torch.tensor(2.0)])
    assert weight.tolist() == [0.0, -1.0]


@every_way
def test_autograd_sees_that_weights_have_changed(way):
    each = target(L1(1.0), torch.ones(3))
    loss = (each.param**2).sum()
    with torch.no_grad():
        way([each]).shrink([each.param.detach()], [1.0], [0.1])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_sums_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(compiled, "_WORTH_A_THREAD", 1000)
    weight, grad, moved = tensors((1200, 700))
    small, small_grad, _ = tensors((50,))
    targets = [target(L1(0.5), weight), target(L2(0.5), small)]
    arguments = [grad, small_grad], [None, None], [weight, small]
    sums, weights = [], []
    for count in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        sums.append(CompiledPasses(targets).products(*arguments))
        weights.append(moved.clone())
        CompiledPasses(targets[:1]).shrink([weights[-1]], [1.0], [0.1])
    assert all(torch.equal(each, sums[0]) for each in sums)
    assert all(torch.equal(each, weights[0]) for each in weights)


class _Few:
    """Begins as many threads as there may be; what comes after them is put off for ever, as where no more can begin."""

    def __init__(self, number):
        self.number, self.pool, self.put_off, self.begun = number, ThreadPoolExecutor(4), [], []

    def submit(self, work):
        if len(self.begun) == self.number:
            self.put_off.append(work)
            raise RuntimeError("can't start new thread")
        self.begun.append(self.pool.submit(work))
        return self.begun[-1]


@pytest.fixture
def one_piece_each(monkeypatch):
    """A pass over 40 pieces by four threads, whose work is what the test says: ``run(work)``."""
    monkeypatch.setattr(compiled, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    way = CompiledPasses([target(L1(0.5), torch.zeros(8, 8))])
    return lambda work: way._in_threads(work, 40)


@pytest.mark.parametrize("number", range(4))
def test_threads_that_cannot_begin_leave_their_work_to_the_others_who_are_waited_for(
    one_piece_each, monkeypatch, number
):
    few, done = _Few(number), []
    monkeypatch.setattr(compiled, "_threads", lambda count: few)
    one_piece_each(lambda first, last: (time.sleep(0.01), done.extend(range(first, last))))
    assert sorted(done) == list(range(40))
    assert all(future.done() for future in few.begun)


def test_an_interrupted_pass_leaves_nothing_to_a_thread_that_begins_late(one_piece_each, monkeypatch):
    few, done = _Few(1), []
    monkeypatch.setattr(compiled, "_threads", lambda count: few)

    def work(*share):
        done.append(share)
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt):
        one_piece_each(work)
    assert all(future.done() for future in few.begun)
    num_done = len(done)
    for late in few.put_off:
        late()
    assert len(done) == num_done


def test_what_fails_in_another_thread_is_an_error(one_piece_each):
    def work(*_):
        if threading.current_thread() is not threading.main_thread():
            raise ZeroDivisionError
        time.sleep(0.05)

    with pytest.raises(ZeroDivisionError):
        one_piece_each(work)


def test_several_threads_of_the_user_do_not_disturb_one_another():
    pairs = [tensors((300, 400))[:2] for _ in range(8)]
    ways = [CompiledPasses([target(L1(0.5), weight)]) for weight, _ in pairs]
    alone = [way.products([grad], [None], [weight]) for way, (weight, grad) in zip(ways, pairs, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda way, pair: way.products([pair[1]], [None], [pair[0]]), ways * 5, pairs * 5))
    assert all(torch.equal(got, expected) for got, expected in zip(together, alone * 5, strict=True))


@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 700)), min_size=1, max_size=6),
    names=st.lists(st.sampled_from(sorted(CASES)), min_size=6, max_size=6),
    dtypes=st.lists(st.sampled_from([torch.float32, torch.float64, torch.float16]), min_size=6, max_size=6),
    without=st.integers(0, 6),
)
def test_a_network_of_many_kinds(sizes, names, dtypes, without):
    made = [tensors((a, b, 2), dtype) for (a, b), dtype in zip(sizes, dtypes, strict=False)]
    targets = [target(CASES[name].penalty, weight) for name, (weight, _, _) in zip(names, made, strict=False)]
    weights = [each.param.detach() for each in targets]
    pulls = [None if i == without else grad for i, (_, grad, _) in enumerate(made)]
    cpu = torch.device("cpu")
    expected = exact_products(targets, pulls, [None] * len(pulls), weights)
    assert_same_sums(Passes(targets).products(pulls, weights, cpu), expected)
    factors = [0.0 if i == 1 else 0.5 for i in range(len(targets))]
    copies = [weight.clone() for weight in weights]
    ReferencePasses(targets).shrink(copies, factors, [0.2] * len(targets))
    with torch.no_grad():
        Passes(targets).shrink(factors, [0.2] * len(targets))
    for weight, copied in zip(weights, copies, strict=True):
        assert_same_weights(weight, copied)


class Doubled(L1):
    """Inherits the terms of L1 and does something else."""

    def subgradient(self, w):
        return 2 * super().subgradient(w)

    def _prox(self, w, threshold):
        return super()._prox(w, 2 * threshold)


def test_a_class_that_changes_a_penalty_is_not_taken_for_it():
    weight, grad, _ = tensors((30, 40))
    each = target(Doubled(0.1), weight.clone())
    assert not CompiledPasses.accepts(each)
    sums = Passes([each]).products([grad], [weight], torch.device("cpu"))
    assert sums[0, 2].item() == pytest.approx(0.04 * int((weight != 0).sum()), rel=1e-5)
    with torch.no_grad():
        Passes([each]).shrink([1.0], [1.0])
    torch.testing.assert_close(each.param.detach(), L1(0.2).prox(weight, 1.0))


def test_a_network_that_is_converted_or_moved_is_looked_at_anew():
    each = target(L1(0.1), torch.randn(20, 30))
    passes = Passes([each])
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        each.param.data = each.param.data.to(dtype)
        weight = each.param.detach()
        sums = passes.products([weight], [weight], torch.device("cpu"))
        torch.testing.assert_close(sums[0, 3], weight.double().square().sum(), rtol=1e-4, atol=0)


def test_weights_that_become_a_lazy_negative_are_looked_at_anew():
    each = target(L1(0.1), torch.randn(20, 30))
    passes, grad = Passes([each]), torch.randn(20, 30)
    expected = passes.products([grad], [each.param.detach()], torch.device("cpu"))
    each.param.data = torch._neg_view(-each.param.data)
    sums = passes.products([grad], [each.param.detach()], torch.device("cpu"))
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=0)


def test_zeros_are_not_set_in_a_parameter_that_has_become_another():
    flat = torch.ones(60)
    each = target(L1(0.1), torch.zeros(10, 6))
    passes = Passes([each])
    with torch.no_grad():
        marks = passes.mark_zeros([each.param], [None], [True])
        each.param.data = flat[:24].view(4, 6)
        with pytest.raises(RuntimeError, match="has changed shape, memory layout or dtype"):
            passes.set_zeros(marks)
    assert (flat == 1).all()


def test_without_numba_the_blocks_take_over(monkeypatch):
    each = target(L1(0.1), torch.randn(20, 30))
    assert CompiledPasses.accepts(each)
    monkeypatch.setenv("STRONGREG_COMPILED", "0")
    compiled._loops.cache_clear()
    compiled._tried.cache_clear()
    try:
        assert not CompiledPasses.accepts(each)
        assert size_of_all([torch.ones(4)], torch.device("cpu")).item() == 2.0
        assert size_of_all([torch.full((4,), 1e30)], torch.device("cpu")).item() < math.inf
    finally:
        monkeypatch.undo()
        compiled._loops.cache_clear()
        compiled._tried.cache_clear()
