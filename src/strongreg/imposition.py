"""How a penalty is imposed in gradient mode, and what is checked of strengths; the proximal step is in ``kernels``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from strongreg.dtensors import as_dtensor, has_same_layout, local
from strongreg.groups import Target
from strongreg.precision import at_least_float32, is_half
from strongreg.scalars import as_tensor
from strongreg.sharding import Shards
from strongreg.warning import warn

_MOSTLY = 0.5

Multiplier = float | Tensor
"""Factor on a strength; a 0-d tensor where the host does not know whether the gate is open."""


def add_gradients(
    targets: Sequence[Target],
    parts: Sequence[Target],
    multipliers: Sequence[Multiplier],
    signs: Sequence[float],
    scale: Tensor | None,
) -> None:
    """Add each penalty's gradient to ``.grad``; a parameter without gradient is left alone.

    It is written in place, but where ``.grad`` is an expanded tensor, whose entries share memory, or a DTensor that is
    not laid out as its parameter: that one is replaced.

    Args:
        targets: the K penalized parameters.
        parts: the same with this process's parts of them.
        multipliers: factor on the strength of each, 0 where its gate is closed, K entries.
        signs: per target 1.0, or -1.0 where ``.grad`` is an ascent direction.
        scale: the factor that ``.grad`` is scaled by, one entry, or None.
    """
    for target, part, multiplier, sign in zip(targets, parts, multipliers, signs, strict=True):
        param = target.param
        if param.grad is None or _is_zero(multiplier):
            continue
        added = part.penalty.subgradient(part.param) * (sign * multiplier)
        added = added if scale is None else added * scale.to(added.device)
        grad = local(param.grad, param)
        if _overlaps_itself(grad):
            param.grad = as_dtensor(grad + added.to(grad.dtype), param)
        else:
            grad.add_(added)
            if not has_same_layout(param.grad, param):
                param.grad = as_dtensor(grad, param)


def weighted_value(shards: Shards, multipliers: Sequence[Multiplier]) -> Tensor:
    """The penalty of the whole network.

    Args:
        shards: what this process holds of the K penalized parameters.
        multipliers: factor on the strength of each, K entries.

    Returns:
        0-d tensor on the device of the first parameter, in units of the loss.
    """
    targets = shards.targets()
    device = targets[0].param.device
    values = [
        m * at_least_float32(t.penalty.value(t.param)).to(device) for t, m in zip(targets, multipliers, strict=True)
    ]
    total, _ = shards.total(torch.stack(values))
    return as_tensor(total).sum()


@torch.no_grad()
def warn_of_lost_shrinkage(
    targets: Sequence[Target], multipliers: Sequence[float], step_sizes: Sequence[float | Tensor]
) -> None:
    """Warn where weights of half precision are too coarse for the proximal step: it rounds back to where it began.

    Args:
        targets: the K penalized parameters.
        multipliers: factor on the strength of each, K entries.
        step_sizes: effective step size for each, K entries.
    """
    lost = []
    for target, multiplier, step_size in zip(targets, multipliers, step_sizes, strict=True):
        param = target.param.detach()
        if is_half(param.dtype) and float(step_size) * multiplier * target.penalty.strength > 0:
            shrunk = target.penalty.prox(param.float(), float(step_size) * multiplier)
            moves = shrunk != param
            if int((moves & (shrunk.to(param.dtype) == param)).sum()) > _MOSTLY * int(moves.sum()):
                lost.append(target.name)
    if lost:
        warn(
            f"{lost} are of half precision, and one step of the penalty moves most of their weights by less than the "
            "next number away, that is, not at all: keep the weights in float32 (autocast computes in half precision "
            "all the same), or raise strength or learning rate"
        )


def check_strengths(targets: Sequence[Target], scales: Sequence[float]) -> None:
    """Check that every strength is a number that can be computed with.

    Args:
        targets: the K penalized parameters.
        scales: relative strength of each, K entries.

    Raises:
        ValueError: a strength is infinite in the precision of its parameter: the penalty would be NaN, not strong.
    """
    for target, scale in zip(targets, scales, strict=True):
        dtype = torch.float32 if is_half(target.param.dtype) else target.param.dtype
        largest = torch.finfo(dtype).max
        if not target.penalty.strength * scale <= largest:
            raise ValueError(
                f"{target.penalty!r} on parameter {target.name!r}: the strength {target.penalty.strength:g} times the "
                f"tensor's relative strength {scale:g} is beyond {largest:.2g}, the largest number in {dtype}, in "
                "which this penalty is computed; lower the strength"
            )


def _overlaps_itself(tensor: Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _is_zero(multiplier: Multiplier) -> bool:
    return not isinstance(multiplier, Tensor) and multiplier == 0
