"""A run's fate, when and where it was decided, the evidence, and what to change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from strongreg.collapse import SHRUNK
from strongreg.diagnosis.record import Array, RunRecord
from strongreg.diagnosis.signs import RARELY, Signs

Verdict = Literal[
    "learned",
    "penalty_never_acted",
    "nothing_removed",
    "collapsed",
    "switched_off",
    "decayed",
    "diverged",
    "dead_gradients",
    "stalled",
    "memorized",
    "damaged",
]

_DROP = 0.1
_MOST_NAMES = 4
_SELDOM = 0.5


@dataclass(frozen=True)
class Diagnosis:
    """What happened; ``print`` shows it in words.

    Args:
        verdict: "learned"; "penalty_never_acted" (learned, but the gate let next to nothing through);
            "nothing_removed" (learned, but a penalty that makes zeros made next to none); "collapsed" (the penalty took
            over); "switched_off" (it lived under the penalty, and died when that ended); "decayed" (the
            weight decay took over); "diverged" (the steps were too large); "dead_gradients" (no gradient without the
            penalty's doing); "stalled" (gradients, but no learning); "memorized" (it learned the training images, and
            is at chance on others); "damaged" (it had learned and lost much of it).
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
        return self.verdict in ("learned", "penalty_never_acted", "nothing_removed")

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
    "nothing_removed": "It learned, but the penalty removed nothing",
    "collapsed": "It collapsed: the penalty took over",
    "switched_off": "It lived under the penalty and died when that was switched off",
    "decayed": "It collapsed: the weight decay took over",
    "diverged": "It diverged: the steps were too large",
    "dead_gradients": "It died without the penalty's doing: no gradient reaches the weights",
    "stalled": "It stalled: what gradients there are teach nothing",
    "memorized": "It learned the training images, and nothing that holds for others",
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
    if signs.was_switched_off:
        return _switched_off(record, signs, told)
    if signs.has_diverged:
        return _diverged(record, signs, told)
    if signs.is_at_chance:
        return _at_chance(record, signs, told)
    if best - final > _DROP:
        return _damaged(record, signs, told)
    if record.strength > 0 and signs.open_share < RARELY:
        return _never_acted(record, signs, told)
    if record.strength > 0 and record.kept > 1 - RARELY:
        return _nothing_removed(record, signs, told)
    told += (signs.sizes(),)
    return Diagnosis("learned", None, None, told, ())


def _at_chance(record: RunRecord, signs: Signs, told: tuple[str, ...]) -> Diagnosis:
    """What came first is the cause: what was so from the first step on, then what made the weights fall."""
    if signs.has_memorized:
        return _memorized(record, signs, told)
    if signs.blocked_by_zeros:
        return _blocked(signs, told)
    if signs.num_never:
        return _dead(signs, told)
    if signs.took_over is not None:
        return _collapsed(signs, told)
    if signs.was_decayed:
        return _decayed(record, signs, told)
    if signs.is_gone or signs.num_gone:
        return _dead(signs, told)
    return _stalled(record, signs, told)


def _switched_off(record: RunRecord, signs: Signs, told: tuple[str, ...]) -> Diagnosis:
    step = int(record.refit_start)
    i, epoch = signs.at(step), signs.dead_epoch
    evidence = (
        *told,
        f"the penalty ended at step {step}; the accuracy was {record.accuracy[epoch - 1]:.1%} after epoch {epoch}, "
        "and at chance from then on",
        f"the penalty had shrunk the weights from norm {signs.weight[0]:.3g} to {signs.weight[i - 1]:.3g} and held "
        f"them there; without it they came to {signs.weight[-1]:.3g}",
        signs.sizes(),
    )
    advice = (
        "let the penalty relax to 0 before it ends, CosineRamp(steps, initial=1, final=0): in a recipe "
        "penalty.final_factor=0, and penalty.ramp_share the share of the steps in which it acts",
        f"or lower the learning rate (it was {record.lr:g}) before the penalty ends",
    )
    return Diagnosis("switched_off", step, None, evidence, advice)


def _diverged(record: RunRecord, signs: Signs, told: tuple[str, ...]) -> Diagnosis:
    evidence = (*told, signs.growth())
    if not np.isfinite(record.train_loss).all():
        evidence += (f"the loss was not finite from epoch {int((~np.isfinite(record.train_loss)).argmax()) + 1} on",)
    advice = (f"lower the learning rate (it was {record.lr:g}), warm it up, or clip the gradient",)
    return Diagnosis("diverged", signs.diverged_at, None, evidence, advice)


def _memorized(record: RunRecord, signs: Signs, told: tuple[str, ...]) -> Diagnosis:
    evidence = (
        *told,
        f"the loss on the training images is {record.train_loss[-1]:.2g}, {signs.chance_loss:.2g} by chance",
        signs.sizes(),
    )
    advice = (
        "look at the labels, at how the images of the test are prepared, and at what differs in evaluation (running "
        "statistics of batch normalization)",
    )
    return Diagnosis("memorized", None, None, evidence, advice)


def _blocked(signs: Signs, told: tuple[str, ...]) -> Diagnosis:
    layers = signs.blocked_by_zeros
    evidence = (*told, f"the weights of {_listed(layers)} began at exactly 0", signs.sizes())
    advice = (
        "initialize them at random, by He initialization: only the last layer of a network, or of a residual block, "
        "may begin at 0",
    )
    return Diagnosis("stalled", None, layers[0], evidence, advice)


