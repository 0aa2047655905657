"""The mathematics of a penalty: prox, value, subgradient, optimality gap and critical strength fit one another."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from contract.penalties import SHAPE, cases, every_case, weights, with_zeros
from strongreg import Penalty

steps = pytest.mark.parametrize("step", [0.1, 1.0, 3.0])


def prox_objective(penalty: Penalty, candidates: Tensor, w: Tensor, step: float) -> Tensor:
    """The prox's objective at each candidate, the literal definition."""
    values = torch.vmap(penalty.value)(candidates)
    return 0.5 * (candidates - w).flatten(1).square().sum(1) + step * values


def assert_beats(penalty: Penalty, candidates: Tensor, w: Tensor, step: float) -> None:
    """The prox is at least as good as each candidate."""
    found = prox_objective(penalty, penalty.prox(w, step)[None], w, step)
    rivals = prox_objective(penalty, candidates, w, step)
    assert found.item() <= rivals.min().item() + 1e-12


@dataclass(frozen=True)
class Quadratic:
    """A loss 1/2 (w - b)' H (w - b) with the eigenvalues of H in [1, 2]."""

    hessian: Tensor
    centre: Tensor

    @staticmethod
    def random() -> Quadratic:
        """One with a random basis."""
        n = math.prod(SHAPE)
        basis = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
        return Quadratic(basis * torch.linspace(1, 2, n, dtype=torch.float64) @ basis.T, weights())

    def gradient(self, w: Tensor) -> Tensor:
        """The gradient of the loss."""
        return (self.hessian @ (w - self.centre).flatten()).view_as(w)

    def solve(self, penalty: Penalty, step: float = 0.5, num_steps: int = 200) -> Tensor:
        """Proximal gradient from 0 to convergence."""
        w = torch.zeros_like(self.centre)
        for _ in range(num_steps):
            w = penalty.prox(w - step * self.gradient(w), step)
        return w


# ---------------------------------------------------------------------- prox


@every_case
@steps
def test_prox_beats_random_neighbours(case, step):
    for w in (weights(), 3 * weights(), with_zeros(weights())):
        p = case.penalty.prox(w, step)
        for scale in (1e-4, 1e-2, 1.0):
            assert_beats(case.penalty, p + scale * torch.randn(200, *SHAPE, dtype=torch.float64), w, step)


@cases(separable=True)
@steps
def test_prox_beats_a_grid(case, step):
    grid = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    for w in torch.linspace(-3.3, 3.3, 45, dtype=torch.float64):
        assert_beats(case.penalty, grid[:, None], w[None], step)
        assert case.penalty.prox(w[None], step).abs() <= w.abs()


@every_case
@steps
def test_prox_is_a_minimum_along_rays_from_both_sides(case, step):
    """Along the point, along the weights, and along each first slice of the weights alone."""
    w = 2 * weights()
    p = case.penalty.prox(w, step)
    first_slices = torch.eye(SHAPE[0], dtype=w.dtype)[:, :, None, None] * w
    directions = torch.cat([p[None], w[None], first_slices])
    for size in (1e-1, 1e-3, 1e-5):
        assert_beats(case.penalty, p + size * directions, w, step)
        assert_beats(case.penalty, p - size * directions, w, step)


@every_case
@steps
def test_prox_is_stationary_for_its_own_problem(case, step):
    for w in (weights(), 3 * weights(), with_zeros(weights())):
        p = case.penalty.prox(w, step)
        assert case.penalty.optimality_gap(p, (p - w) / step) < 1e-13


@cases(convex=True)
@steps
def test_prox_of_a_convex_penalty_is_nonexpansive(case, step):
    for scale in (1e-3, 1.0, 10.0):
        u = weights()
        v = u + scale * weights()
        moved = case.penalty.prox(u, step) - case.penalty.prox(v, step)
        assert moved.norm() <= (u - v).norm() * (1 + 1e-12)


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_prox_with_step_0_is_the_identity(case, dtype):
    w = with_zeros(3 * weights()).to(dtype)
    assert torch.equal(case.penalty.prox(w, 0), w)
    assert torch.equal(case.penalty.prox(w, torch.zeros(())), w)


@every_case
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_prox_with_step_0_is_the_identity_for_extreme_weights(case, size):
    """Squares of such weights leave the range of float32; the weights themselves do not."""
    w = (weights() * size).float()
    assert torch.equal(case.penalty.prox(w, 0.0), w)


@cases(has_exact_zeros=True)
def test_exact_zeros_grow_with_the_step_until_all_weights_are_0(case):
    w = weights()
    num_zeros = [int((case.penalty.prox(w, step) == 0.0).sum()) for step in torch.logspace(-4, 4, 200).tolist()]
    assert num_zeros == sorted(num_zeros)
    assert num_zeros[0] == 0
    assert any(0 < n < w.numel() for n in num_zeros)
    assert num_zeros[-1] == w.numel()


@cases(has_exact_zeros=False)
def test_prox_without_exact_zeros_keeps_every_weight(case):
    w = weights()
    assert (case.penalty.prox(w, 1e6) != 0).all()


