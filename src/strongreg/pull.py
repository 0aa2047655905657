"""What moves the weights apart from the penalty: the loss gradient, or the step that the optimizer has taken.

Where an optimizer's step is in proportion to the gradient (SGD), gradient and penalty gradient have the same units, and
they are compared. Where the optimizer rescales it (Adam and its kin), the proximal step stands beside a step whose size
does not depend on the gradient's, and that step is compared with it (docs/theory.md, equation 7).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from strongreg.decision import BeforeStep, squared_norms
from strongreg.devices import reading_is_free
from strongreg.groups import Target
from strongreg.optimizers import Group, effective_step_size, gradient_sign, loss_scale, step_is_skipped

_SMALLEST_STEP_SIZE = 1e-30  # a learning rate of 0 moves nothing, and its reciprocal must stay finite


def look_before_step(
    targets: Sequence[Target], optimizer: Optimizer, device: torch.device, *, copy: bool
) -> BeforeStep:
    """What is to be known before the weights move.

    Args:
        targets: the K penalized parameters.
        optimizer: the optimizer, within its step, with the gradients there.
        device: where to gather the scalars.
        copy: whether to copy the weights, since they will be looked at after the step.

    Returns:
        The weights, and what the gradients show.

    Raises:
        TypeError: a gradient is sparse.
    """
    grads = [target.param.grad for target in targets]
    for target, grad in zip(targets, grads, strict=True):
        if grad is not None and grad.layout != torch.strided:
            raise TypeError(
                f"parameter {target.name!r} has a gradient of layout {grad.layout}, which strongreg does not support: "
                f"exclude it with {{{target.name!r}: None}} in the mapping of penalties"
            )
    gradient_sq = squared_norms(grads, device)
    others = _largest_of_the_others(targets, optimizer, device)
    finite = torch.isfinite(gradient_sq.sum()) & torch.isfinite(others)
    skipped = step_is_skipped(optimizer, device)
    if _learning_rate_is_0(optimizer) and any(grad is not None for grad in grads):
        # so torch.distributed.checkpoint makes an optimizer create its state: no weight moves
        skipped = skipped | ((gradient_sq.sum() == 0) & (others == 0))
    scale = loss_scale(optimizer)
    if scale is not None:
        gradient_sq = gradient_sq / scale.to(device=device, dtype=gradient_sq.dtype).reshape(()).square()
    weights = [target.param.detach() for target in targets]
    if copy:
        weights = [weight.clone() for weight in weights]
    has_gradient = [grad is not None for grad in grads]
    return BeforeStep(weights, has_gradient, gradient_sq, finite, skipped)


def _largest_of_the_others(targets: Sequence[Target], optimizer: Optimizer, device: torch.device) -> Tensor:
    """The largest entry of the gradients that are not penalized (biases, normalization), 0-d."""
    penalized = {id(target.param) for target in targets}
    grads = [
        param.grad.coalesce().values() if param.grad.layout == torch.sparse_coo else param.grad
        for group in optimizer.param_groups
        for param in group["params"]
        if id(param) not in penalized and param.grad is not None
    ]
    grads = [grad for grad in grads if grad.numel()]  # of a sparse one the values: a batch may have looked nothing up
    if not grads:
        return torch.zeros((), device=device)
    # the largest entry, which cannot overflow as a sum of squares can
    return get_total_norm(grads, math.inf).to(device)


def _learning_rate_is_0(optimizer: Optimizer) -> bool:
    """Whether it is 0 everywhere; False where to look would mean to wait for an accelerator."""
    rates = [group["lr"] for group in optimizer.param_groups if "lr" in group]
    return all((not isinstance(rate, Tensor) or reading_is_free(rate.device)) and float(rate) == 0 for rate in rates)


def gradient_pulls(
    targets: Sequence[Target], optimizer: Optimizer, groups: Sequence[Group]
) -> tuple[list[Tensor | None], list[float | Tensor]]:
    """The loss gradients, before the step.

    Args:
        targets: the K penalized parameters.
        optimizer: the optimizer, within its step.
        groups: the parameter group of each.

    Returns:
        K gradients, None where there is none, and K factors that undo the loss scale and the sign of an ascent.
    """
    scale = loss_scale(optimizer)
    factors = [gradient_sign(group) if scale is None else gradient_sign(group) / scale for group in groups]
    return [target.param.grad for target in targets], factors


def step_pulls(
    targets: Sequence[Target], optimizer: Optimizer, groups: Sequence[Group], before: BeforeStep
) -> tuple[list[Tensor | None], list[float | Tensor]]:
    """The steps taken, after the step.

    Args:
        targets: the K penalized parameters.
        optimizer: the optimizer.
        groups: the parameter group of each.
        before: with a copy of the weights.

    Returns:
        K differences of weights, None where there was no gradient, and K factors: 1 / effective step size.
    """
    moved = zip(before.weights, targets, before.has_gradient, strict=True)
    pulls = [weight - target.param.detach() if has_gradient else None for weight, target, has_gradient in moved]
    return pulls, [1 / _away_from_0(effective_step_size(optimizer, group)) for group in groups]


def _away_from_0(step_size: float | Tensor) -> float | Tensor:
    if isinstance(step_size, Tensor):
        return step_size.clamp(min=_SMALLEST_STEP_SIZE)
    return max(step_size, _SMALLEST_STEP_SIZE)
