"""The networks that tests/sharding trains: how they lie over the processes, and what is imposed on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from strongreg import (
    L1,
    L2,
    MCP,
    CoherenceGate,
    Constant,
    ElasticNet,
    GroupL2,
    Refit,
    Regularizer,
    SparseGroup,
)
from strongreg.penalties import Penalty

NUM_STEPS = 12
BATCH = 16


@dataclass(frozen=True)
class OfNorm(Penalty):
    """The norm of the whole tensor: a penalty of a user's own, which knows nothing of parts."""

    def value(self, w: Tensor) -> Tensor:
        return self.strength * w.norm()

    def subgradient(self, w: Tensor) -> Tensor:
        return self.strength * w / w.norm().clamp(min=1e-30)

    def critical_strength(self, grad: Tensor) -> Tensor:
        return grad.norm()

    def optimality_gap(self, w: Tensor, grad: Tensor) -> Tensor:
        return (grad + self.subgradient(w)).norm()

    def _prox(self, w: Tensor, threshold: float | Tensor) -> Tensor:
        return w * (1 - threshold / w.norm().clamp(min=1e-30)).clamp(min=0)


@dataclass(frozen=True)
class Nonnegative(L1):
    """A class of a user's that changes what it inherits: the weights end at 0 or above."""

    def prox(self, w: Tensor, step: float | Tensor) -> Tensor:
        return super().prox(w, step).clamp(min=0)


class Network(nn.Module):
    """A number of rows that no number of processes divides, a convolution, and a layer of fewer rows than processes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3)
        self.up = nn.Linear(20, 12)
        self.down = nn.Linear(12, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu().flatten(1)
        return self.head(self.norm(self.down(self.up(x).relu())).tanh())


def ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def fsdp(model: nn.Module) -> nn.Module:
    return _fully_sharded(model, init_device_mesh("cpu", (dist.get_world_size(),)))


def hybrid(model: nn.Module) -> nn.Module:
    return _fully_sharded(model, init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))


def tensor_parallel(model: nn.Module) -> nn.Module:
    return _by_columns_and_rows(model, init_device_mesh("cpu", (dist.get_world_size(),)))


def both(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    return _fully_sharded(_by_columns_and_rows(model, mesh["tensor"]), mesh["data"])


def _fully_sharded(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    fully_shard(model.up, mesh=mesh)  # type: ignore[arg-type]
    fully_shard(model, mesh=mesh)
    return model


def _by_columns_and_rows(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    return parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


LAYOUTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    layout.__name__: layout for layout in (ddp, fsdp, hybrid, tensor_parallel, both)
}
PENALTIES: dict[str, Penalty] = {
    "l1": L1(0.03),
    "l2": L2(0.1),
    "elastic_net": ElasticNet(0.05),
    "mcp": MCP(0.03),
    "rows": GroupL2(0.05),
    "columns": GroupL2(0.05, dim=1, weight_by_size=True),
    "sparse_rows": SparseGroup(0.05),
    "sparse_columns": SparseGroup(0.05, dim=1),
    "of_norm": OfNorm(0.1),
    "nonnegative": Nonnegative(0.03),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.0),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.01),
}


@dataclass(frozen=True)
class Case:
    """One training run.

    Args:
        layout: how the network lies over the processes.
        penalty: name of a penalty.
        optimizer: name of an optimizer.
        scope: of the gate.
        refit: step at which the penalty ends and the zeros stay.
        options: of the Regularizer.
        num_steps: how long.
    """

    layout: str
    penalty: str
    optimizer: str = "sgd"
    scope: str = "global"
    refit: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    num_steps: int = NUM_STEPS

    def __str__(self) -> str:
        """For the names of tests."""
        more = [f"{name}={value}" for name, value in self.options.items()]
        refit = [] if self.refit is None else [f"refit={self.refit}"]
        return "-".join([self.layout, self.penalty, self.optimizer, self.scope, *refit, *more])

    def build(self, model: nn.Module) -> tuple[torch.optim.Optimizer, Regularizer]:
        """Optimizer and Regularizer of a network."""
        optimizer = OPTIMIZERS[self.optimizer](model.parameters())
        gate = CoherenceGate(0.7, scope=self.scope)  # type: ignore[arg-type]
        schedule = Constant() if self.refit is None else Refit(self.refit)
        options = {"gate": gate, "schedule": schedule, "warn_of_collapse": False, **self.options}
        return optimizer, Regularizer(model, PENALTIES[self.penalty], **options).attach(optimizer)


def batches(num_steps: int = NUM_STEPS) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    shapes = (BATCH, 1, 4, 4), (BATCH, 1)
    return [
        tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)  # type: ignore[misc]
        for _ in range(num_steps)
    ]


def train(
    forward: nn.Module, optimizer: torch.optim.Optimizer, steps: Sequence[tuple[Tensor, Tensor]], share: slice
) -> None:
    for inputs, answers in steps:
        optimizer.zero_grad()
        ((forward(inputs[share]) - answers[share]) ** 2).mean().backward()
        optimizer.step()


def new_network(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return Network().double()


def share_of(layout: str) -> slice:
    """The images of this process: those that share a network's rows and columns all see the same."""
    if layout == "tensor_parallel":
        return slice(None)
    if layout == "both":
        return slice(dist.get_rank() // 2, None, 2)
    return slice(dist.get_rank(), None, dist.get_world_size())
