"""What a resumed run needs of a Regularizer, as tensors and plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from strongreg.counts import StepCounts
from strongreg.groups import Target
from strongreg.history import History
from strongreg.hyperparameters import describe, restore
from strongreg.refit import ZeroMasks
from strongreg.settings import Settings
from strongreg.strength_control import StrengthControl, build_control
from strongreg.warning import warn

_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Progress:
    """Everything that is saved, read back and checked.

    Args:
        settings: what the user chose.
        targets: the K penalized parameters with their penalties.
        scales: relative strength of each, K entries; None before the first attachment.
        counts: the counts of the steps.
        num_calls: calls of the optimizer's step.
        zero_masks: the zeros that a refit holds.
        history: the records.
        control: the factor on the strength that an asked compression makes.
    """

    settings: Settings
    targets: list[Target]
    scales: list[float] | None
    counts: StepCounts
    num_calls: int
    zero_masks: ZeroMasks
    history: History
    control: StrengthControl

    def hyperparameters(self) -> dict[str, Any]:
        """What the user chose, as plain data."""
        return {
            "mode": self.settings.mode,
            "strength_scale": self.settings.strength_scale,
            "coherence_of": self.settings.coherence_of,
            "target_compression": self.settings.target_compression,
            "history_every": self.history.every,
            "gate": describe(self.settings.gate),
            "schedule": describe(self.settings.schedule),
            "penalties": {t.name: describe(t.penalty) for t in self.targets},
        }

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors and plain data.

        Returns:
            A dictionary for :func:`read_progress`.
        """
        return {
            "version": _VERSION,
            **self.hyperparameters(),
            "scales": None if self.scales is None else list(self.scales),
            "counts": self.counts.state_dict(),
            "num_calls": self.num_calls,
            "zero_masks": self.zero_masks.state_dict(self.targets),
            "history": self.history.state_dict(),
            "control": self.control.state_dict(),
        }


def read_progress(state: dict[str, Any], settings: Settings, targets: Sequence[Target], *, attached: bool) -> Progress:
    """Read a saved state.

    Args:
        state: what :meth:`Progress.state_dict` returned.
        settings: those of the object that is to continue; the saved ones are parts of the same classes.
        targets: its penalized parameters.
        attached: whether it is attached. If not, it does not know yet which frozen parameters its optimizer does not
            hold; the saved run may have left them out.

    Returns:
        All that was saved.

    Raises:
        ValueError: the state is damaged, of another version, for other parameters, or for parts of other classes.
    """
    if not isinstance(state, dict):
        raise ValueError(f"the saved state of the Regularizer is damaged: a dictionary is wanted, got {state!r}")
    if state.get("version") != _VERSION:
        raise ValueError(f"the saved state has version {state.get('version')!r}, this strongreg reads {_VERSION}")
    try:
        if not attached:
            targets = [t for t in targets if t.name in state["penalties"] or t.param.requires_grad]
        return _read(state, settings, targets)
    except (KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"the saved state of the Regularizer is damaged ({type(error).__name__}: {error})") from error


def _read(state: dict[str, Any], settings: Settings, targets: Sequence[Target]) -> Progress:
    penalties = state["penalties"]
    names = [t.name for t in targets]
    if list(penalties) != names:
        different = sorted(set(penalties) ^ set(names)) or "the same names in another order"
        raise ValueError(
            f"the saved state is for other parameters ({different}): build the Regularizer on the same network "
            "with the same patterns"
        )
    settings = Settings(
        restore(settings.gate, state["gate"]),
        restore(settings.schedule, state["schedule"]),
        state["mode"],
        state["strength_scale"],
        state["coherence_of"],
        state.get("target_compression"),
    )
    targets = [dataclasses.replace(t, penalty=restore(t.penalty, penalties[t.name])) for t in targets]
    history = History(names, state["history_every"])
    history.load_state_dict(state["history"])
    counts = StepCounts(len(targets))
    counts.load_state_dict(state["counts"])
    zero_masks = ZeroMasks(len(targets))
    zero_masks.load_state_dict(targets, state["zero_masks"])
    control = build_control(settings, targets)
    control.load_state_dict(state.get("control", {}))  # a state from before the entry existed has none
    scales = state["scales"]
    if scales is not None and (len(scales) != len(targets) or not all(map(_is_strength, scales))):
        raise ValueError(
            f"the saved state of the Regularizer is damaged: {scales} are no relative strengths of "
            f"{len(targets)} parameters"
        )
    num_calls = state.get("num_calls", state["counts"]["step"])  # a state from before the entry existed
    if type(num_calls) is not int or num_calls < 0:
        raise ValueError(f"the saved state of the Regularizer is damaged: it holds num_calls={num_calls!r}")
    return Progress(
        settings,
        targets,
        None if scales is None else [float(scale) for scale in scales],
        counts,
        num_calls,
        zero_masks,
        history,
        control,
    )


def _is_strength(number: Any) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number < math.inf


def warn_of_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Warn where a loaded state has replaced hyper-parameters.

    Args:
        before: :meth:`Progress.hyperparameters` until now.
        now: those that were saved.
    """
    changed = [f"{name} was {value}, is now {now[name]}" for name, value in before.items() if value != now[name]]
    if changed:
        warn(f"the saved hyper-parameters replace those of this Regularizer: {'; '.join(changed)}")


def warn_of_missing(key: str) -> None:
    """Warn where a loaded state of an optimizer has nothing for a Regularizer.

    Args:
        key: the entry that was looked for.
    """
    warn(
        f"the loaded optimizer state has no entry {key!r}: step count, open counts and history of the Regularizer stay "
        "as they are; if its state was saved elsewhere, call its load_state_dict() after this"
    )
