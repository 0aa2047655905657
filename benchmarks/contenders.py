"""Who takes part in step.py: bare optimizers, strongreg on them, other libraries, and plain copies.

All of them work on the same weights and gradients, and those with the same optimizer on the same state: a Regularizer
is attached before its turn and detached after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import strongreg
from parameter_sets import Restorer
from rounds import Still
from strongreg.groups import select_targets
from strongreg.kernels import compiled

LR, MOMENTUM, STRENGTH = 1e-5, 0.9, 1e-3
SGD_FUSED, ADAMW_FUSED = "SGD, fused", "AdamW, fused"
L1_GATE = "L1, coherence gate"
L1_IN_LOSS, PAT, CAUTIOUS = "L1 in the loss", "torchao PAT, ProxLasso", "Cautious Weight Decay"
ALONE, COPY, IN_PLACE = "regularizer alone, L1", "copy", "multiplication in place"
LEAST = "SGD, fused, between a dot product and a multiplication in place"
_COMPILED = "STRONGREG_COMPILED"


def _nothing() -> None:
    """What most have to do before and after their turn."""


@dataclass(frozen=True)
class Contender:
    """One that takes part.

    Args:
        kind: optimizer, strongreg, peer or memory.
        step: what is timed.
        base: whose time it is compared with.
        begin: what comes before its turn, untimed.
        end: what comes after it, untimed.
        regularizer: ours.
        opens: whether its gate has to be open, or closed, at every step.
    """

    kind: str
    step: Callable[[], object]
    base: str = SGD_FUSED
    begin: Callable[[], object] = _nothing
    end: Callable[[], object] = _nothing
    regularizer: strongreg.Regularizer | None = None
    opens: bool = True


class Arena:
    """One network with its gradients, and the optimizers on it.

    Args:
        model: the network, every parameter with a gradient.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.restorer = model, Restorer(model)
        self.params = self.restorer.params
        self.device = self.params[0].device
        self.num_weights = sum(param.numel() for param in self.params)
        self.weights = [target.param for target in select_targets(model, strongreg.L1(STRENGTH))]
        self.left_out: dict[str, str] = {}
        self._sign = 1.0

    @cached_property
    def sgd(self) -> Optimizer:
        """Fused SGD."""
        return SGD(self.params, lr=LR, momentum=MOMENTUM, fused=True)

    @cached_property
    def adamw(self) -> Optimizer:
        """Fused AdamW, without the decay that would stand beside a penalty."""
        return AdamW(self.params, lr=LR, weight_decay=0.0, fused=True)

    def contenders(self) -> dict[str, Contender]:
        """All that can take part here, neighbours as they take turns; ``left_out`` says of the others why not."""
        return {
            SGD_FUSED: Contender("optimizer", self.sgd.step),
            L1_GATE: self._ours(strongreg.L1(STRENGTH)),
            COPY: Contender("memory", self.restorer.restore_weights),
            IN_PLACE: Contender("memory", self.restorer.multiply_by_1),
            **({LEAST: Contender("optimizer", self._least)} if self.device.type == "cpu" else {}),
            **self._peers(),
            **self._optimizers(),
            **self._penalties(),
            **self._settings(),
        }

    @torch.no_grad()
    def _least(self) -> None:
        """A step that reads what the gate reads and writes what the proximal step writes, by torch's own passes."""
        for weight in self.weights:
            if weight.grad is not None:
                torch.dot(weight.view(-1), weight.grad.view(-1))
        self.sgd.step()
        torch._foreach_mul_(self.weights, 1.0)

    def _optimizers(self) -> dict[str, Contender]:
        foreach = SGD(self.params, lr=LR, momentum=MOMENTUM, foreach=True)
        adamw = AdamW(self.params, lr=LR, weight_decay=0.0, foreach=True)
        return {
            "SGD, foreach": Contender("optimizer", foreach.step),
            ADAMW_FUSED: Contender("optimizer", self.adamw.step),
            "L1 on AdamW, fused": self._ours(strongreg.L1(STRENGTH), self.adamw, ADAMW_FUSED),
            "AdamW, foreach": Contender("optimizer", adamw.step, ADAMW_FUSED),
        }

    def _penalties(self) -> dict[str, Contender]:
        penalties = (
            strongreg.L2(STRENGTH),
            strongreg.ElasticNet(STRENGTH),
            strongreg.MCP(STRENGTH),
            strongreg.GroupL2(STRENGTH),
            strongreg.SparseGroup(STRENGTH),
        )
        return {f"{type(penalty).__name__}, coherence gate": self._ours(penalty) for penalty in penalties}

    def _settings(self) -> dict[str, Contender]:
        l1 = strongreg.L1(STRENGTH)
        still = Still(self.params, LR)
        settings = {
            "L1, gate per layer": self._ours(l1, gate=strongreg.CoherenceGate(scope="layer")),
            "L1, gate closed": self._ours(l1, gate=strongreg.CoherenceGate(1.0), opens=False),
            "L1, always open": self._ours(l1, gate=strongreg.AlwaysOpen()),
            "L1, delay that is over": self._ours(l1, gate=strongreg.Delay(0)),
            "L1, gradient mode": self._ours(l1, mode="gradient"),
            "L1, no history": self._ours(l1, history_every=0),
            ALONE: self._ours(l1, still, coherence_of="gradient"),
        }
        if self.device.type == "cpu" and compiled._loops() is not None:
            settings["L1, without numba"] = self._ours(l1, compiled_loops=False)
        elif self.device.type == "cpu":
            self.left_out["L1, without numba"] = "no contender here has numba: pip install 'numba>=0.61'"
        return settings

    def _ours(
        self,
        penalty: strongreg.Penalty,
        optimizer: Optimizer | None = None,
        base: str = SGD_FUSED,
        *,
        opens: bool = True,
        compiled_loops: bool = True,
        **options: Any,
    ) -> Contender:
        optimizer = self.sgd if optimizer is None else optimizer
        regularizer = strongreg.Regularizer(self.model, penalty, **options)

        def begin() -> None:
            if not compiled_loops:
                os.environ[_COMPILED] = "0"
                compiled._loops.cache_clear()
            regularizer.attach(optimizer)

        def end() -> None:
            regularizer.detach()
            if not compiled_loops:
                del os.environ[_COMPILED]
                compiled._loops.cache_clear()

        return Contender("strongreg", optimizer.step, base, begin, end, regularizer, opens)

    def _peers(self) -> dict[str, Contender]:
        def l1(weight: Tensor) -> Tensor:
            return weight.abs().sum()

        def l2(weight: Tensor) -> Tensor:
            return weight.square().sum() / 2

        peers = {
            L1_IN_LOSS: Contender("peer", self._in_the_loss(l1)),
            "L2 in the loss": Contender("peer", self._in_the_loss(l2)),
        }
        for name, make, remedy in (
            (PAT, self._pat, "pip install torchao==0.18"),
            (CAUTIOUS, self._cautious, "pip install 'pytorch-optimizer>=3.9,<4.1'"),
        ):
            try:
                peers[name] = Contender("peer", make())
            except (ImportError, AttributeError):
                self.left_out[name] = remedy
        return peers

    def _in_the_loss(self, penalty: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def step() -> None:
            self._sign = -self._sign  # so that the gradients, which a loop would compute anew, stay what they are
            value = torch.stack([penalty(weight) for weight in self.weights]).sum()
            (self._sign * STRENGTH * value).backward()
            self.sgd.step()

        return step

    def _pat(self) -> Callable[[], object]:
        from torchao.prototype.pat.optim import PruneOptimizer

        penalized = set(self.weights)
        others = [param for param in self.params if param not in penalized]
        regularized = {"params": self.weights, "prox_type": "ProxLasso", "group_type": "ElemGrouper"}
        inner = SGD([regularized, {"params": others}], lr=LR, momentum=MOMENTUM, fused=True)
        return PruneOptimizer(inner, reg_lambda=STRENGTH).step

    def _cautious(self) -> Callable[[], object]:
        from pytorch_optimizer.base.optimizer import BaseOptimizer

        decay = BaseOptimizer.apply_cautious_weight_decay

        @torch.no_grad()
        def step() -> None:
            self.sgd.step()
            for weight in self.weights:
                decay(weight, self.sgd.state[weight]["momentum_buffer"], LR, STRENGTH)

        return step
