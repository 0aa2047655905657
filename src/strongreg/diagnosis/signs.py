"""The signs in a run's record that a verdict rests on."""

from __future__ import annotations

import math

import numpy as np

from strongreg.collapse import NUM_SMOOTHED, SHRUNK
from strongreg.diagnosis.record import Array, RunRecord, is_above_chance

FAINT = 1e-3
"""Of a norm's own largest value: as good as 0."""
_GROWN = 10.0
_LOSS_GROWN = 3.0


class Signs:
    """What the verdict rests on."""

    def __init__(self, record: RunRecord) -> None:
        history = record.history
        self.steps = history.steps
        self.before_refit = self.steps < record.refit_start
        self.gradient = history["gradient_norm"].astype(np.float64)
        self.penalty = history["penalty_norm"].astype(np.float64)
        self.weight = history["weight_norm"].astype(np.float64)
        self.opened = history["open"].astype(np.float64)
        self.layers = history.layers
        self.weight_by_layer = history.per_layer("weight_norm").astype(np.float64)
        self.open_share = self._open_share(record)
        self.has_diverged, self.diverged_at = self._divergence(record)
        self.took_over = self._take_over()
        typical = float(np.nanmax(smooth(self.gradient))) if np.isfinite(self.gradient).any() else 0.0
        self.gradient_is_gone = bool(smooth(self.gradient)[-1] <= FAINT * typical)

    def _open_share(self, record: RunRecord) -> float:
        """Of the steps before the refit: as the run counted them, or else of those that were recorded."""
        num_possible = min(record.refit_start, record.num_steps)
        if math.isfinite(record.open_fraction) and num_possible > 0:
            return min(record.open_fraction * record.num_steps / num_possible, 1.0)
        recorded = self.opened[self.before_refit]
        return float(recorded.mean()) if len(recorded) else 0.0

    def _divergence(self, record: RunRecord) -> tuple[bool, int | None]:
        bad = ~np.isfinite(self.gradient) | ~np.isfinite(self.weight)
        if bad.any():
            return True, int(self.steps[bad.argmax()])
        grown = self.weight > _GROWN * max(float(self.weight[0]), 1e-30)
        chance_loss = -math.log(record.chance)
        at_chance = not is_above_chance(float(record.accuracy[-1]), record.chance)
        loss = np.where(np.isfinite(record.train_loss), record.train_loss, np.inf)
        if loss.max() > _LOSS_GROWN * chance_loss and at_chance:
            return True, int(loss.argmax()) * record.steps_per_epoch
        if grown.any() and at_chance:
            return True, int(self.steps[grown.argmax()])
        return False, None

    def _take_over(self) -> int | None:
        """The first step from which the penalty acted with a larger gradient than the loss until the weights fell."""
        shrunk = self.weight < SHRUNK * self.weight[0]
        acting = self.opened > 0
        if not shrunk.any() or not acting.any():
            return None
        end = int(shrunk.argmax())
        ahead = smooth(self.penalty * acting) > smooth(self.gradient)
        if not ahead[: max(end, NUM_SMOOTHED) + 1].any():
            return None
        behind = np.flatnonzero(~ahead[: end + 1])
        return int(self.steps[behind[-1] + 1 if len(behind) and behind[-1] < end else ahead.argmax()])

    def first_layer(self) -> str | None:
        """The layer whose weights fell to half their size first."""
        shrunk = self.weight_by_layer < SHRUNK * self.weight_by_layer[0]
        if not shrunk.any():
            return None
        first = np.where(shrunk.any(axis=0), shrunk.argmax(axis=0), len(self.steps))
        return self.layers[int(first.argmin())]

    def at(self, step: int) -> int:
        return int(np.searchsorted(self.steps, step))

    def growth(self) -> str:
        """How the weights' norm went where the steps were too large."""
        finite = np.isfinite(self.weight)
        step = self.steps[finite.argmin()]
        if not finite.any():
            return f"the weights were not finite at step {step}"
        first, largest = (f"{norm:.3g}" for norm in (self.weight[finite][0], self.weight[finite].max()))
        if finite.all():
            return f"the weights kept the norm {first}" if first == largest else _grew(first, largest)
        began = f"the weights began with norm {first}" if first == largest else _grew(first, largest)
        return f"{began} and were not finite at step {step}"

    def sizes(self, step: int | None = None) -> str:
        i = len(self.steps) - 1 if step is None else self.at(step)
        return (
            f"at step {self.steps[i]} the loss gradient has norm {smooth(self.gradient)[i]:.2g}, the penalty's "
            f"{smooth(self.penalty)[i]:.2g}, the weights {self.weight[i]:.3g}"
        )


def _grew(first: str, largest: str) -> str:
    return f"the weights grew from norm {first} to {largest}"


def smooth(values: Array) -> Array:
    """The mean over the last few records."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    start = np.maximum(np.arange(1, len(values) + 1) - NUM_SMOOTHED, 0)
    return (sums[1:] - sums[start]) / (np.arange(1, len(values) + 1) - start)