def _collapsed(signs: Signs, told: tuple[str, ...]) -> Diagnosis:
    step = signs.took_over
    evidence = (
        *told,
        signs.sizes(step),
        f"{signs.fall()}; the gate was open at {signs.open_share:.0%} of the steps at which the penalty may act",
    )
    advice = (
        "put a gate in front of the penalty, CoherenceGate(0.7), or raise its threshold",
        "or lower the strength: strongreg tolerance finds the largest that is endured",
    )
    return Diagnosis("collapsed", step, signs.first_layer(), evidence, advice)


def _decayed(record: RunRecord, signs: Signs, told: tuple[str, ...]) -> Diagnosis:
    step = int(signs.steps[(signs.weight < SHRUNK * signs.weight[0]).argmax()])
    evidence = (*told, signs.sizes(step), signs.fall())
    if record.strength > 0:
        evidence += (f"the penalty acted at {signs.open_share:.0%} of the steps at which it may",)
    advice = (f"lower the weight decay (it was {record.weight_decay:g})",)
    return Diagnosis("decayed", step, signs.first_layer(), evidence, advice)


def _dead(signs: Signs, told: tuple[str, ...]) -> Diagnosis:
    layer, evidence, step = None, told, signs.gone_since()
    advice: tuple[str, ...] = (
        "the units are dead (ReLU with all inputs below 0): lower the learning rate, use He initialization or "
        "normalization, or a leaky activation",
    )
    if num := signs.num_gone:
        layer, where = _behind(signs, signs.gradient_by_layer[:, :num])
        evidence += (where,)
    evidence += (signs.sizes(step, smoothed=False), f"the penalty acted at {signs.open_share:.0%} of the steps")
    if signs.has_jumped:
        evidence += (signs.growth(),)
    if math.isnan(signs.record.weight_decay) and signs.fell_at_death:
        evidence += (signs.fall(),)
        advice += ("or lower the weight decay, if there is any",)
    return Diagnosis("dead_gradients", step, layer, evidence, advice)


def _behind(signs: Signs, norms: Array) -> tuple[str, str]:
    """The layer behind which nothing passes, and how it is seen; the gradients of these layers are gone."""
    names = signs.layers[: norms.shape[1]]
    if norms[-1].any():
        shares = norms[-1] / norms.max(axis=0).clip(min=np.finfo(float).tiny)
        first = int(shares.argmin())
        return names[first], f"the gradient of {names[first]} has fallen to {shares[first]:.1g} of its largest norm"
    # the layer that reads only zeros has no gradient either
    dead = names[max(len(names) - 2, 0)]
    after = signs.layers[len(names) :]
    rest = f", and not in {_listed(after)}" if after else ""
    return dead, f"the gradient is exactly 0 in {_listed(names)}{rest}: what {dead} feeds is never active"


def _listed(names: list[str]) -> str:
    if len(names) > _MOST_NAMES:
        return f"{names[0]} to {names[-1]} ({len(names)} layers)"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _stalled(record: RunRecord, signs: Signs, told: tuple[str, ...]) -> Diagnosis:
    advice: tuple[str, ...] = (
        f"raise the learning rate (it was {record.lr:g}), look at the initialization, or train longer",
    )
    evidence = (*told, signs.sizes())
    if signs.first_gets_nothing:
        first = signs.layers[0]
        evidence += (f"the gradient of {first} is exactly 0 at every step: what it reads is 0, or it is not used",)
        advice = ("look at the images as the network gets them", *advice)
    return Diagnosis("stalled", None, None, evidence, advice)


def _damaged(record: RunRecord, signs: Signs, told: tuple[str, ...]) -> Diagnosis:
    epoch = int(record.accuracy.argmax()) + 1
    step = epoch * record.steps_per_epoch
    evidence = (*told, f"the best epoch was {epoch}", signs.sizes())
    advice = (
        "lower the strength, raise the gate's threshold, or begin the refit earlier"
        if record.strength > 0
        else f"lower the learning rate (it was {record.lr:g}), or let it decay",
    )
    return Diagnosis("damaged", step, signs.first_layer(), evidence, advice)


def _never_acted(record: RunRecord, signs: Signs, told: tuple[str, ...]) -> Diagnosis:
    evidence = (*told, f"the gate was open at {signs.open_share:.1%} of the steps at which the penalty may act")
    advice = (f"lower the strength (it was {record.strength:g}) or the gate's threshold",)
    return Diagnosis("penalty_never_acted", None, None, evidence, advice)


def _nothing_removed(record: RunRecord, signs: Signs, told: tuple[str, ...]) -> Diagnosis:
    evidence = (
        *told,
        f"{1 - record.kept:.2%} of the penalized weights are 0",
        f"the gate was open at {signs.open_share:.1%} of the steps at which the penalty may act",
        signs.sizes(),
    )
    change: tuple[str, ...]
    if signs.open_share < _SELDOM:
        change = (
            f"lower the strength (it was {record.strength:g}) or the gate's threshold: the gate was shut at most steps",
            f"or raise the learning rate (it was {record.lr:g}), which makes the loss gradient larger",
        )
    else:
        change = (
            f"raise the strength (it was {record.strength:g}): the gate let it act; a group penalty removes whole "
            "groups or nothing",
        )
    return Diagnosis("nothing_removed", None, None, evidence, change)
