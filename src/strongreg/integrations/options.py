"""The Regularizer that a host builds once its network and its optimizer exist, of what the user said before."""

from __future__ import annotations

import inspect
from typing import TypedDict, Unpack

from torch import nn
from torch.optim import Optimizer

from strongreg.attachment import check_key
from strongreg.gates import Gate
from strongreg.groups import PenaltySpec
from strongreg.regularizer import Regularizer
from strongreg.schedules import Schedule
from strongreg.settings import CoherenceOf, Mode, StrengthScale

KEY = "strongreg"


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

    Attributes:
        key: see below.

    Args:
        penalty: as for :class:`strongreg.Regularizer`.
        key: the entry of ``optimizer.state_dict()`` that carries its state, and how the names of its metrics begin.
        **options: its keyword arguments.

    Raises:
        TypeError: it knows no such argument, or the key is no string.
        ValueError: torch uses the key itself.
    """

    def __init__(self, penalty: PenaltySpec, key: str = KEY, **options: Unpack[RegularizerOptions]) -> None:
        check_key(key)
        known = inspect.signature(Regularizer).parameters
        for name, value in options.items():
            if name not in known:
                raise TypeError(f"{name}={value!r}: Regularizer has no such argument; it has {', '.join(known)}")
        self.key = key
        self._penalty, self._options = penalty, options

    def attach(self, model: nn.Module, optimizer: Optimizer) -> Regularizer:
        """Build it, and attach it.

        Args:
            model: the network.
            optimizer: what trains it.

        Returns:
            A Regularizer, attached.

        Raises:
            TypeError: a part is of the wrong type.
            ValueError: an option is unknown, nothing can be penalized, or it does not fit the optimizer.
        """
        return Regularizer(model, self._penalty, **self._options).attach(optimizer, self.key)
