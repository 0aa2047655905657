"""The path that an accelerator takes, on the CPU."""

from __future__ import annotations

import collections
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from strongreg import Regularizer
from strongreg.groups import PenaltySpec

_LAUNCH_NOTHING = {
    "alias", "as_strided", "detach", "empty", "empty_like", "empty_strided", "expand", "new_empty", "permute", "select",
    "slice", "split", "split_with_sizes", "t", "transpose", "unbind", "unsqueeze", "view", "_unsafe_view",
}  # fmt: skip


def take_the_cpu_for_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every part of the library take the CPU for a device whose values the host cannot look at."""
    for name, module in list(sys.modules.items()):
        if name.startswith("strongreg.") and hasattr(module, "reading_is_free"):
            monkeypatch.setattr(module, "reading_is_free", lambda device: False)


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "sgd-tensor-lr": lambda params: torch.optim.SGD(params, lr=torch.tensor(0.1), momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.1),
    "adamw-tensor-lr": lambda params: torch.optim.AdamW(params, lr=torch.tensor(0.1)),
}


class Launches(TorchDispatchMode):
    """Counts the operations that would launch something on an accelerator."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: D105
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name not in _LAUNCH_NOTHING:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def launches_of_a_step(
    num_layers: int, penalty: PenaltySpec, name: str, *, by_group: bool = True
) -> collections.Counter[str]:
    """What our part of an optimizer's step launches for a network of some layers, once everything is set up."""
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(num_layers)))
    half = num_layers // 2 * 2
    params = list(model.parameters())
    groups = [{"params": params[:half]}, {"params": params[half:], "lr": 0.02}] if by_group else params
    optimizer = OPTIMIZERS[name](groups)
    reg = Regularizer(model, penalty).attach(optimizer)
    for handle in reg._attachment._handles:  # they are called by hand, apart from what the optimizer does
        handle.remove()
    for _ in range(3):
        launches = Launches()
        optimizer.zero_grad()
        model(torch.ones(2, 6)).square().sum().backward()
        with launches:
            reg._before_step(optimizer, (optimizer,), {})
        optimizer.step()
        with launches:
            reg._after_step(optimizer, (optimizer,), {})
    assert launches.counts, "nothing was launched: the hooks did not work"
    return launches.counts