@every_case
@steps
def test_prox_takes_a_tensor_step(case, step):
    w = weights()
    step_tensor = torch.tensor(step, dtype=torch.float64)
    torch.testing.assert_close(case.penalty.prox(w, step_tensor), case.penalty.prox(w, step), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(case.penalty.prox(w.float(), step_tensor), case.penalty.prox(w.float(), step))
    assert step_tensor == step


@every_case
@steps
def test_prox_is_odd(case, step):
    w = weights()
    assert torch.equal(case.penalty.prox(-w, step), -case.penalty.prox(w, step))


@cases(separable=True)
def test_separable_methods_do_not_look_at_positions(case):
    w, grad = with_zeros(weights()).flatten(), weights().flatten()
    order = torch.randperm(w.numel())
    assert torch.equal(case.penalty.prox(w[order], 0.5), case.penalty.prox(w, 0.5)[order])
    assert torch.equal(case.penalty.subgradient(w[order]), case.penalty.subgradient(w)[order])
    assert torch.equal(case.penalty.optimality_gap(w[order], grad[order]), case.penalty.optimality_gap(w, grad))
    torch.testing.assert_close(case.penalty.value(w[order]), case.penalty.value(w), rtol=1e-14, atol=0)


@every_case
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_the_order_of_slices_does_not_matter(case, dim):
    w = weights()
    order = torch.randperm(SHAPE[dim])
    shuffled = case.penalty.prox(w.index_select(dim, order), 0.5)
    torch.testing.assert_close(shuffled, case.penalty.prox(w, 0.5).index_select(dim, order), rtol=1e-14, atol=1e-15)


# ---------------------------------------------------------------------- value and subgradient


@every_case
def test_subgradient_is_the_gradient_away_from_kinks(case):
    w = weights().requires_grad_()
    (gradient,) = torch.autograd.grad(case.penalty.value(w), w)
    torch.testing.assert_close(case.penalty.subgradient(w), gradient, rtol=1e-13, atol=1e-15)
    assert torch.autograd.gradcheck(case.penalty.value, (w,))


@every_case
def test_subgradient_at_0_is_0(case):
    """The element of least norm: the penalties are even."""
    assert torch.equal(case.penalty.subgradient(torch.zeros(SHAPE)), torch.zeros(SHAPE))


@every_case
def test_subgradient_is_in_the_subdifferential_at_kinks(case):
    w = with_zeros(weights())
    assert case.penalty.optimality_gap(w, -case.penalty.subgradient(w)) < 1e-15


@cases(convex=True)
def test_subgradient_inequality(case):
    for make_w in (weights, lambda: with_zeros(weights()), lambda: torch.zeros(SHAPE, dtype=torch.float64)):
        for _ in range(30):
            w, v = make_w(), with_zeros(2 * weights())
            plane = case.penalty.value(w) + (case.penalty.subgradient(w) * (v - w)).sum()
            assert case.penalty.value(v) >= plane - 1e-12


@every_case
def test_value_is_0_at_0_and_positive_elsewhere(case):
    w = weights()
    assert case.penalty.value(torch.zeros_like(w)) == 0
    assert case.penalty.value(w) > 0
    assert case.penalty.value(w).shape == ()


# ---------------------------------------------------------------------- optimality gap and critical strength


@every_case
def test_gap_is_0_at_the_solution_and_positive_elsewhere(case):
    problem = Quadratic.random()
    w = problem.solve(case.penalty)
    assert case.penalty.optimality_gap(w, problem.gradient(w)) < 1e-10
    for other in (w + 0.1 * weights(), w + 0.5, problem.centre):
        assert case.penalty.optimality_gap(other, problem.gradient(other)) > 1e-3


@every_case
def test_gap_is_the_length_of_an_infinitesimal_proximal_step(case):
    """The element of least norm of grad + subdifferential is where a tiny proximal gradient step goes."""
    step = 1e-7
    for scale in (0.1, 1.0, 5.0):
        w, grad = with_zeros(weights()), scale * weights()
        direction = (w - case.penalty.prox(w - step * grad, step)) / step
        by_group = direction.square().sum(case.within).sqrt() if case.within else direction.abs()
        torch.testing.assert_close(case.penalty.optimality_gap(w, grad), by_group.amax(), rtol=1e-5, atol=1e-6)


@cases(has_exact_zeros=True)
def test_critical_strength_separates_zero_from_nonzero_solutions(case):
    problem = Quadratic.random()
    zero = torch.zeros(SHAPE, dtype=torch.float64)
    critical = case.penalty.critical_strength(problem.gradient(zero)).item()
    # a step so small that MCP's prox is not yet a hard threshold: 0 is then a fixed point wherever it is stationary
    step = 0.5 if case.convex else min(0.5, 0.1 / critical)
    above, at, below = (dataclasses.replace(case.penalty, strength=critical * f) for f in (1 + 1e-9, 1.0, 0.999))
    assert torch.equal(problem.solve(above, step), zero)
    assert problem.solve(at, step).abs().amax() < 1e-12
    assert problem.solve(below, step).abs().amax() > 1e-5
    assert at.optimality_gap(zero, problem.gradient(zero)) < 1e-12
    assert below.optimality_gap(zero, problem.gradient(zero)) > 1e-4


@cases(has_exact_zeros=False)
def test_critical_strength_of_a_ridge_is_infinite(case):
    assert case.penalty.critical_strength(weights()) == math.inf
    assert case.penalty.critical_strength(torch.zeros(SHAPE)) == 0


@every_case
def test_critical_strength_is_0_without_gradient_and_ignores_the_strength(case):
    grad = weights()
    assert case.penalty.critical_strength(torch.zeros(SHAPE)) == 0
    stronger = dataclasses.replace(case.penalty, strength=9.0)
    assert torch.equal(stronger.critical_strength(grad), case.penalty.critical_strength(grad))
