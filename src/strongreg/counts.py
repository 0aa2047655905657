"""Counts of what happened at the steps, kept where the weights are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from strongreg.decision import Decision
from strongreg.warning import warn


class StepCounts:
    """How many steps there were, and at how many the gate was open.

    Attributes:
        step: optimizer steps done, 0-d integer tensor.
        num_nonfinite: steps with a loss gradient that holds NaN or infinity, 0-d integer tensor.
        num_open: steps at which the penalty acted on each penalized tensor, shape (K,).
        last_open: whether it acted at the last step outside a refit, shape (K,), boolean.

    Args:
        num_targets: number of penalized tensors, K.
    """

    def __init__(self, num_targets: int) -> None:
        self.step = torch.zeros((), dtype=torch.int64)
        self.num_nonfinite = torch.zeros((), dtype=torch.int64)
        self.num_open = torch.zeros(num_targets, dtype=torch.int64)
        self.last_open = torch.zeros(num_targets, dtype=torch.bool)
        self._has_warned = False

    def to(self, device: torch.device) -> None:
        """Move the counts.

        Args:
            device: where the decisions are made.
        """
        if self.step.device != device:
            self.step, self.num_nonfinite = self.step.to(device), self.num_nonfinite.to(device)
            self.num_open, self.last_open = self.num_open.to(device), self.last_open.to(device)

    def count(self, decision: Decision, in_refit: Tensor) -> None:
        """Count a step after it was done; one that a GradScaler made the optimizer skip does not count.

        Args:
            decision: what was decided before it.
            in_refit: whether it belongs to the refit, 0-d boolean.
        """
        taken = ~decision.skipped
        self.num_open += decision.opened
        self.last_open = torch.where(taken & ~in_refit, decision.opened, self.last_open)
        self.num_nonfinite += decision.nonfinite & taken
        self.step += taken

    def warn_once_of_nonfinite(self) -> None:
        """Warn, the first time, if there were steps with a non-finite gradient; the host looks at the count."""
        if not self._has_warned and int(self.num_nonfinite):
            self._has_warned = True
            warn(
                "the loss gradient holds NaN or infinity: the penalty is not imposed at such steps (counted in "
                "num_nonfinite, warned about once); look at the loss and the learning rate",
                RuntimeWarning,
            )

    def state_dict(self) -> dict[str, Any]:
        """The counts as plain data.

        Returns:
            A dictionary for :meth:`load_state_dict`.
        """
        return {name: getattr(self, name).tolist() for name in ("step", "num_nonfinite", "num_open", "last_open")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the counts.

        Args:
            state: what :meth:`state_dict` returned.
        """
        self.step = torch.tensor(state["step"], dtype=torch.int64)
        self.num_nonfinite = torch.tensor(state["num_nonfinite"], dtype=torch.int64)
        self.num_open = torch.tensor(state["num_open"], dtype=torch.int64)
        self.last_open = torch.tensor(state["last_open"], dtype=torch.bool)
