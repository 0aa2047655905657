"""What is measured and decided at a step: pure functions of inner products and the gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from strongreg.coherence import coherence
from strongreg.gates import Gate
from strongreg.scalars import Scalars, as_scalars, as_tensor, namespace, stack


@dataclass(frozen=True)
class BeforeStep:
    """What is known once the gradients are there and the weights have not moved yet, K penalized tensors.

    Args:
        weights: the weights at which the gradients were taken, K tensors.
        has_gradient: whether each tensor has a gradient, K entries.
        gradient_sq: squared norms of the loss gradients, shape (K,).
        finite: whether all gradients that the optimizer sees are free of NaN and infinity, 0-d boolean.
        skipped: whether the optimizer will leave the weights alone, 0-d boolean.
        products: inner products of the pulls and penalty gradients at full strength, as
            :meth:`strongreg.kernels.Passes.products` gives them; None where they were not taken.
        after: whether they are to be taken after the step.
        groups: the optimizer's parameter group of each tensor, K entries.
    """

    weights: list[Tensor]
    has_gradient: list[bool]
    gradient_sq: Scalars
    finite: Scalars
    skipped: Scalars
    products: Scalars | None
    after: bool
    groups: Sequence[dict[str, Any]]


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

    multipliers: Scalars
    opened: Scalars
    allowed: Scalars
    nonfinite: Scalars
    skipped: Scalars
    record: Scalars | None


def decide(
    before: BeforeStep,
    products: Scalars,
    multipliers: Scalars,
    gate: Gate,
    step: Tensor,
    allowed: Scalars,
    num_weights: Scalars | None = None,
) -> Decision:
    """Whether the penalty acts on each tensor.

    Args:
        before: what was known before the step.
        products: inner products at full strength, as :meth:`strongreg.kernels.Passes.products` gives them.
        multipliers: factor on the strength of each tensor, shape (K,).
        gate: the gate.
        step: 0-d integer tensor, the number of steps done before this one.
        allowed: whether the penalty may act on each tensor at all at this step, shape (K,), boolean.
        num_weights: number of weights of each tensor, shape (K,), where the step is to be recorded.

    Returns:
        The decision.
    """
    xp = namespace(products)
    with np.errstate(invalid="ignore", over="ignore"):
        pull_sq, cross, penalty_sq, weight_sq = products.T
        rows = stack([pull_sq, cross * multipliers, penalty_sq * multipliers * multipliers, weight_sq])
        products = xp.concatenate([rows, rows.sum(1)[:, None]], 1)
    coherences = coherence(products[0], products[1], products[2])
    deciding = coherences[:-1] if gate.decision_scope == "layer" else coherences[-1]
    # where weights, and with them the penalty's gradient, are not finite there is no coherence to decide by
    opened = as_scalars(gate.is_open(as_tensor(deciding), step)) & (deciding == deciding)
    # a penalty whose schedule is at 0 does not act: its zeros move as at a closed gate
    opened = opened & (multipliers > 0) & allowed & before.finite & ~before.skipped
    record = None
    if num_weights is not None:
        record = _record(before, coherences, products[2:], opened, num_weights)
    return Decision(xp.where(opened, multipliers, 0.0), opened, allowed, ~before.finite, before.skipped, record)


def nothing_decided(before: BeforeStep, allowed: Scalars) -> Decision:
    """The decision where no penalty may act (strength 0, or a refit) and nobody looks: nothing has to be measured.

    Args:
        before: what was known before the step.
        allowed: whether the penalty may act on each tensor at all at this step, shape (K,), boolean.

    Returns:
        A decision by which nothing acts.
    """
    xp = namespace(allowed)
    nothing = xp.zeros_like(before.gradient_sq)
    return Decision(nothing, xp.zeros_like(allowed), allowed, ~before.finite, before.skipped, None)


def _record(
    before: BeforeStep, coherences: Scalars, squares: Scalars, opened: Scalars, num_weights: Scalars
) -> Scalars:
    """The row for the history, (K + 1, 5), per layer, then in total; ``squares``: of penalty gradient and weights."""
    xp = namespace(opened)
    by_layer = stack([opened * 1.0, before.gradient_sq])
    open_share = (opened * num_weights).sum() / num_weights.sum().clip(1)
    totals = stack([open_share, before.gradient_sq.sum()])
    share, gradient_sq = xp.concatenate([by_layer, totals[:, None]], 1)
    return stack([coherences, share, *xp.sqrt(xp.concatenate([gradient_sq[None], squares]))]).T
