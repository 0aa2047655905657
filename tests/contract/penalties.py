"""Every penalty, with several options: one line in ``CASES`` gives a newcomer the whole contract suite."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from strongreg import L1, L2, MCP, ElasticNet, GroupL2, Penalty, SparseGroup

SHAPE = (4, 3, 2)


@dataclass(frozen=True)
class Case:
    """A penalty; ``within`` are the dimensions of ``SHAPE`` that lie within a group, none for separable penalties."""

    penalty: Penalty
    within: tuple[int, ...] = ()
    convex: bool = True

    @property
    def separable(self) -> bool:
        """Whether each weight is penalized by itself."""
        return not self.within

    @property
    def has_exact_zeros(self) -> bool:
        """Whether the prox gives exact zeros."""
        return self.penalty.has_exact_zeros


CASES = {
    "l1": Case(L1(0.7)),
    "l1-strong": Case(L1(20.0)),
    "l2": Case(L2(0.7)),
    "elastic-net": Case(ElasticNet(0.7)),
    "elastic-net-0": Case(ElasticNet(0.7, l1_ratio=0.0)),
    "elastic-net-1": Case(ElasticNet(0.7, l1_ratio=1.0)),
    "mcp": Case(MCP(0.3, cutoff=0.5), convex=False),
    "mcp-hard": Case(MCP(2.0, cutoff=0.3), convex=False),  # step * strength >= cutoff: a hard threshold
    "group": Case(GroupL2(0.7), within=(1, 2)),
    "group-dim-1": Case(GroupL2(0.7, dim=1), within=(0, 2)),
    "group-dim-0-1": Case(GroupL2(0.7, dim=(0, 1)), within=(2,)),
    "group-dim-minus-1": Case(GroupL2(0.7, dim=-1), within=(0, 1)),
    "group-by-size": Case(GroupL2(0.3, weight_by_size=True), within=(1, 2)),
    "sparse-group": Case(SparseGroup(0.7), within=(1, 2)),
    "sparse-group-0": Case(SparseGroup(0.7, l1_ratio=0.0), within=(1, 2)),
    "sparse-group-1": Case(SparseGroup(0.7, l1_ratio=1.0), within=(1, 2)),
    "sparse-group-options": Case(SparseGroup(0.5, l1_ratio=0.3, dim=(0, 1), weight_by_size=True), within=(2,)),
}


def cases(**properties: bool) -> pytest.MarkDecorator:
    """A test over the cases with these properties: ``separable``, ``convex``, ``has_exact_zeros``."""
    chosen = {name: case for name, case in CASES.items() if all(getattr(case, p) is v for p, v in properties.items())}
    return pytest.mark.parametrize("case", list(chosen.values()), ids=list(chosen))


def __getattr__(name: str) -> pytest.MarkDecorator:
    """``every_case``, made when a test file asks for it: a plugin may have added a case of its own before."""
    if name == "every_case":
        return cases()
    raise AttributeError(name)


def weights(*shape: int) -> Tensor:
    """Random weights of shape ``SHAPE`` or another."""
    return torch.randn(shape or SHAPE, dtype=torch.float64)


def with_zeros(w: Tensor) -> Tensor:
    """The same weights, the first slice and every fifth entry at 0: kinks of every penalty."""
    w = w.clone()
    w[0] = 0.0
    w.view(-1)[::5] = 0.0
    return w
