"""What is measured and decided before a step: pure functions of gradients, weights and the gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from strongreg.coherence import coherence, inner_products, squared_norm
from strongreg.gates import Gate
from strongreg.groups import Target
from strongreg.precision import scalar_dtype


@dataclass(frozen=True)
class Measurement:
    """Inner products of K penalized tensors, in float64 where the device has it.

    Args:
        gradient_sq: squared norms of the loss gradients, shape (K,).
        cross: inner products of loss gradient and penalty gradient, shape (K,).
        penalty_sq: squared norms of the penalty gradients, shape (K,).
        weight_sq: squared norms of the weights, shape (K,); zeros if they were not asked for.
    """

    gradient_sq: Tensor
    cross: Tensor
    penalty_sq: Tensor
    weight_sq: Tensor


@dataclass(frozen=True)
class Decision:
    """What was decided before one step, K penalized tensors; everything stays on the device.

    Args:
        multipliers: factor on the strength of each tensor, 0 where its gate is closed, shape (K,).
        opened: whether the penalty acts on each tensor, shape (K,), boolean.
        nonfinite: whether the loss gradient holds NaN or infinity, 0-d boolean.
        skipped: whether the optimizer will leave the weights alone, 0-d boolean.
        record: the row for the history, shape (K + 1, 5), or None.
    """

    multipliers: Tensor
    opened: Tensor
    nonfinite: Tensor
    skipped: Tensor
    record: Tensor | None


def measure(
    targets: Sequence[Target], signs: Sequence[float], scale: Tensor | None, device: torch.device, *, weights: bool
) -> Measurement:
    """Inner products of loss gradients and penalty gradients at full strength.

    Args:
        targets: the K penalized parameters; one without gradient counts as zeros.
        signs: per target 1.0, or -1.0 where ``.grad`` is an ascent direction.
        scale: the factor that ``.grad`` is scaled by, one entry, or None.
        device: where to gather the scalars.
        weights: whether to measure the weight norms too.

    Returns:
        The inner products.

    Raises:
        TypeError: a gradient is sparse.
    """
    dtype = scalar_dtype(device)
    unscale: float | Tensor = 1.0 if scale is None else scale.to(device=device, dtype=dtype).reshape(()).reciprocal()
    zero = torch.zeros((), dtype=dtype, device=device)
    rows: list[Tensor] = []
    for target, sign in zip(targets, signs, strict=True):
        grad = target.param.grad
        if grad is None:
            rows += [zero, zero, zero]
        elif grad.layout != torch.strided:
            raise TypeError(
                f"parameter {target.name!r} has a gradient of layout {grad.layout}, which strongreg does not "
                "support: exclude it with "
                f"{{{target.name!r}: None}} in the mapping of penalties"
            )
        else:
            products = inner_products(grad, target.penalty.subgradient(target.param))
            gradient_sq, cross, penalty_sq = (product.to(device=device, dtype=dtype) for product in products)
            rows += [gradient_sq * unscale**2, cross * (sign * unscale), penalty_sq]
        rows.append(squared_norm(target.param).to(device=device, dtype=dtype) if weights else zero)
    return Measurement(*torch.stack(rows).reshape(len(targets), 4).unbind(dim=1))


def decide(
    measured: Measurement, multipliers: Tensor, gate: Gate, step: Tensor, allowed: Tensor, skipped: Tensor
) -> tuple[Decision, Tensor, Tensor]:
    """Whether the penalty acts on each tensor.

    Args:
        measured: the inner products at full strength.
        multipliers: factor on the strength of each tensor, shape (K,).
        gate: the gate.
        step: 0-d integer tensor, the number of steps done before this one.
        allowed: whether the penalty may act on each tensor at all at this step, shape (K,), boolean.
        skipped: whether the optimizer will leave the weights alone, 0-d boolean.

    Returns:
        The decision (without record), the coherence of each tensor, shape (K,), and of all together, 0-d.
    """
    cross, penalty_sq = measured.cross * multipliers, measured.penalty_sq * multipliers.square()
    by_layer = coherence(measured.gradient_sq, cross, penalty_sq)
    overall = coherence(measured.gradient_sq.sum(), cross.sum(), penalty_sq.sum())
    nonfinite = ~torch.isfinite(measured.gradient_sq.sum())
    opened = gate.is_open(by_layer if gate.decision_scope == "layer" else overall, step).expand_as(by_layer)
    # where weights, and with them the penalty's gradient, are not finite there is no coherence to decide by
    measurable = ~(by_layer if gate.decision_scope == "layer" else overall).isnan()
    opened = opened & measurable & allowed & ~nonfinite & ~skipped
    return Decision(torch.where(opened, multipliers, 0.0), opened, nonfinite, skipped, None), by_layer, overall


def history_record(
    measured: Measurement, multipliers: Tensor, opened: Tensor, by_layer: Tensor, overall: Tensor, num_weights: Tensor
) -> Tensor:
    """The row for the history: coherence, open, gradient norm, penalty norm, weight norm; per layer, then in total.

    Args:
        measured: the inner products at full strength.
        multipliers: factor on the strength of each tensor, shape (K,).
        opened: whether the penalty acts on each tensor, shape (K,).
        by_layer: coherence of each tensor, shape (K,).
        overall: coherence of all together, 0-d.
        num_weights: number of weights of each tensor, shape (K,).

    Returns:
        Tensor of shape (K + 1, 5).
    """
    squares = torch.stack([measured.gradient_sq, measured.penalty_sq * multipliers.square(), measured.weight_sq], dim=1)
    open_share = (opened * num_weights).sum() / num_weights.sum().clamp(min=1)
    layers = torch.cat([torch.stack([by_layer, opened.to(by_layer.dtype)], dim=1), squares.sqrt()], dim=1)
    total = torch.cat([torch.stack([overall, open_share]), squares.sum(dim=0).sqrt()])
    return torch.cat([layers, total[None]])
