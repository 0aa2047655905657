"""Every torch optimizer that takes dense gradients: one line gives a newcomer the whole contract suite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]

_SPECS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.05}),
    "sgd-momentum": ("SGD", {"lr": 0.05, "momentum": 0.9}),
    "sgd-dampening": ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.5}),
    "sgd-nesterov": ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "sgd-weight-decay": ("SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}),
    "sgd-maximize": ("SGD", {"lr": 0.05, "momentum": 0.9, "maximize": True}),
    "sgd-tensor-lr": ("SGD", {"lr": torch.tensor(0.05), "momentum": 0.9}),
    "sgd-foreach": ("SGD", {"lr": 0.05, "momentum": 0.9, "foreach": True}),
    "sgd-fused": ("SGD", {"lr": 0.05, "momentum": 0.9, "fused": True}),
    "adam": ("Adam", {"lr": 0.01}),
    "adam-amsgrad": ("Adam", {"lr": 0.01, "amsgrad": True}),
    "adam-foreach": ("Adam", {"lr": 0.01, "foreach": True}),
    "adam-fused": ("Adam", {"lr": 0.01, "fused": True}),
    "adam-tensor-lr": ("Adam", {"lr": torch.tensor(0.01)}),
    "adamw": ("AdamW", {"lr": 0.01, "weight_decay": 0.0}),
    "adamw-fused": ("AdamW", {"lr": 0.01, "fused": True}),
    "nadam": ("NAdam", {"lr": 0.01}),
    "radam": ("RAdam", {"lr": 0.01}),
    "rmsprop": ("RMSprop", {"lr": 0.01}),
    "rmsprop-momentum": ("RMSprop", {"lr": 0.01, "momentum": 0.9}),
    "adagrad": ("Adagrad", {"lr": 0.05}),
    "adagrad-fused": ("Adagrad", {"lr": 0.05, "fused": True}),
    "adadelta": ("Adadelta", {"lr": 1.0}),
    "adamax": ("Adamax", {"lr": 0.01}),
    "asgd": ("ASGD", {"lr": 0.05}),
    "rprop": ("Rprop", {"lr": 0.01}),
    "lbfgs": ("LBFGS", {"lr": 0.5, "max_iter": 4}),
    "lbfgs-wolfe": ("LBFGS", {"lr": 1.0, "max_iter": 4, "line_search_fn": "strong_wolfe"}),
    "adafactor": ("Adafactor", {"lr": 0.01}),
    "muon": ("Muon", {"lr": 0.02}),
}
SPECS = {name: spec for name, spec in _SPECS.items() if hasattr(torch.optim, spec[0])}
FUSED = [name for name, (_, options) in SPECS.items() if options.get("fused")]

every_optimizer = pytest.mark.parametrize("name", list(SPECS))


def make_optimizer(name: str, params: Iterable[Tensor]) -> Optimizer:
    """An optimizer of the list; a tensor learning rate is copied, for the optimizer keeps it."""
    class_name, options = SPECS[name]
    options = {k: v.clone() if isinstance(v, Tensor) else v for k, v in options.items()}
    return getattr(torch.optim, class_name)(list(params), **options)


def make_model(name: str = "sgd", seed: int = 0) -> nn.Module:
    """A small network; without biases for Muon, which takes matrices only."""
    torch.manual_seed(seed)
    bias = not name.startswith("muon")
    return nn.Sequential(nn.Linear(6, 16, bias=bias), nn.Tanh(), nn.Linear(16, 3, bias=bias))


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The batch of a step: always the same for the same step."""
    generator = torch.Generator().manual_seed(1000 + step)
    inputs = torch.randn(32, 6, generator=generator)
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()


def take_step(model: nn.Module, optimizer: Optimizer, step: int) -> Tensor:
    """One training step, with a closure where the optimizer needs one; returns the loss."""
    sign = -1.0 if optimizer.param_groups[0].get("maximize", False) else 1.0

    def closure() -> Tensor:
        optimizer.zero_grad()
        inputs, labels = batch(step)
        loss = sign * nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    if isinstance(optimizer, torch.optim.LBFGS):
        return optimizer.step(closure)
    loss = closure()
    optimizer.step()
    return loss.detach()


def train(model: nn.Module, optimizer: Optimizer, steps: Iterable[int]) -> None:
    """Several training steps."""
    for step in steps:
        take_step(model, optimizer, step)


def same_bits(a: Any, b: Any) -> bool:
    """Whether two nested structures of tensors and plain data are equal, NaN equal to NaN, 0.0 unlike -0.0."""
    if isinstance(a, Tensor):
        if not isinstance(b, Tensor) or a.dtype != b.dtype or a.shape != b.shape:
            return False
        return a.detach().contiguous().numpy().tobytes() == b.detach().contiguous().numpy().tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same_bits(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same_bits, a, b))
    return bool(a == b)
