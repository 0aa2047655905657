"""A run's fate, when and where it was decided, the evidence, and what to change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from strongreg.diagnosis.record import RunRecord, is_above_chance
from strongreg.diagnosis.signs import FAINT, Signs, smooth

Verdict = Literal["learned", "penalty_never_acted", "collapsed", "diverged", "dead_gradients", "stalled", "damaged"]

_RARELY = 0.01
_DROP = 0.1


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
    signs = Signs(record)
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


def _diverged(record: RunRecord, signs: Signs, told: tuple[str, ...]) -> Diagnosis:
    evidence = (*told, signs.growth())
    if not np.isfinite(record.train_loss).all():
        evidence += (f"the loss was not finite from epoch {int((~np.isfinite(record.train_loss)).argmax()) + 1} on",)
    advice = (f"lower the learning rate (it was {record.lr:g}), warm it up, or clip the gradient",)
    return Diagnosis("diverged", signs.diverged_at, None, evidence, advice)


def _collapsed(signs: Signs, told: tuple[str, ...]) -> Diagnosis:
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


def _dead(signs: Signs, told: tuple[str, ...]) -> Diagnosis:
    gone = smooth(signs.gradient) <= FAINT * np.nanmax(smooth(signs.gradient))
    step = int(signs.steps[gone.argmax()])
    evidence = (*told, signs.sizes(step), f"the penalty acted at {signs.open_share:.0%} of the steps")
    advice = (
        "the units are dead (ReLU with all inputs below 0): lower the learning rate, use He initialization or "
        "normalization, or a leaky activation",
    )
    return Diagnosis("dead_gradients", step, None, evidence, advice)


def _stalled(record: RunRecord, signs: Signs, told: tuple[str, ...]) -> Diagnosis:
    advice = (f"raise the learning rate (it was {record.lr:g}), look at the initialization, or train longer",)
    return Diagnosis("stalled", None, None, (*told, signs.sizes()), advice)


def _damaged(record: RunRecord, signs: Signs, told: tuple[str, ...]) -> Diagnosis:
    epoch = int(record.accuracy.argmax()) + 1
    step = epoch * record.steps_per_epoch
    evidence = (*told, f"the best epoch was {epoch}", signs.sizes())
    advice = ("lower the strength, raise the gate's threshold, or begin the refit earlier",)
    return Diagnosis("damaged", step, signs.first_layer(), evidence, advice)


def _never_acted(record: RunRecord, signs: Signs, told: tuple[str, ...]) -> Diagnosis:
    evidence = (*told, f"the gate was open at {signs.open_share:.1%} of the steps at which the penalty may act")
    advice = (f"lower the strength (it was {record.strength:g}) or the gate's threshold",)
    return Diagnosis("penalty_never_acted", None, None, evidence, advice)
