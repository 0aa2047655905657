"""Counts of what happened at the steps, kept where the weights are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from strongreg.decision import Decision
from strongreg.devices import is_captured
from strongreg.groups import Target
from strongreg.scalars import as_scalars, namespace
from strongreg.summary import Summary, SummaryRow, advise
from strongreg.warning import warn

_TOO_MANY = 2**63
_OVERALL = ("step", "num_nonfinite")
_PER_TARGET = ("num_open", "num_allowed", "last_open")


class StepCounts:
    """How many steps there were, and at how many the gate was open.

    Attributes:
        step: optimizer steps done, 0-d integer tensor.
        num_nonfinite: steps with a loss gradient that holds NaN or infinity, 0-d integer tensor.
        num_open: steps at which the penalty acted on each penalized tensor, shape (K,).
        num_allowed: steps at which it might have acted: outside a refit, and with a gradient, shape (K,).
        last_open: whether it acted at the last of these, shape (K,), boolean.

    Args:
        num_targets: number of penalized tensors, K.
    """

    def __init__(self, num_targets: int) -> None:
        self.step = torch.zeros((), dtype=torch.int64)
        self.num_nonfinite = torch.zeros((), dtype=torch.int64)
        self.num_open = torch.zeros(num_targets, dtype=torch.int64)
        self.num_allowed = torch.zeros(num_targets, dtype=torch.int64)
        self.last_open = torch.zeros(num_targets, dtype=torch.bool)
        self._has_warned = False

    def to(self, device: torch.device) -> None:
        """Move the counts.

        Args:
            device: where the decisions are made.
        """
        if self.step.device != device:
            self.step, self.num_nonfinite = self.step.to(device), self.num_nonfinite.to(device)
            self.num_open, self.num_allowed = self.num_open.to(device), self.num_allowed.to(device)
            self.last_open = self.last_open.to(device)

    def count(self, decision: Decision) -> None:
        """Count a step after it was done; one that a GradScaler made the optimizer skip does not count.

        Args:
            decision: what was decided before it.
        """
        taken = ~decision.skipped
        allowed = taken & decision.allowed
        for counts, more in (
            (self.num_open, decision.opened),
            (self.num_allowed, allowed),
            (self.num_nonfinite, decision.nonfinite & taken),
            (self.step, taken),
        ):
            total = as_scalars(counts)
            total += more
        last_open = as_scalars(self.last_open)
        last_open[...] = namespace(last_open).where(allowed, decision.opened, last_open)

    def warn_once_of_nonfinite(self) -> None:
        """Warn, the first time, if there were steps with a non-finite gradient; the host looks at the count."""
        if not self._has_warned and not is_captured(self.num_nonfinite.device) and int(self.num_nonfinite):
            self._has_warned = True
            warn(
                "the loss gradient holds NaN or infinity: the penalty is not imposed at such steps (counted in "
                "num_nonfinite, warned about once); look at the loss and the learning rate",
                RuntimeWarning,
            )

    def summary(self, targets: Sequence[Target], num_zeros: Sequence[int], *, makes_zeros: bool) -> Summary:
        """Counts and weights as a table.

        Args:
            targets: the K penalized parameters.
            num_zeros: how many weights of each are 0, K entries.
            makes_zeros: whether exact zeros are made, and not kept by a refit.

        Returns:
            One row per target. The advice looks at those with a strength above 0 only.
        """
        steps = int(self.step)
        num_open, num_allowed, last_open = self.num_open.tolist(), self.num_allowed.tolist(), self.last_open.tolist()
        rows = tuple(
            SummaryRow(
                t.name,
                tuple(t.param.shape),
                t.param.numel(),
                zeros,
                count / steps if steps else math.nan,
            )
            for t, zeros, count in zip(targets, num_zeros, num_open, strict=True)
        )
        able = [i for i, t in enumerate(targets) if t.penalty.strength > 0]
        possible = sum(num_allowed[i] * rows[i].num_weights for i in able)
        share = sum(num_open[i] * rows[i].num_weights for i in able) / possible if possible else math.nan
        zeros_moved = makes_zeros and any(
            targets[i].penalty.has_exact_zeros and num_open[i] > 0 and not last_open[i] for i in able
        )
        return Summary(rows, steps, int(self.num_nonfinite), advise(share, zeros_moved=zeros_moved))

    def select(self, rows: Sequence[int]) -> StepCounts:
        """The counts of some of the tensors.

        Args:
            rows: their positions.

        Returns:
            New counts.
        """
        state = self.state_dict()
        kept = StepCounts(len(rows))
        kept.load_state_dict({**state, **{name: [state[name][i] for i in rows] for name in _PER_TARGET}})
        return kept

    def state_dict(self) -> dict[str, Any]:
        """The counts as plain data.

        Returns:
            A dictionary for :meth:`load_state_dict`.
        """
        return {name: getattr(self, name).tolist() for name in (*_OVERALL, *_PER_TARGET)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the counts; non-finite gradients that they tell of have been warned about.

        Args:
            state: what :meth:`state_dict` returned for as many tensors.

        Raises:
            ValueError: a count is not a whole number >= 0, or there are not as many as tensors.
        """
        # a state from before the entry existed: at most the steps done
        state = {"num_allowed": [state["step"]] * len(self.num_open), **state}
        for name in (*_OVERALL, *_PER_TARGET):
            entries = [state[name]] if name in _OVERALL else state[name]
            kind = bool if name == "last_open" else int
            good = isinstance(entries, list) and all(
                type(entry) is kind and 0 <= entry < _TOO_MANY for entry in entries
            )
            if not good or len(entries) != (1 if name in _OVERALL else len(self.num_open)):
                raise ValueError(f"the saved counts hold {name}={state[name]!r} for {len(self.num_open)} parameters")
        for name in (*_OVERALL, *_PER_TARGET):
            setattr(self, name, torch.tensor(state[name], dtype=getattr(self, name).dtype))
        self._has_warned = state["num_nonfinite"] > 0
