"""What is measured and decided at a step: pure functions of gradients, weights and the gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from strongreg.coherence import coherence, inner_products, squared_norm
from strongreg.gates import Gate
from strongreg.groups import Target
from strongreg.precision import at_least_float32, scalar_dtype


@dataclass(frozen=True)
class BeforeStep:
    """What is known once the gradients are there and the weights have not moved yet, K penalized tensors.

    Args:
        weights: the weights at which the gradients were taken, K tensors.
        has_gradient: whether each tensor has a gradient, K entries.
        gradient_sq: squared norms of the loss gradients, shape (K,).
        finite: whether all gradients that the optimizer sees are free of NaN and infinity, 0-d boolean.
        skipped: whether the optimizer will leave the weights alone, 0-d boolean.
    """

    weights: list[Tensor]
    has_gradient: list[bool]
    gradient_sq: Tensor
    finite: Tensor
    skipped: Tensor


@dataclass(frozen=True)
class Measurement:
    """Inner products of K penalized tensors, in float64 where the device has it.

    The pull is what moves the weights apart from the penalty: the loss gradient, or the step that was taken.

    Args:
        pull_sq: squared norms of the pulls, shape (K,).
        cross: inner products of pull and penalty gradient, shape (K,).
        penalty_sq: squared norms of the penalty gradients, shape (K,).
    """

    pull_sq: Tensor
    cross: Tensor
    penalty_sq: Tensor


@dataclass(frozen=True)
class Decision:
    """What was decided for one step, K penalized tensors; everything stays on the device.

    Args:
        multipliers: factor on the strength of each tensor, 0 where its gate is closed, shape (K,).
        opened: whether the penalty acts on each tensor, shape (K,), boolean.
        allowed: whether it might have acted at all: outside a refit, and with a gradient, shape (K,), boolean.
        nonfinite: whether the loss gradient holds NaN or infinity, 0-d boolean.
        skipped: whether the optimizer will leave the weights alone, 0-d boolean.
        record: the row for the history, shape (K + 1, 5), or None.
    """

    multipliers: Tensor
    opened: Tensor
    allowed: Tensor
    nonfinite: Tensor
    skipped: Tensor
    record: Tensor | None


def squared_norms(tensors: Sequence[Tensor | None], device: torch.device) -> Tensor:
    """The squared norm of each tensor.

    Args:
        tensors: K tensors; None counts as zeros.
        device: where to gather the scalars.

    Returns:
        Tensor of shape (K,), float64 where the device has it.
    """
    dtype = scalar_dtype(device)
    zero = torch.zeros((), dtype=dtype, device=device)
    return torch.stack([zero if t is None else squared_norm(t).to(device=device, dtype=dtype) for t in tensors])


def measure(
    targets: Sequence[Target],
    pulls: Sequence[Tensor | None],
    factors: Sequence[float | Tensor],
    weights: Sequence[Tensor],
    device: torch.device,
    pull_sq: Tensor | None = None,
) -> Measurement:
    """Inner products of pulls and penalty gradients at full strength.

    Args:
        targets: the K penalized parameters.
        pulls: what moves each apart from the penalty, K tensors; None counts as zeros, the penalty gradient too.
        factors: what each pull is to be multiplied by, K entries; tensors have one entry.
        weights: where to take the penalty gradients, K tensors.
        device: where to gather the scalars.
        pull_sq: squared norms of the pulls times their factors where they are known already, shape (K,).

    Returns:
        The inner products.
    """
    dtype = scalar_dtype(device)
    zero = torch.zeros((), dtype=dtype, device=device)
    rows: list[Tensor] = []
    known = [None] * len(targets) if pull_sq is None else pull_sq.unbind()
    for target, pull, factor, weight, square in zip(targets, pulls, factors, weights, known, strict=True):
        if pull is None:
            rows += [zero, zero, zero]
            continue
        if target.penalty.strength == 0 and square is not None:
            rows += [square, zero, zero]
            continue
        products = inner_products(pull, target.penalty.subgradient(at_least_float32(weight)), square)
        own_sq, cross, penalty_sq = (product.to(device=device, dtype=dtype) for product in products)
        if isinstance(factor, Tensor):
            factor = factor.to(device=device, dtype=dtype).reshape(())
        rows += [own_sq * factor**2 if square is None else square, cross * factor, penalty_sq]
    return Measurement(*torch.stack(rows).reshape(len(targets), 3).unbind(dim=1))


def decide(
    before: BeforeStep, measured: Measurement, multipliers: Tensor, gate: Gate, step: Tensor, allowed: Tensor
) -> tuple[Decision, Tensor, Tensor]:
    """Whether the penalty acts on each tensor.

    Args:
        before: what was known before the step.
        measured: the inner products at full strength.
        multipliers: factor on the strength of each tensor, shape (K,).
        gate: the gate.
        step: 0-d integer tensor, the number of steps done before this one.
        allowed: whether the penalty may act on each tensor at all at this step, shape (K,), boolean.

    Returns:
        The decision (without record), the coherence of each tensor, shape (K,), and of all together, 0-d.
    """
    cross, penalty_sq = measured.cross * multipliers, measured.penalty_sq * multipliers.square()
    by_layer = coherence(measured.pull_sq, cross, penalty_sq)
    overall = coherence(measured.pull_sq.sum(), cross.sum(), penalty_sq.sum())
    nonfinite = ~before.finite
    deciding = by_layer if gate.decision_scope == "layer" else overall
    # where weights, and with them the penalty's gradient, are not finite there is no coherence to decide by
    opened = (gate.is_open(deciding, step) & ~deciding.isnan()).expand_as(by_layer)
    # a penalty whose schedule is at 0 does not act: its zeros move as at a closed gate
    opened = opened & (multipliers > 0) & allowed & ~nonfinite & ~before.skipped
    decision = Decision(torch.where(opened, multipliers, 0.0), opened, allowed, nonfinite, before.skipped, None)
    return decision, by_layer, overall


def nothing_decided(before: BeforeStep, allowed: Tensor) -> Decision:
    """The decision for penalties of strength 0 where nobody looks: nothing has to be measured.

    Args:
        before: what was known before the step.
        allowed: whether the penalty may act on each tensor at all at this step, shape (K,), boolean.

    Returns:
        A decision by which nothing acts.
    """
    nothing = torch.zeros_like(before.gradient_sq)
    return Decision(nothing, torch.zeros_like(allowed), allowed, ~before.finite, before.skipped, None)


def history_record(
    before: BeforeStep,
    measured: Measurement,
    multipliers: Tensor,
    opened: Tensor,
    coherences: tuple[Tensor, Tensor],
    num_weights: Tensor,
) -> Tensor:
    """The row for the history: coherence, open, gradient norm, penalty norm, weight norm; per layer, then in total.

    Args:
        before: what was known before the step.
        measured: the inner products at full strength.
        multipliers: factor on the strength of each tensor, shape (K,).
        opened: whether the penalty acts on each tensor, shape (K,).
        coherences: the coherence of each tensor, shape (K,), and of all together, 0-d.
        num_weights: number of weights of each tensor, shape (K,).

    Returns:
        Tensor of shape (K + 1, 5).
    """
    by_layer, overall = coherences
    weight_sq = squared_norms(before.weights, by_layer.device)
    squares = torch.stack([before.gradient_sq, measured.penalty_sq * multipliers.square(), weight_sq], dim=1)
    open_share = (opened * num_weights).sum() / num_weights.sum().clamp(min=1)
    layers = torch.cat([torch.stack([by_layer, opened.to(by_layer.dtype)], dim=1), squares.sqrt()], dim=1)
    total = torch.cat([torch.stack([overall, open_share]), squares.sum(dim=0).sqrt()])
    return torch.cat([layers, total[None]])
