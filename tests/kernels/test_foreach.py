"""The passes by torch's foreach operations, on the CPU, held to the reference."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from contract.devices import OPTIMIZERS, launches_of_a_step, take_the_cpu_for_an_accelerator
from kernels.twins import (
    PENALTIES,
    check_nothing_changes,
    check_products,
    check_shrink,
    check_squares,
    every_dtype,
    every_penalty,
    target,
)
from strongreg import L1, L2, GroupL2, SparseGroup
from strongreg.kernels import foreach, passes
from strongreg.kernels.foreach import ForeachPasses
from strongreg.kernels.reference import ReferencePasses

_SHAPES = [(5, 7), (2, 3, 3, 3), (3, 300), (0, 4), (1, 1), (3, 0)]


@pytest.fixture(autouse=True)
def device(monkeypatch):
    take_the_cpu_for_an_accelerator(monkeypatch)


def _mixed(dtype):
    shapes = [(penalty, shape) for shape in _SHAPES for penalty in PENALTIES]
    return [target(penalty, torch.randn(shape, dtype=torch.float64).to(dtype)) for penalty, shape in shapes]


def _like(targets):
    return [torch.randn_like(each.param) for each in targets]


@every_dtype
def test_many_tensors_under_many_penalties_at_once(dtype):
    targets = _mixed(dtype)
    pulls, minus = _like(targets), _like(targets)
    check_products(ForeachPasses, targets, pulls)
    # the reference rounds the difference to half precision
    rounding = torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else None
    check_products(ForeachPasses, targets, pulls, minus, tolerance=rounding)
    some = [None if i % 4 == 0 else each for i, each in enumerate(pulls)]
    others = [None if i % 2 else each for i, each in enumerate(minus)]
    check_products(ForeachPasses, targets, some, others, tolerance=rounding)
    check_squares(ForeachPasses, targets, some)
    check_squares(ForeachPasses, targets, [None] * len(targets))
    factors = torch.rand(len(targets), dtype=torch.float64).unbind()
    check_shrink(ForeachPasses, targets, factors, [0.4] * len(targets))


@hypothesis.given(
    penalty=st.sampled_from(PENALTIES),
    shapes=st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=4), min_size=1, max_size=4),
    scale=st.sampled_from([1e-25, 1e-3, 1.0, 1e12]),
    step_size=st.sampled_from([0.0, 0.3, 10.0]),
)
def test_random_shapes(penalty, shapes, scale, step_size):
    targets = [target(penalty, torch.randn(shape)) for shape in shapes]
    check_products(ForeachPasses, targets, [torch.randn(shape) * scale for shape in shapes])
    steps = [torch.tensor(step_size)] * len(shapes)
    check_shrink(ForeachPasses, targets, [torch.ones((), dtype=torch.float64)] * len(shapes), steps)


@every_penalty
def test_every_memory_layout_and_pulls_of_another_layout_and_dtype(penalty):
    w = torch.randn(4, 3, 5, 2)
    channels_last = w.to(memory_format=torch.channels_last)
    targets = [target(penalty, channels_last), target(penalty, w), target(penalty, torch.randn(3, 6, 1, 1))]
    pulls = [torch.randn(4, 3, 5, 2), torch.randn(4, 3, 5, 2).to(memory_format=torch.channels_last)]
    pulls.append(torch.randn(3, 6, 1, 1, dtype=torch.float64))
    check_products(ForeachPasses, targets, pulls)
    check_squares(ForeachPasses, targets, pulls)
    check_shrink(ForeachPasses, targets, [1.0] * 3, [0.5] * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_the_gate_is_closed_no_bit_changes(dtype):
    w = torch.tensor([[0.0, -0.0, 1.0], [float("inf"), float("nan"), 1e-6]], dtype=dtype)
    targets = [target(penalty, w.clone()) for penalty in PENALTIES for _ in range(2)]
    closed = torch.zeros((), dtype=torch.float64)
    for factor, step_size in [
        (closed, 0.5),
        (0.0, 0.5),
        (closed * float("nan"), 0.5),
        (closed + 1, 0.0),
        (closed + 1, -1e-20),
        (closed + 1, torch.tensor(-1e-20)),
    ]:
        check_nothing_changes(ForeachPasses, targets[:8], [factor] * 8, [step_size] * 8)


def test_an_open_gate_beside_a_closed_one():
    targets = [target(penalty, torch.randn(3, 4)) for penalty in PENALTIES for _ in range(2)]
    factors = [torch.tensor(float(i % 2), dtype=torch.float64) for i in range(len(targets))]
    check_shrink(ForeachPasses, targets, factors, [0.4, torch.tensor(0.2, dtype=torch.float64)] * len(PENALTIES))


@every_penalty
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_goes_into_the_sums_and_spoils_its_own_group_only(penalty, odd):
    w, pull = torch.randn(3, 40), torch.randn(3, 40)
    spoiled, spoiled_pull = w.clone(), pull.clone()
    spoiled[1, 7], spoiled_pull[2, 3] = odd, odd
    for each, moved in ((spoiled, pull), (w, spoiled_pull)):
        targets = [target(penalty, each), target(penalty, w)]
        found, expected = (
            way(targets).products([moved, pull], [None] * 2, [each, w]) for way in (ForeachPasses, ReferencePasses)
        )
        assert torch.equal(found.isfinite(), expected.isfinite())
        check_shrink(ForeachPasses, targets, [1.0] * 2, [0.5] * 2)


@every_penalty
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_tiny_and_huge_gradients_keep_their_squares(penalty, scale):
    targets = [target(penalty, torch.randn(3, 40)), target(penalty, torch.randn(2, 3))]
    check_products(ForeachPasses, targets, [each * scale for each in _like(targets)])
    check_squares(ForeachPasses, targets, [each * scale for each in _like(targets)])


def test_large_tensors_are_not_joined(monkeypatch):
    monkeypatch.setattr(foreach, "_MOST_JOINED", 30)
    shapes = [(4, 5), (2, 4), (6, 6), (5, 5)]
    targets = [target(penalty, torch.randn(shape)) for shape in shapes for penalty in (L1(0.3), GroupL2(0.2, dim=0))]
    assert foreach._joined_rows(targets) == [[0, 2], [1, 3], [4], [5], [6], [7]]
    check_products(ForeachPasses, targets, _like(targets))
    check_shrink(ForeachPasses, targets, [1.0] * len(targets), [0.4] * len(targets))


def test_autograd_sees_that_the_weights_have_changed():
    targets = [target(L1(0.3), torch.randn(4, 5)), target(L1(0.3), torch.randn(4, 5))]
    before = [each.param._version for each in targets]
    ForeachPasses(targets).shrink([each.param.detach() for each in targets], [1.0, 1.0], [0.1, 0.1])
    assert all(each.param._version > version for each, version in zip(targets, before, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("penalty", [L1(0.1), GroupL2(0.1)], ids=repr)
def test_a_step_launches_as_much_for_few_layers_as_for_many_but_for_the_norms_of_groups(name, penalty, monkeypatch):
    monkeypatch.setattr(passes, "_WAYS", (ForeachPasses,))
    few, many = (launches_of_a_step(count, penalty, name) for count in (3, 9))
    assert set(many - few) <= ({"linalg_vector_norm"} if isinstance(penalty, GroupL2) else set())


def test_parameters_of_several_dtypes_and_ways_come_back_in_their_order(monkeypatch):
    monkeypatch.setattr(passes, "_WAYS", (ForeachPasses, ReferencePasses))
    dtypes = [torch.float32, torch.float64, torch.float32, torch.bfloat16, torch.float64]
    targets = [target(PENALTIES[i], torch.randn(4, 6).to(dtype)) for i, dtype in enumerate(dtypes)]
    targets.insert(2, target(GroupL2(0.1, dim=1), torch.randn(3, 2)))  # of no known terms
    weights, pulls = [each.param.detach() for each in targets], _like(targets)
    found = passes.Passes(targets).products(pulls, weights, torch.device("cpu"))
    expected = ReferencePasses(targets).products(pulls, [None] * 6, weights)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert len(passes.Passes(targets)._current()) == 4


def test_it_takes_dense_tensors_of_known_terms_on_an_accelerator(monkeypatch):
    dense, gaps = torch.randn(4, 6), torch.randn(4, 12)[:, ::2]
    assert all(ForeachPasses.accepts(target(penalty, dense)) for penalty in PENALTIES)
    assert not ForeachPasses.accepts(target(L2(0.1), gaps))
    assert not ForeachPasses.accepts(target(SparseGroup(0.1, dim=1), dense))
    monkeypatch.undo()
    assert not ForeachPasses.accepts(target(L1(0.1), dense))
