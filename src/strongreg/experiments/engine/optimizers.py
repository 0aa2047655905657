"""The optimizers of a recipe and their learning rate over the steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from strongreg.experiments.errors import UserError
from strongreg.experiments.recipe import OptimizerSection

_MUON_RATIO = 0.1
_ONE_CYCLE_RISE = 0.3  # as in torch.optim.lr_scheduler.OneCycleLR


def build_optimizers(model: nn.Module, section: OptimizerSection) -> list[Optimizer]:
    """The optimizers that hold a network's parameters between them.

    Args:
        model: the network.
        section: name, learning rate and the rest.

    Returns:
        One optimizer; two for Muon, which takes the hidden matrices: the second, AdamW with a tenth of the learning
        rate, takes convolutions, biases, embeddings, normalization and the last layer.

    Raises:
        UserError: Muon is asked for, and this torch has none.
    """
    params = list(model.parameters())
    if section.name == "sgd":
        return [
            torch.optim.SGD(
                params,
                lr=section.lr,
                momentum=section.momentum,
                nesterov=section.nesterov,
                weight_decay=section.weight_decay,
            )
        ]
    if section.name == "adamw":
        return [torch.optim.AdamW(params, lr=section.lr, weight_decay=section.weight_decay)]
    if not hasattr(torch.optim, "Muon"):
        raise UserError(f"optimizer.name=muon needs torch 2.9 or later, this is {torch.__version__}: choose adamw")
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    matrices = {id(module.weight) for module in linear[:-1]}
    hidden = [p for p in params if id(p) in matrices]
    others = [p for p in params if id(p) not in matrices]
    optimizers: list[Optimizer] = []
    if hidden:
        optimizers.append(
            torch.optim.Muon(hidden, lr=section.lr, momentum=section.momentum, weight_decay=section.weight_decay)
        )
    if others:
        optimizers.append(torch.optim.AdamW(others, lr=section.lr * _MUON_RATIO, weight_decay=section.weight_decay))
    return optimizers


def lr_schedule(section: OptimizerSection, num_steps: int) -> Callable[[int], float]:
    """The factor on the learning rate at each step.

    Args:
        section: the schedule and its shares.
        num_steps: optimizer steps of the whole run.

    Returns:
        A function from the number of steps done, 0 to num_steps - 1, to a factor in [0, 1].
    """
    rise = section.warmup_share
    if section.schedule == "one_cycle" and rise == 0:
        rise = _ONE_CYCLE_RISE
    num_warm = round(num_steps * rise)
    num_held = max(round(num_steps * section.hold_share), num_warm)
    milestones = [round(num_steps * share) for share in section.milestones]

    def half_cosine(step: int, start: int) -> float:
        """1 at ``start``, and 0 at ``num_steps``."""
        return (1 + math.cos(math.pi * (step - start) / max(num_steps - start, 1))) / 2

    def factor(step: int) -> float:
        if step < num_warm:
            return (step + 1) / num_warm
        if section.schedule == "hold_cosine":
            return 1.0 if step < num_held else half_cosine(step, num_held)
        if section.schedule in ("cosine", "one_cycle"):
            return half_cosine(step, num_warm)
        if section.schedule == "step":
            return section.gamma ** sum(step >= milestone for milestone in milestones)
        return 1.0

    return factor
