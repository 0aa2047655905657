"""The contract of a gate: one abstract class."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Scope = Literal["global", "layer"]
SCOPES: tuple[Scope, ...] = ("global", "layer")


@dataclass(frozen=True)
class Gate(abc.ABC):
    """Decides at each step whether the penalty acts.

    Gates are immutable and have no memory: the decision is a function of this step's coherence and number, so it can be
    made on any device without moving anything to the host.
    """

    @property
    def decision_scope(self) -> Scope:
        """Whether one coherence is measured for the whole network ("global") or one per parameter tensor ("layer")."""
        return "global"

    @abc.abstractmethod
    def is_open(self, coherence: Tensor, step: Tensor) -> Tensor:
        """Whether the penalty acts at this step.

        Args:
            coherence: cosine of the loss gradient and the regularized gradient, in [-1, 1], 0-d for scope "global", one
                entry per penalized tensor for "layer"; NaN where it cannot be measured: there the
                :class:`strongreg.Regularizer` imposes nothing, whatever the answer.
            step: 0-d integer tensor, the number of optimizer steps done before this one.

        Returns:
            Boolean tensor of the shape of ``coherence``, on its device.
        """
