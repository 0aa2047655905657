"""What the method needs to know of a torch optimizer: its step size, its parameter groups, its loss scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.optim import ASGD, LBFGS, SGD, Optimizer, RMSprop
from torch.optim.lr_scheduler import LRScheduler

from strongreg.devices import reading_is_free
from strongreg.dtensors import is_dtensor
from strongreg.groups import Target
from strongreg.penalties import L2, ElasticNet
from strongreg.scalars import Scalars, as_scalars
from strongreg.warning import warn

Group = dict[str, Any]
_Result = TypeVar("_Result")
StepArguments = tuple[tuple[Any, ...], dict[str, Any]]


def effective_step_size(optimizer: Optimizer, group: Group) -> float | Tensor:
    r"""The step size :math:`s` of the proximal step that goes with one step of the optimizer.

    For SGD with momentum :math:`\mu` and dampening :math:`d`, a constant gradient moves the weights by
    :math:`lr\,(1-d)/(1-\mu)` per step in the long run, with Nesterov's variant too; with this :math:`s` the stationary
    points are those of :math:`L + \lambda\Omega` (docs/theory.md, equation 5). RMSprop with momentum sums its steps in
    the same way, so :math:`s = lr/(1-\mu)`. For all others :math:`s = lr`: decoupled, as the weight decay of AdamW.

    Args:
        optimizer: the optimizer.
        group: one of its parameter groups.

    Returns:
        The step size, a tensor where ``lr`` is one.

    Raises:
        TypeError: the group has no "lr".
        ValueError: the momentum of SGD or RMSprop is 1 or more.

    Example:
        >>> import torch, strongreg
        >>> optimizer = torch.optim.SGD([torch.zeros(3)], lr=0.1, momentum=0.9)
        >>> round(strongreg.effective_step_size(optimizer, optimizer.param_groups[0]), 6)
        1.0
    """
    if "lr" not in group:
        raise TypeError(
            f"{type(optimizer).__name__} has a parameter group without 'lr': the penalty's step size cannot be "
            "derived from it"
        )
    lr: float | Tensor = group["lr"]
    if isinstance(lr, Tensor):
        lr = lr.reshape(())
    if not isinstance(optimizer, SGD | RMSprop) or group["momentum"] == 0:
        return lr
    if not group["momentum"] < 1:
        raise ValueError(
            f"{type(optimizer).__name__}(momentum={group['momentum']}): momentum must be < 1 for the proximal step to "
            "have a size"
        )
    return lr * float((1 - group.get("dampening", 0)) / (1 - group["momentum"]))


def unwrap(optimizer: Any) -> Optimizer:
    """The torch optimizer itself, also of a wrapper that keeps it in ``.optimizer`` (Accelerate).

    Args:
        optimizer: an optimizer or a wrapper of one.

    Returns:
        The optimizer whose ``step`` does the work.

    Raises:
        TypeError: there is no torch optimizer.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(inner, Optimizer) or isinstance(optimizer, LRScheduler):
        raise TypeError(f"attach needs a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return inner


class GroupIndex:
    """Finds the parameter group of each target, quickly and also after ``load_state_dict`` has replaced the groups.

    Args:
        targets: the penalized parameters.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = targets
        self._positions: list[tuple[int, int]] = []

    def groups(self, optimizer: Optimizer) -> list[Group]:
        """The parameter group of each target.

        Args:
            optimizer: the optimizer that holds them.

        Returns:
            One group per target, in their order.

        Raises:
            RuntimeError: the optimizer no longer holds a target.
        """
        if not self._positions or not self._stand_at(optimizer):
            found = {
                id(param): (i, j)
                for i, group in enumerate(optimizer.param_groups)
                for j, param in enumerate(group["params"])
            }
            lost = [t.name for t in self._targets if id(t.param) not in found]
            if lost:
                raise RuntimeError(
                    f"the optimizer does not hold the penalized parameters {lost}: build the Regularizer after "
                    "replacing parameters"
                )
            self._positions = [found[id(t.param)] for t in self._targets]
        groups = optimizer.param_groups
        return [groups[i] for i, _ in self._positions]

    def _stand_at(self, optimizer: Optimizer) -> bool:
        """Whether the targets are where they were found before."""
        params = [group["params"] for group in optimizer.param_groups]
        try:
            return all(params[i][j] is t.param for t, (i, j) in zip(self._targets, self._positions, strict=True))
        except IndexError:
            return False


def of_groups(groups: Sequence[Group], what: Callable[[Group], _Result]) -> list[_Result]:
    """What holds for the parameter group of each target, computed once for each group: it may be a tensor.

    Args:
        groups: K parameter groups, most of them the same ones.
        what: of a group.

    Returns:
        K results, for the same group the same object.
    """
    results = {id(group): what(group) for group in {id(group): group for group in groups}.values()}
    return [results[id(group)] for group in groups]


def gradient_sign(group: Group) -> float:
    """1 where the optimizer descends along ``.grad``, -1 where it ascends (``maximize=True``).

    Args:
        group: a parameter group.

    Returns:
        1.0 or -1.0.
    """
    return -1.0 if group.get("maximize", False) else 1.0


def follows_gradient(optimizer: Optimizer) -> bool:
    """Whether a step's size is in proportion to the gradient's, so that both have the units of the penalty's gradient.

    Args:
        optimizer: the optimizer.

    Returns:
        True for SGD, ASGD and LBFGS; False for those that rescale the gradient (Adam and its kin, Muon, Rprop) and for
        unknown ones.
    """
    return isinstance(optimizer, SGD | ASGD | LBFGS)


def loss_scale(optimizer: Optimizer) -> Tensor | None:
    """The factor that a GradScaler has left in ``.grad`` for a fused optimizer to divide by.

    Args:
        optimizer: the optimizer, within its step.

    Returns:
        A tensor with one entry; None where the gradients are not scaled.
    """
    return getattr(optimizer, "grad_scale", None)


def step_is_skipped(optimizer: Optimizer, device: torch.device) -> Scalars:
    """Whether a GradScaler has found infinities, so that the fused optimizer leaves the weights alone.

    Args:
        optimizer: the optimizer, within its step.
        device: where to put the answer.

    Returns:
        0-d boolean; always False without a GradScaler.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is None and reading_is_free(device):
        return np.False_
    if found_inf is None:
        return torch.zeros((), dtype=torch.bool, device=device)
    return as_scalars(found_inf.to(device).reshape(())) > 0


def with_closure(args: tuple[Any, ...], kwargs: dict[str, Any], wrap: Callable[[Any], Any]) -> StepArguments | None:
    """The arguments of a step with another closure.

    Args:
        args: what a hook is given: the optimizer itself first.
        kwargs: the keywords.
        wrap: makes the new closure of the old one.

    Returns:
        The new arguments; None where there is no closure.
    """
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        return None
    if len(args) > 1:
        return (args[0], wrap(closure), *args[2:]), kwargs
    return args, {**kwargs, "closure": wrap(closure)}


def held_targets(targets: list[Target], optimizer: Optimizer) -> list[Target]:
    """The targets that an optimizer holds; frozen ones that it does not hold are left out.

    Args:
        targets: the penalized parameters.
        optimizer: the optimizer.

    Returns:
        The targets to penalize, in their order. A frozen one that was named by a pattern is left out with a warning.

    Raises:
        ValueError: the optimizer does not hold a trainable target, or holds none at all.
    """
    held = {id(param) for group in optimizer.param_groups for param in group["params"]}
    missing = [t for t in targets if id(t.param) not in held]
    trainable = [t.name for t in missing if t.param.requires_grad]
    if trainable:
        params = [param for group in optimizer.param_groups for param in group["params"]]
        if any(map(is_dtensor, params)):
            raise ValueError(
                f"the optimizer does not hold the penalized parameters {trainable}, but DTensors: fully_shard and "
                "parallelize_module replace a network's parameters, build the Regularizer after them; a forward pass "
                "without backward leaves them whole, call model.reshard() after it"
            )
        raise ValueError(
            f"the optimizer does not hold the penalized parameters {trainable}: give them to the optimizer, or "
            f"exclude them with a mapping such as {{{trainable[0]!r}: None, '*weight': L1(1e-3)}}"
        )
    if len(missing) == len(targets):
        raise ValueError(
            "all penalized parameters are frozen and the optimizer holds none: there is nothing to regularize"
        )
    frozen = [t.name for t in missing if t.by_pattern]
    if frozen:
        warn(
            f"not penalized, since they are frozen and the optimizer does not hold them: {frozen}; to penalize them "
            "later, give them to the optimizer now"
        )
    return [t for t in targets if id(t.param) in held]


def warn_of_weight_decay(targets: list[Target], optimizer: Optimizer) -> None:
    """Warn where the optimizer decays weights that an L2 or elastic-net penalty shrinks too.

    Args:
        targets: the penalized parameters.
        optimizer: the optimizer that holds them.
    """
    groups = GroupIndex(targets).groups(optimizer)
    ridge = [isinstance(t.penalty, L2 | ElasticNet) and t.penalty.strength > 0 for t in targets]
    decayed = [
        t.name
        for t, is_ridge, group in zip(targets, ridge, groups, strict=True)
        if is_ridge and group.get("weight_decay", 0) > 0
    ]
    if decayed:
        warn(
            f"the optimizer's weight_decay > 0 acts on {decayed} in addition to their L2 or ElasticNet penalty: set "
            "weight_decay=0 in their parameter group, or lower the penalty's strength"
        )
