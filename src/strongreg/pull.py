"""What moves the weights apart from the penalty: the loss gradient, or the step that the optimizer has taken.

Where an optimizer's step is in proportion to the gradient (SGD), gradient and penalty gradient have the same units, and
they are compared. Where the optimizer rescales it (Adam and its kin), the proximal step stands beside a step whose size
does not depend on the gradient's, and that step is compared with it (docs/theory.md, equation 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer
from torch.optim import optimizer as optimizer_module

from strongreg.decision import BeforeStep
from strongreg.devices import Constants, reading_is_free
from strongreg.dtensors import local
from strongreg.groups import Target
from strongreg.kernels import AdamStep, Passes, size_of_all
from strongreg.optimizers import (
    Group,
    effective_step_size,
    follows_gradient,
    gradient_sign,
    loss_scale,
    of_groups,
    step_is_skipped,
)
from strongreg.precision import scalar_dtype
from strongreg.scalars import Scalars, as_scalars, namespace, one_tensor
from strongreg.settings import CoherenceOf, Mode

_OUR_HOOKS = "strongreg.regularizer"
_GLOBAL_HOOKS = optimizer_module._global_optimizer_pre_hooks, optimizer_module._global_optimizer_post_hooks
_FORESEEN = (torch.float32, torch.float64)  # in half precision the rounding of the step is part of it
_SMALLEST_STEP_SIZE = 1e-30  # a learning rate of 0 moves nothing, and its reciprocal must stay finite


def compares_with_step(coherence_of: CoherenceOf, mode: Mode, optimizer: Optimizer) -> bool:
    """Whether the penalty must be coherent with the optimizer's step and not with the gradient.

    Args:
        coherence_of: what the user chose.
        mode: how the penalty is imposed.
        optimizer: the optimizer.

    Returns:
        The user's word, or for "auto" whether the step of the proximal mode stands beside a rescaled one.
    """
    if coherence_of == "auto":
        return mode == "proximal" and not follows_gradient(optimizer)
    return coherence_of == "step"


def look_before_step(
    targets: Sequence[Target],
    passes: Passes,
    optimizer: Optimizer,
    groups: Sequence[Group],
    device: torch.device,
    *,
    products: bool,
    of_step: bool,
) -> BeforeStep:
    """What is to be known before the weights move.

    Args:
        targets: the K penalized parameters.
        passes: what computes over them.
        optimizer: the optimizer, within its step, with the gradients there.
        groups: the parameter group of each.
        device: where to gather the scalars.
        products: whether to take inner products with the penalty gradients.
        of_step: whether these are to be the step's and not the gradients'. Where the step cannot be foreseen they are
            taken after it, with a copy of the weights.

    Returns:
        The weights, and what the gradients show.

    Raises:
        TypeError: a gradient is sparse.

    Where each process holds a part of the parameters, the weights are these parts; all else is of the whole.
    """
    grads: Sequence[Tensor | None] = [target.param.grad for target in targets]
    for target, grad in zip(targets, grads, strict=True):
        if grad is not None and grad.layout != torch.strided:
            raise TypeError(
                f"parameter {target.name!r} has a gradient of layout {grad.layout}, which strongreg does not support: "
                f"exclude it with {{{target.name!r}: None}} in the mapping of penalties"
            )
    grads = passes.shards.parts(grads)
    weights: list[Tensor] = [target.param for target in passes.shards.targets()]
    scale = loss_scale(optimizer)
    foreseen = foreseen_steps(targets, optimizer, groups) if products and of_step else None
    if foreseen is not None:
        sums = passes.foreseen(grads, foreseen, weights, device)
    elif products and not of_step:
        sums = passes.products(grads, weights, device)
    else:
        sums = passes.squares(grads, device)[:, None]
    rest = _others(targets, optimizer)
    summed, others = passes.shards.total(as_scalars(sums), _size_of_gradients(rest, device), rest)
    if foreseen is not None:
        taken, gradient_sq = summed[:, :4], summed[:, 4]
    else:
        taken, gradient_sq = summed if products and not of_step else None, summed[:, 0]
    xp = namespace(gradient_sq)
    finite = xp.isfinite(gradient_sq.sum() + others)
    skipped = step_is_skipped(optimizer, device)
    if _learning_rate_is_0(optimizer) and any(grad is not None for grad in grads):
        # so torch.distributed.checkpoint makes an optimizer create its state: no weight moves
        skipped = skipped | ((gradient_sq.sum() == 0) & (others == 0))
    if scale is not None:
        divisor = as_scalars(scale.to(device=device, dtype=scalar_dtype(device)).reshape(()))
        gradient_sq = gradient_sq / (divisor * divisor)
    if taken is not None and foreseen is None:
        # undo the loss scale and the sign of an ascent
        unit = 1.0 if scale is None else 1 / divisor
        taken = scaled(taken, of_groups(groups, lambda group: gradient_sign(group) * unit), passes.constant)
    after = products and of_step and foreseen is None
    if after:
        weights = _copies(weights)
    return BeforeStep(weights, [grad is not None for grad in grads], gradient_sq, finite, skipped, taken, after, groups)


def foreseen_steps(targets: Sequence[Target], optimizer: Optimizer, groups: Sequence[Group]) -> list[AdamStep] | None:
    """The steps that an optimizer is about to take, where that can be told from its state.

    Args:
        targets: the K penalized parameters.
        optimizer: the optimizer, within its step.
        groups: the parameter group of each.

    Returns:
        K steps; None for other optimizers than Adam and AdamW, on accelerators, where other hooks may change the step,
        where the learning rate is 0, and under options that are not known here.
    """
    if type(optimizer) not in (Adam, AdamW) or loss_scale(optimizer) is not None:
        return None
    hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks, *_GLOBAL_HOOKS
    if any(hook.__module__ != _OUR_HOOKS for each in hooks for hook in each.values()):
        return None  # they may change gradients or weights on the way
    params = [target.param for target in targets]
    if any(not reading_is_free(param.device) or param.dtype not in _FORESEEN for param in params):
        return None
    each = {id(group): group for group in groups}.values()
    if any(group["amsgrad"] or group["differentiable"] or float(group["lr"]) == 0 for group in each):
        return None
    return [_adam_step(optimizer.state.get(param, {}), group) for param, group in zip(params, groups, strict=True)]


def _adam_step(state: dict[str, Any], group: Group) -> AdamStep:
    return AdamStep(
        exp_avg=local(state.get("exp_avg")),
        exp_avg_sq=local(state.get("exp_avg_sq")),
        betas=(float(group["betas"][0]), float(group["betas"][1])),
        num_steps=float(state.get("step", 0)) + 1,
        eps=float(group["eps"]),
        weight_decay=float(group["weight_decay"]),
        decoupled=bool(group["decoupled_weight_decay"]),
        sign=gradient_sign(group),
    )


def products_of_step(
    passes: Passes,
    optimizer: Optimizer,
    before: BeforeStep,
    device: torch.device,
) -> Scalars:
    """Inner products of the steps taken, per unit of step size, and the penalty gradients before them.

    Args:
        passes: what computes over the K penalized parameters.
        optimizer: the optimizer, after its step.
        before: with a copy of the weights.
        device: where to gather the numbers.

    Returns:
        As :meth:`strongreg.kernels.Passes.products`.
    """
    pairs = zip(before.weights, before.has_gradient, strict=True)
    moved = [weight if has_gradient else None for weight, has_gradient in pairs]
    now = [target.param for target in passes.shards.targets()]
    products, _ = passes.shards.total(as_scalars(passes.products(moved, before.weights, device, minus=now)))
    factors = of_groups(before.groups, lambda group: 1 / away_from_0(effective_step_size(optimizer, group)))
    return scaled(products, factors, passes.constant)


def scaled(products: Scalars, factors: Sequence[float | Tensor], constant: Constants) -> Scalars:
    """The inner products for pulls that are multiplied by factors.

    Args:
        products: as :meth:`strongreg.kernels.Passes.products` gives them, shape (K, 4).
        factors: K numbers, or tensors of one entry.
        constant: what keeps tensors of host numbers.

    Returns:
        Shape (K, 4).
    """
    if all(not isinstance(factor, Tensor) and factor == 1 for factor in factors):
        return products
    xp = namespace(products)
    by_row: Scalars
    if xp is np:
        by_row = np.array([float(factor) for factor in factors])
    else:
        by_row = one_tensor(factors, products.dtype, products.device, constant)
    with np.errstate(invalid="ignore", over="ignore"):
        factors_of_columns = xp.stack([by_row * by_row, by_row, xp.ones_like(by_row), xp.ones_like(by_row)], 1)
        return products * factors_of_columns


def _copies(weights: list[Tensor]) -> list[Tensor]:
    if not all(type(weight.data) is Tensor for weight in weights):
        return [weight.clone() for weight in weights]
    copies = [torch.empty_like(weight) for weight in weights]
    torch._foreach_copy_(copies, weights)  # few launches on an accelerator
    return copies


def _others(targets: Sequence[Target], optimizer: Optimizer) -> list[Tensor]:
    """The parameters with a gradient that are not penalized (biases, normalization)."""
    penalized = {id(target.param) for target in targets}
    return [
        param
        for group in optimizer.param_groups
        for param in group["params"]
        if id(param) not in penalized and param.grad is not None
    ]


def _size_of_gradients(params: Sequence[Tensor], device: torch.device) -> Scalars:
    """A norm of the gradients of some parameters, 0-d; of this process's parts of them."""
    grads = [local(param.grad, param) for param in params if param.grad is not None]
    # of a sparse one the values: a batch may have looked nothing up
    grads = [grad.coalesce().values() if grad.layout == torch.sparse_coo else grad for grad in grads]
    return size_of_all([grad for grad in grads if grad.numel()], device)


def _learning_rate_is_0(optimizer: Optimizer) -> bool:
    """Whether it is 0 everywhere; False where to look would mean to wait for an accelerator."""
    for group in optimizer.param_groups:
        rate = group.get("lr", 0.0)
        if (isinstance(rate, Tensor) and not reading_is_free(rate.device)) or float(rate) != 0:
            return False
    return True


def away_from_0(step_size: float | Tensor) -> float | Tensor:
    """A step size whose reciprocal is finite.

    Args:
        step_size: >= 0; a learning rate may become 0.

    Returns:
        A number or tensor > 0.
    """
    if isinstance(step_size, Tensor):
        return step_size.clamp(min=_SMALLEST_STEP_SIZE)
    return max(step_size, _SMALLEST_STEP_SIZE)
