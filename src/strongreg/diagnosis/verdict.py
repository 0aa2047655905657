"""A run's fate, when and where it was decided, the evidence, and what to change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from strongreg.collapse import NUM_SMOOTHED, SHRUNK
from strongreg.history import History

Verdict = Literal["learned", "penalty_never_acted", "collapsed", "diverged", "dead_gradients", "stalled", "damaged"]
_Array = npt.NDArray[np.float64]

_BEYOND_CHANCE = 0.05  # of the way from chance to no error
_FAINT = 1e-3  # of a norm's own largest value: as good as 0
_RARELY = 0.01
_GROWN = 10.0
_LOSS_GROWN = 3.0
_DROP = 0.1


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run.

    Args:
        history: the regularizer's records.
        chance: accuracy of the best constant answer, the share of the largest class, in (0, 1].
        accuracy: after each epoch, shape (num_epochs,), in [0, 1].
        train_loss: mean over each epoch, shape (num_epochs,), in nats; NaN where it was not finite.
        steps_per_epoch: optimizer steps of an epoch.
        strength: of the penalty; 0 for a run without one.
        refit_start: step from which on the penalty was off; infinity for never.
        lr: largest learning rate.
        open_fraction: share of all steps at which the penalty acted, recorded or not; NaN if it is not known.
    """

    history: History
    chance: float
    accuracy: _Array
    train_loss: _Array
    steps_per_epoch: int
    strength: float
    refit_start: float = math.inf
    lr: float = math.nan
    open_fraction: float = math.nan

    @property
    def num_steps(self) -> int:
        """Optimizer steps done."""
        return len(self.accuracy) * self.steps_per_epoch


@dataclass(frozen=True)
class Diagnosis:
    """What happened; ``print`` shows it in words.

    Args:
        verdict: "learned"; "penalty_never_acted" (learned, but the gate let next to nothing through); "collapsed" (the
            penalty took over); "diverged" (the steps were too large); "dead_gradients" (no gradient without the
            penalty's doing); "stalled" (gradients, but no learning); "damaged" (it had learned and lost much of it).
        step: optimizer step at which it was decided; None where there is none to name.
        layer: parameter at which it showed first; None where there is none to name.
        evidence: what was measured, a sentence each.
        advice: what to change, a sentence each.
    """

    verdict: Verdict
    step: int | None
    layer: str | None
    evidence: tuple[str, ...]
    advice: tuple[str, ...]

    @property
    def learned(self) -> bool:
        """Whether the run ended above chance with what it had learned."""
        return self.verdict in ("learned", "penalty_never_acted")

    def __str__(self) -> str:
        """The diagnosis as text."""
        where = "" if self.step is None else f" at step {self.step}"
        where += "" if self.layer is None else f", first in {self.layer}"
        lines = [f"{_WORDS[self.verdict]}{where}."]
        lines += [f"  evidence: {sentence}" for sentence in self.evidence]
        lines += [f"  change:   {sentence}" for sentence in self.advice]
        return "\n".join(lines)


_WORDS: dict[Verdict, str] = {
    "learned": "It learned",
    "penalty_never_acted": "It learned, but without the penalty",
    "collapsed": "It collapsed: the penalty took over",
    "diverged": "It diverged: the steps were too large",
    "dead_gradients": "It died without the penalty's doing: no gradient reaches the weights",
    "stalled": "It stalled: there are gradients, but they teach nothing",
    "damaged": "It had learned and lost much of it",
}


def diagnose(record: RunRecord) -> Diagnosis:
    """Say what happened in a run, and why.

    Args:
        record: what is known of it.

    Returns:
        The diagnosis.

    Raises:
        ValueError: the record holds no steps or no epochs.
    """
    if len(record.history) == 0 or len(record.accuracy) == 0:
        raise ValueError("a run without recorded steps or epochs cannot be diagnosed: train it with history_every >= 1")
    signs = _Signs(record)
    final, best = float(record.accuracy[-1]), float(record.accuracy.max())
    told: tuple[str, ...] = (f"accuracy {final:.1%} at the end, {best:.1%} at best, {record.chance:.1%} by chance",)
    if len(record.history) < len(record.accuracy):
        told += (
            f"recorded steps: {len(record.history)} of {record.num_steps}, too few to see when and where something "
            "happened: lower training.history_every",
        )
    if signs.has_diverged:
        return _diverged(record, signs, told)
    if not is_above_chance(final, record.chance):
        if signs.took_over is not None:
            return _collapsed(signs, told)
        if signs.gradient_is_gone:
            return _dead(signs, told)
        return _stalled(record, signs, told)
    if best - final > _DROP:
        return _damaged(record, signs, told)
    if record.strength > 0 and signs.open_share < _RARELY:
        return _never_acted(record, signs, told)
    told += (signs.sizes(),)
    return Diagnosis("learned", None, None, told, ())


