"""Strength over time: frozen dataclasses, each a factor on the penalty's strength as a function of the step.

``factor(step)`` takes and returns 0-d tensors, so a schedule runs on the device of the weights and never waits for it.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from strongreg.precision import scalar_dtype
from strongreg.validation import check_number, check_steps


@dataclass(frozen=True)
class Schedule(abc.ABC):
    """The factor on the strength at each step, and from when on the zeros are frozen."""

    @property
    def refit_start(self) -> float:
        """The step from which on the penalty is off and zeros stay zero (see :class:`Refit`); infinity for never."""
        return math.inf

    @abc.abstractmethod
    def factor(self, step: Tensor) -> Tensor:
        """The factor on the strength.

        Args:
            step: 0-d integer tensor, the number of optimizer steps done before this one.

        Returns:
            0-d tensor >= 0 on the device of ``step``, float64 where it has it.
        """


@dataclass(frozen=True)
class Constant(Schedule):
    """Full strength at every step: the null schedule.

    Example:
        >>> import torch, strongreg
        >>> strongreg.Constant().factor(torch.tensor(7))
        tensor(1., dtype=torch.float64)
    """

    def factor(self, step: Tensor) -> Tensor:
        """See :meth:`Schedule.factor`."""
        return torch.ones((), dtype=scalar_dtype(step.device), device=step.device)


@dataclass(frozen=True)
class _Ramp(Schedule):
    """From one factor to another over some steps."""

    steps: int
    initial: float = 0.0
    final: float = 1.0
    start: int = 0

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        check_steps(self, "steps", minimum=1)
        check_steps(self, "start", minimum=0)
        check_number(self, "initial", minimum=0.0)
        check_number(self, "final", minimum=0.0)

    def factor(self, step: Tensor) -> Tensor:
        """See :meth:`Schedule.factor`."""
        progress = ((step - self.start).to(scalar_dtype(step.device)) / self.steps).clamp(0, 1)
        return self.initial + (self.final - self.initial) * self._rise(progress)

    @abc.abstractmethod
    def _rise(self, progress: Tensor) -> Tensor:
        """The share of the way done after a share of the steps, both in [0, 1]."""


@dataclass(frozen=True)
class LinearRamp(_Ramp):
    """The factor moves in a straight line from ``initial`` to ``final`` over ``steps`` steps and stays there.

    Args:
        steps: length of the ramp in optimizer steps, > 0.
        initial: factor before the ramp, >= 0.
        final: factor after the ramp, >= 0.
        start: step at which the ramp begins, >= 0.

    Raises:
        TypeError: an argument is not a number of the right kind.
        ValueError: an argument is out of range.

    Example:
        >>> import torch, strongreg
        >>> strongreg.LinearRamp(steps=10).factor(torch.tensor(5))
        tensor(0.5000, dtype=torch.float64)
    """

    def _rise(self, progress: Tensor) -> Tensor:
        return progress


@dataclass(frozen=True)
class CosineRamp(_Ramp):
    """The factor moves from ``initial`` to ``final`` along half a cosine over ``steps`` steps and stays there.

    Args:
        steps: length of the ramp in optimizer steps, > 0.
        initial: factor before the ramp, >= 0.
        final: factor after the ramp, >= 0.
        start: step at which the ramp begins, >= 0.

    Raises:
        TypeError: an argument is not a number of the right kind.
        ValueError: an argument is out of range.

    Example:
        >>> import torch, strongreg
        >>> strongreg.CosineRamp(steps=10).factor(torch.tensor(10))
        tensor(1., dtype=torch.float64)
    """

    def _rise(self, progress: Tensor) -> Tensor:
        return (1 - torch.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Refit(Schedule):
    """From step ``start`` on the penalty is off and zeros stay zero: the kept weights lose the shrinkage bias.

    The relaxed lasso's second stage inside the one run. What stays at zero is what the penalty had at zero when it last
    acted: a step at a closed gate sets zeros free to move, and if the gate is closed just before ``start``, they are
    put back. A tensor on which the penalty has never acted is left alone, whatever zeros it holds. A refit from the
    first step on (``start=0``) keeps the zeros that the network has already, where the strength is above 0. The refit
    needs learning rate left to be of use: begin it before the learning rate has decayed.

    Args:
        start: first step of the refit, >= 0 (optimizer steps).
        before: the schedule until then.

    Raises:
        TypeError: ``start`` is not an int, or ``before`` is not a schedule.
        ValueError: ``start`` is negative, or ``before`` is a refit itself.

    References:
        N. Meinshausen, *Relaxed Lasso*, Comput. Statist. Data Anal. 52 (2007).

    Example:
        >>> import torch, strongreg
        >>> strongreg.Refit(start=100).factor(torch.tensor(100))
        tensor(0., dtype=torch.float64)
    """

    start: int
    before: Schedule = field(default_factory=Constant)

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        check_steps(self, "start", minimum=0)
        if not isinstance(self.before, Schedule):
            raise TypeError(
                f"Refit(before={self.before!r}): before must be a strongreg schedule such as Constant() or "
                "LinearRamp(steps=...)"
            )
        if self.before.refit_start < math.inf:
            raise ValueError("Refit(before=Refit(...)): a run has one refit; give the earlier start")

    @property
    def refit_start(self) -> float:
        """See :attr:`Schedule.refit_start`."""
        return self.start

    def factor(self, step: Tensor) -> Tensor:
        """See :meth:`Schedule.factor`."""
        return torch.where(step < self.start, self.before.factor(step), 0.0)
