"""The Regularizer that a host builds once its network and its optimizer exist, of what the user said before."""

from __future__ import annotations

import inspect
from typing import TypedDict, Unpack

from torch import nn

from strongreg.gates import Gate
from strongreg.groups import PenaltySpec
from strongreg.regularizer import Regularizer
from strongreg.schedules import Schedule
from strongreg.settings import CoherenceOf, Mode, StrengthScale


class RegularizerOptions(TypedDict, total=False):
    """The keyword arguments of :class:`strongreg.Regularizer`."""

    gate: Gate | None
    schedule: Schedule | None
    mode: Mode
    strength_scale: StrengthScale
    coherence_of: CoherenceOf
    target_compression: float | None
    history_every: int
    warn_of_collapse: bool


class Builder:
    """Builds the same Regularizer for any network.

    Args:
        penalty: as for :class:`strongreg.Regularizer`.
        **options: its keyword arguments.

    Raises:
        TypeError: it knows no such argument.
    """

    def __init__(self, penalty: PenaltySpec, **options: Unpack[RegularizerOptions]) -> None:
        known = inspect.signature(Regularizer).parameters
        for name, value in options.items():
            if name not in known:
                raise TypeError(f"{name}={value!r}: Regularizer has no such argument; it has {', '.join(known)}")
        self._penalty, self._options = penalty, options

    def build(self, model: nn.Module) -> Regularizer:
        """Build it.

        Args:
            model: the network.

        Returns:
            A Regularizer, not attached.

        Raises:
            TypeError: a part is of the wrong type.
            ValueError: an option is unknown, or nothing can be penalized.
        """
        return Regularizer(model, self._penalty, **self._options)