def is_above_chance(accuracy: float, chance: float) -> bool:
    """Whether a network has learned anything: a dead one gives one answer to every image, and is right by chance.

    Args:
        accuracy: in [0, 1].
        chance: share of the largest class.

    Returns:
        Whether the accuracy is beyond chance by a twentieth of what there is to learn.
    """
    return accuracy > chance + _BEYOND_CHANCE * (1 - chance)


class _Signs:
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
        typical = float(np.nanmax(_smooth(self.gradient))) if np.isfinite(self.gradient).any() else 0.0
        self.gradient_is_gone = bool(_smooth(self.gradient)[-1] <= _FAINT * typical)

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
        ahead = _smooth(self.penalty * acting) > _smooth(self.gradient)
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
            f"at step {self.steps[i]} the loss gradient has norm {_smooth(self.gradient)[i]:.2g}, the penalty's "
            f"{_smooth(self.penalty)[i]:.2g}, the weights {self.weight[i]:.3g}"
        )


def _grew(first: str, largest: str) -> str:
    return f"the weights grew from norm {first} to {largest}"


def _smooth(values: _Array) -> _Array:
    """The mean over the last few records."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    start = np.maximum(np.arange(1, len(values) + 1) - NUM_SMOOTHED, 0)
    return (sums[1:] - sums[start]) / (np.arange(1, len(values) + 1) - start)


def _diverged(record: RunRecord, signs: _Signs, told: tuple[str, ...]) -> Diagnosis:
    evidence = (*told, signs.growth())
    if not np.isfinite(record.train_loss).all():
        evidence += (f"the loss was not finite from epoch {int((~np.isfinite(record.train_loss)).argmax()) + 1} on",)
    advice = (f"lower the learning rate (it was {record.lr:g}), warm it up, or clip the gradient",)
    return Diagnosis("diverged", signs.diverged_at, None, evidence, advice)


def _collapsed(signs: _Signs, told: tuple[str, ...]) -> Diagnosis:
    step = signs.took_over
    evidence = (
        *told,
        signs.sizes(step),
        f"the weights fell from norm {signs.weight[0]:.3g} to {signs.weight[-1]:.3g}; the gate was open at "
        f"{signs.open_share:.0%} of the steps at which the penalty may act",
    )
    advice = (
        "put a gate in front of the penalty, CoherenceGate(0.7), or raise its threshold",
        "or lower the strength: strongreg tolerance finds the largest that is endured",
    )
    return Diagnosis("collapsed", step, signs.first_layer(), evidence, advice)


def _dead(signs: _Signs, told: tuple[str, ...]) -> Diagnosis:
    gone = _smooth(signs.gradient) <= _FAINT * np.nanmax(_smooth(signs.gradient))
    step = int(signs.steps[gone.argmax()])
    evidence = (*told, signs.sizes(step), f"the penalty acted at {signs.open_share:.0%} of the steps")
    advice = (
        "the units are dead (ReLU with all inputs below 0): lower the learning rate, use He initialization or "
        "normalization, or a leaky activation",
    )
    return Diagnosis("dead_gradients", step, None, evidence, advice)


def _stalled(record: RunRecord, signs: _Signs, told: tuple[str, ...]) -> Diagnosis:
    advice = (f"raise the learning rate (it was {record.lr:g}), look at the initialization, or train longer",)
    return Diagnosis("stalled", None, None, (*told, signs.sizes()), advice)


def _damaged(record: RunRecord, signs: _Signs, told: tuple[str, ...]) -> Diagnosis:
    epoch = int(record.accuracy.argmax()) + 1
    step = epoch * record.steps_per_epoch
    evidence = (*told, f"the best epoch was {epoch}", signs.sizes())
    advice = ("lower the strength, raise the gate's threshold, or begin the refit earlier",)
    return Diagnosis("damaged", step, signs.first_layer(), evidence, advice)


def _never_acted(record: RunRecord, signs: _Signs, told: tuple[str, ...]) -> Diagnosis:
    evidence = (*told, f"the gate was open at {signs.open_share:.1%} of the steps at which the penalty may act")
    advice = (f"lower the strength (it was {record.strength:g}) or the gate's threshold",)
    return Diagnosis("penalty_never_acted", None, None, evidence, advice)
