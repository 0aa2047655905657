"""Penalties that coincide for some options, literal formulas, scikit-learn's solutions, and random inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import linear_model
from torch import Tensor

from strongreg import L1, L2, MCP, ElasticNet, GroupL2, Penalty, SparseGroup

ALL = [L1, L2, ElasticNet, MCP, GroupL2, SparseGroup]


def _weights(*shape: int) -> Tensor:
    w = torch.randn(shape, dtype=torch.float64)
    w.view(-1)[::4] = 0.0
    return w


def _assert_same(one: Penalty, other: Penalty, w: Tensor, largest_group: int = 1, **tolerance: float) -> None:
    tolerance = tolerance or {"rtol": 1e-12, "atol": 1e-14}
    grad = torch.randn_like(w)
    for first, second in (
        (one.value(w), other.value(w)),
        (one.subgradient(w), other.subgradient(w)),
        (one.prox(w, 0.4), other.prox(w, 0.4)),
        (one.prox(w, 3.0), other.prox(w, 3.0)),
        (one.critical_strength(grad), other.critical_strength(grad)),
    ):
        torch.testing.assert_close(first, second, **tolerance)
        assert torch.equal(first == 0, second == 0)
    for scaled in (0.1 * grad, grad, 5 * grad):
        gap, other_gap = one.optimality_gap(w, scaled), other.optimality_gap(w, scaled)
        # the largest distance over coordinates and over groups, where one penalty has groups and the other has not
        lower, upper = sorted([gap.item(), other_gap.item()])
        assert upper <= lower * math.sqrt(largest_group) * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize(
    ("penalty", "shape"),
    [
        (GroupL2(0.6), (12,)),
        (GroupL2(0.6), (12, 1)),
        (GroupL2(0.6, dim=(0, 1)), (4, 3)),
        (GroupL2(0.6, dim=(0, 1), weight_by_size=True), (4, 3, 1)),
        (SparseGroup(0.6), (12,)),
        (SparseGroup(0.6, l1_ratio=0.2, dim=(0, 1)), (4, 3)),
    ],
)
def test_groups_of_one_are_l1(penalty, shape):
    _assert_same(penalty, L1(0.6), _weights(*shape))


@pytest.mark.parametrize("options", [{}, {"dim": 1}, {"dim": (0, 2)}, {"weight_by_size": True}])
def test_sparse_group_is_between_group_lasso_and_lasso(options):
    w = _weights(4, 3, 2)
    _assert_same(SparseGroup(0.6, l1_ratio=1.0, **options), L1(0.6), w, largest_group=8)
    _assert_same(SparseGroup(0.6, l1_ratio=0.0, **options), GroupL2(0.6, **options), w)


def test_sparse_group_is_a_lasso_prox_then_a_group_prox():
    w = 2 * _weights(5, 4)
    one_after_the_other = GroupL2(0.7 * 0.6).prox(L1(0.3 * 0.6).prox(w, 0.8), 0.8)
    torch.testing.assert_close(SparseGroup(0.6, l1_ratio=0.3).prox(w, 0.8), one_after_the_other, rtol=1e-13, atol=0)


def test_elastic_net_is_between_ridge_and_lasso():
    w = _weights(4, 3)
    _assert_same(ElasticNet(0.6, l1_ratio=1.0), L1(0.6), w)
    _assert_same(ElasticNet(0.6, l1_ratio=0.0), L2(0.6), w)


def test_mcp_with_a_huge_cutoff_is_l1():
    _assert_same(MCP(0.6, cutoff=1e12), L1(0.6), _weights(4, 3), rtol=1e-9, atol=1e-11)


def test_group_weights_are_square_roots_of_sizes():
    w = _weights(4, 3, 2)
    for dim, size in ((0, 6), (1, 8), ((0, 1), 2)):
        weighted = GroupL2(0.6, dim=dim, weight_by_size=True)
        plain = GroupL2(0.6 * math.sqrt(size), dim=dim)
        grad = torch.randn_like(w)
        torch.testing.assert_close(weighted.value(w), plain.value(w))
        torch.testing.assert_close(weighted.prox(w, 0.4), plain.prox(w, 0.4))
        torch.testing.assert_close(weighted.subgradient(w), plain.subgradient(w))
        torch.testing.assert_close(weighted.optimality_gap(w, grad), plain.optimality_gap(w, grad))
        expected = plain.critical_strength(grad) / math.sqrt(size)
        torch.testing.assert_close(weighted.critical_strength(grad), expected)


@pytest.mark.parametrize("make", [GroupL2, SparseGroup])
def test_default_groups_are_the_first_dimension(make):
    w = _weights(4, 3, 2)
    _assert_same(make(0.6), make(0.6, dim=0), w)
    _assert_same(make(0.6, dim=1), make(0.6, dim=-2), w)
    torch.testing.assert_close(make(0.6, dim=1).prox(w, 0.4), make(0.6).prox(w.transpose(0, 1), 0.4).transpose(0, 1))


def test_group_prox_is_the_loop_over_groups():
    w = 2 * _weights(3, 4, 2)
    expected = torch.zeros_like(w)
    for i in range(3):
        for j in range(4):
            norm = math.sqrt(sum(x * x for x in w[i, j].tolist()))
            factor = max(0.0, 1 - 0.6 * 0.9 / norm) if norm else 0.0
            expected[i, j] = w[i, j] * factor
    torch.testing.assert_close(GroupL2(0.6, dim=(0, 1)).prox(w, 0.9), expected, rtol=1e-13, atol=1e-15)


def test_mcp_prox_is_the_firm_threshold():
    w = torch.linspace(-2, 2, 41, dtype=torch.float64)
    strength, cutoff = 0.3, 0.9

    def firm(x: float) -> float:
        if abs(x) <= strength:
            return 0.0
        return x if abs(x) > cutoff else math.copysign(cutoff * (abs(x) - strength) / (cutoff - strength), x)

    expected = torch.tensor([firm(x) for x in w.tolist()], dtype=torch.float64)
    torch.testing.assert_close(MCP(strength, cutoff=cutoff).prox(w, 1.0), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("step", [1 - 1e-15, 1.0, 1 + 1e-15])
def test_mcp_prox_passes_from_firm_to_hard_threshold(step):
    """Where step * strength meets the cutoff, every weight is 0 or left alone."""
    w = torch.tensor([0.0, 0.1, 0.299, 0.301, -0.5, 4.0], dtype=torch.float64)
    expected = torch.tensor([0.0, 0.0, 0.0, 0.301, -0.5, 4.0], dtype=torch.float64)
    assert torch.equal(MCP(0.3, cutoff=0.3).prox(w, step), expected)


# ---------------------------------------------------------------------- scikit-learn


def _regression(num_tasks: int = 1) -> tuple[Tensor, Tensor]:
    x = torch.randn(60, 12, dtype=torch.float64)
    truth = torch.zeros(12, num_tasks, dtype=torch.float64)
    truth[:4] = torch.randn(4, num_tasks, dtype=torch.float64)
    return x, x @ truth + 0.1 * torch.randn(60, num_tasks, dtype=torch.float64)


def _solve(penalty: Penalty, x: Tensor, y: Tensor) -> Tensor:
    """Plain proximal gradient on the mean of squares / 2; weights as in a linear layer, (num_tasks, num_features)."""
    hessian, moment = x.T @ x / len(x), y.T @ x / len(x)
    step = 1 / torch.linalg.eigvalsh(hessian)[-1].item()
    w = torch.zeros_like(moment)
    for _ in range(1500):
        w = penalty.prox(w - step * (w @ hessian - moment), step)
    assert penalty.optimality_gap(w, w @ hessian - moment) < 1e-10
    return w


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5])
def test_l1_solution_is_that_of_sklearn_lasso(alpha):
    x, y = _regression()
    theirs = linear_model.Lasso(alpha=alpha, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(x, y[:, 0]).coef_
    ours = _solve(L1(alpha), x, y)[0].numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(ours == 0, theirs == 0)


@pytest.mark.parametrize("alpha", [0.01, 0.3])
@pytest.mark.parametrize("l1_ratio", [0.1, 0.5, 1.0])
def test_elastic_net_solution_is_that_of_sklearn(alpha, l1_ratio):
    x, y = _regression()
    model = linear_model.ElasticNet(alpha=alpha, l1_ratio=l1_ratio, fit_intercept=False, tol=1e-14, max_iter=100_000)
    ours = _solve(ElasticNet(alpha, l1_ratio=l1_ratio), x, y)[0].numpy()
    np.testing.assert_allclose(ours, model.fit(x, y[:, 0]).coef_, rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_l2_solution_is_that_of_sklearn_ridge(alpha):
    """Ridge sums its squares where the objective of ours takes their mean: its alpha is ours times the samples."""
    x, y = _regression()
    theirs = linear_model.Ridge(alpha=alpha * len(x), fit_intercept=False, solver="cholesky").fit(x, y[:, 0]).coef_
    np.testing.assert_allclose(_solve(L2(alpha), x, y)[0].numpy(), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.05, 0.3])
def test_group_solution_is_that_of_sklearn_multi_task_lasso(alpha):
    """Its groups are the weights of one feature in all tasks: the second dimension of a linear layer."""
    x, y = _regression(num_tasks=3)
    theirs = linear_model.MultiTaskLasso(alpha=alpha, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(x, y).coef_
    ours = _solve(GroupL2(alpha, dim=1), x, y).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(ours == 0, theirs == 0)


@pytest.mark.parametrize("l1_ratio", [0.3, 1.0])
def test_critical_strength_is_where_sklearn_finds_the_first_weight(l1_ratio):
    x, y = _regression()
    critical = ElasticNet(1.0, l1_ratio=l1_ratio).critical_strength(-(y.T @ x) / len(x)).item()
    for factor, num_nonzero in ((1.0001, 0), (0.999, 1)):
        model = linear_model.ElasticNet(alpha=factor * critical, l1_ratio=l1_ratio, fit_intercept=False, tol=1e-14)
        assert np.count_nonzero(model.fit(x, y[:, 0]).coef_) == num_nonzero


# ---------------------------------------------------------------------- random inputs

_numbers = st.floats(-1e3, 1e3, allow_subnormal=False)
_steps = st.floats(0, 10, allow_subnormal=False)
_penalties = st.one_of(
    *(st.builds(make, st.floats(0, 10, allow_subnormal=False)) for make in ALL),
    st.builds(ElasticNet, st.floats(0, 10, allow_subnormal=False), st.floats(0, 1)),
    st.builds(SparseGroup, st.floats(0, 10), st.floats(0, 1), st.sampled_from([None, 1, (0, 1)]), st.booleans()),
    st.builds(GroupL2, st.floats(0, 10), st.sampled_from([None, 1, -1, (0, 1)]), st.booleans()),
    st.builds(MCP, st.floats(0, 10, allow_subnormal=False), st.floats(1e-3, 10)),
)


@given(_penalties, st.lists(st.lists(_numbers, min_size=3, max_size=3), max_size=5), _steps)
def test_prox_shrinks_and_keeps_signs(penalty, rows, step):
    w = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)
    p = penalty.prox(w, step)
    assert (p.abs() <= w.abs() * (1 + 1e-12)).all()
    assert (p * w >= 0).all()
    assert penalty.value(p) <= penalty.value(w) * (1 + 1e-12)


@given(_penalties, st.lists(st.lists(_numbers, min_size=3, max_size=3), max_size=5), st.floats(1e-3, 10))
def test_prox_is_stationary(penalty, rows, step):
    w = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)
    p = penalty.prox(w, step)
    scale = 1 + w.abs().sum().item() / step
    assert penalty.optimality_gap(p, (p - w) / step) <= 1e-9 * scale


@given(_penalties, st.lists(st.integers(0, 4), min_size=2, max_size=4), st.integers(0, 2**31), _steps)
def test_prox_of_every_shape_is_no_worse_than_neighbours(penalty, shape, random_seed, step):
    generator = torch.Generator().manual_seed(random_seed)
    w = torch.randn(shape, generator=generator, dtype=torch.float64)
    p = penalty.prox(w, step)
    assert p.shape == w.shape
    objective = 0.5 * (p - w).square().sum() + step * penalty.value(p)
    for neighbour in (w, torch.zeros_like(w), p + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)):
        assert objective <= 0.5 * (neighbour - w).square().sum() + step * penalty.value(neighbour) + 1e-10
