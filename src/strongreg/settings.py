"""What the user chooses for a whole network: gate, schedule and how the penalty is imposed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from strongreg.gates import Gate
from strongreg.hyperparameters import describe
from strongreg.schedules import Schedule
from strongreg.validation import check_choice, check_number, check_type

Mode = Literal["proximal", "gradient"]
StrengthScale = Literal["uniform", "inverse_std"]
CoherenceOf = Literal["auto", "gradient", "step"]
MODES: tuple[Mode, ...] = ("proximal", "gradient")
STRENGTH_SCALES: tuple[StrengthScale, ...] = ("uniform", "inverse_std")
COHERENCE_OF: tuple[CoherenceOf, ...] = ("auto", "gradient", "step")
_PARTS: dict[str, type[Any]] = {"gate": Gate, "schedule": Schedule}


@dataclass(frozen=True)
class Settings:
    """What the user chose.

    Args:
        gate: when the penalty acts.
        schedule: factor on the strength over the steps.
        mode: how the penalty is imposed.
        strength_scale: relative strengths of the tensors.
        coherence_of: what the penalty must be coherent with.
        target_compression: weights to nonzero weights that the run is to end at, or None.

    Raises:
        TypeError: a part is of the wrong type, or cannot be saved.
        ValueError: a word is unknown, or two do not go together.
    """

    gate: Gate
    schedule: Schedule
    mode: Mode
    strength_scale: StrengthScale
    coherence_of: CoherenceOf
    target_compression: float | None = None

    def __post_init__(self) -> None:
        """Check the parts and the words, and that all can be saved."""
        _check_part("gate", self.gate)
        _check_part("schedule", self.schedule)
        check_choice("mode", self.mode, MODES)
        check_choice("strength_scale", self.strength_scale, STRENGTH_SCALES)
        check_choice("coherence_of", self.coherence_of, COHERENCE_OF)
        if self.mode == "gradient" and self.coherence_of == "step":
            raise ValueError(
                "coherence_of='step' needs mode='proximal': in gradient mode the penalty enters before the step"
            )
        if self.target_compression is not None:
            check_number(self, "target_compression", minimum=1.0, exclusive=True)
        describe(self.gate)
        describe(self.schedule)


def _check_part(name: str, part: Any) -> None:
    remedy = ""
    if name == "gate" and isinstance(part, float):
        remedy = f"; did you mean CoherenceGate({part})?"
    for other, kind in _PARTS.items():
        if other != name and isinstance(part, kind):
            remedy = f": {type(part).__name__} is a {other}, pass it as {other}="
    check_type(name, part, _PARTS[name], remedy)
