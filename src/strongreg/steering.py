"""The strength that makes a run end at an asked compression: a controller, and the last steps, which hit it exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from strongreg.counts import StepCounts
from strongreg.decision import Decision
from strongreg.devices import Constants, is_captured
from strongreg.groups import Target
from strongreg.kernels import Passes
from strongreg.precision import scalar_dtype
from strongreg.scalars import Scalars, as_scalars, namespace
from strongreg.settings import Settings
from strongreg.sharding import Shards
from strongreg.warning import warn

FEWEST_STEPS = 50
_MOST_LOOKS = 1000
_MOST_LAST = 20
_TOLERANCE = 0.05
_DELAY, _REACH = 0.15, 0.7
"""Shares of the steps before the refit: until compression is asked for at all, and until all of it is."""
_GAIN, _INTEGRAL_SHARE, _REMAINING_SHARE = 2.0, 0.05, 0.25
_SMOOTHING = 0.2
_MOST_RISE = 20.0
"""By how many factors of e the strength may rise between the first step and the refit: 5 % of the steps for each."""
_ENDURED_SHARE, _CAP_CHANGE, _CAP_MARGIN = 0.8, 0.05, 0.7
_LARGEST = math.log(1e4)
_LAST_RANGE = math.log(10.0)
_LAST_TRIALS, _LAST_ERROR = 20, 0.002


class StrengthControl:
    """The factor on the strength of each tensor, apart from the schedule; here its relative strength alone."""

    def __init__(self) -> None:
        self._constant = Constants()

    @property
    def factor(self) -> float:
        """What is made of the strength of penalties that make zeros, a factor > 0."""
        return 1.0

    def factors(self, targets: Sequence[Target], scales: Sequence[float], device: torch.device) -> Scalars:
        """The factor on the strength of each tensor.

        Args:
            targets: the K penalized parameters.
            scales: relative strength of each, K entries.
            device: where the decisions are made.

        Returns:
            Shape (K,). A penalty of strength 0 does not act, as at a schedule of 0: not even the sign of a zero
            changes.
        """
        kept = [scale if target.penalty.strength > 0 else 0.0 for target, scale in zip(targets, scales, strict=True)]
        return as_scalars(self._constant(kept, scalar_dtype(device), device))

    def shrink(
        self,
        passes: Passes,
        multipliers: Sequence[float | Tensor],
        step_sizes: Sequence[float | Tensor],
        decision: Decision,
        counts: StepCounts,
        num_calls: int,
    ) -> None:
        """The proximal step.

        Args:
            passes: over the weights, which are those after the optimizer's step.
            multipliers: factor on the strength of each of the K penalized parameters, 0 where its gate is closed.
            step_sizes: effective step size for each, K entries.
            decision: what was decided.
            counts: of the steps before it.
            num_calls: steps before it, or more if a GradScaler made the device skip some: all that the host knows.
        """
        del decision, counts, num_calls
        passes.shrink(multipliers, step_sizes)

    def look(self, shards: Shards, counts: StepCounts, num_calls: int) -> None:
        """Measure after a step, if it is time, and adapt the factor.

        Args:
            shards: what this process holds of the penalized parameters.
            counts: of the steps, this one included.
            num_calls: steps, this one included, as for :meth:`shrink`.
        """

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, as plain data.

        Returns:
            A dictionary for :meth:`load_state_dict`.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a state was taken.

        Args:
            state: what :meth:`state_dict` returned for as many tensors.

        Raises:
            ValueError: the state is damaged.
        """


class CompressionControl(StrengthControl):
    r"""Adapts the strength so that the zeros at the start of a refit are as many as asked for.

    A factor on the strength of all penalties that make zeros is moved by proportional and integral control of the
    logarithm of the compression, along a path: nothing is asked for in the first steps, then the logarithm rises in a
    straight line, as it does under a strength that suits, and the last steps hold it. What counts as zero is what a
    refit would freeze: the zeros that the penalty had when it last acted. The factor

    * rises by no more than a factor of e in 5 % of the steps;
    * falls where the gate is closed at more than a fifth of the steps: a strength that the network does not endure is
      not imposed, and a step at a closed gate sets the zeros free.

    In the last steps before the refit the factor for the one step is found by bisection, so that the compression after
    it is the one asked for: single batches move it by several per cent.

    Args:
        compression: the asked one, weights to nonzero weights, over all penalized parameters, > 1.
        start: first step of the refit.
        num_targets: number of penalized tensors, K.
    """

    def __init__(self, compression: float, start: int, num_targets: int) -> None:
        super().__init__()
        self.compression = compression
        self.start = start
        self._log_factor = 0.0
        self._integral = 0.0
        self._cap = _CAP_MARGIN
        self._smoothed = 0.0
        self._last_look = 0
        self._nonzeros: list[int] = [-1] * num_targets  # when the penalty last acted; -1: it never has
        self._num_open = [0] * num_targets

    @property
    def factor(self) -> float:
        """See :attr:`StrengthControl.factor`."""
        return math.exp(self._log_factor)

    def factors(self, targets: Sequence[Target], scales: Sequence[float], device: torch.device) -> Scalars:
        """See :meth:`StrengthControl.factors`."""
        fixed = super().factors(targets, scales, device)
        adapted = as_scalars(self._constant(_are_adapted(targets), torch.bool, device))
        return namespace(fixed).where(adapted, fixed * self.factor, fixed)

    # ------------------------------------------------------------------ after a step

    @property
    def _every(self) -> int:
        """Steps between looks."""
        return max(1, self.start // _MOST_LOOKS)

    @property
    def _num_last(self) -> int:
        """Steps before the refit at which the compression is to be hit."""
        return min(_MOST_LAST, self.start // 20)

    def look(self, shards: Shards, counts: StepCounts, num_calls: int) -> None:
        """See :meth:`StrengthControl.look`.

        Raises:
            RuntimeError: the step is being captured in a CUDA graph.
        """
        is_last = num_calls > self.start - self._num_last
        if self._last_look >= self.start or not (is_last or num_calls % self._every == 0):
            return
        if is_captured(counts.step.device):
            raise RuntimeError(
                "target_compression adapts the strength on the host, which a CUDA graph leaves out: capture forward "
                "and backward alone, and leave the optimizer's step outside"
            )
        step = int(counts.step)
        if step <= self._last_look:  # a GradScaler made the optimizer skip
            return
        sizes = shards.sizes
        num_open, last_open = counts.num_open.tolist(), counts.last_open.tolist()
        nonzeros = [size - zeros for size, zeros in zip(sizes, shards.num_zeros(), strict=True)]
        self._nonzeros = [
            now if is_open or then < 0 else then
            for now, then, is_open in zip(nonzeros, self._nonzeros, last_open, strict=True)
        ]
        opened = sum(size * (now - then) for size, now, then in zip(sizes, num_open, self._num_open, strict=True)) / (
            sum(sizes) * (step - self._last_look)
        )
        self._num_open, self._last_look = num_open, step
        reached = sum(sizes) / max(1, sum(self._nonzeros))
        if step <= self.start - self._num_last:
            self._adapt(step / self.start, self._every / self.start, math.log(reached), opened)
        elif step >= self.start and abs(reached / self.compression - 1) > _TOLERANCE:
            self._warn_of_miss(reached)

    def _adapt(self, progress: float, passed: float, log_compression: float, opened: float) -> None:
        """One step of the controller; times are shares of the steps before the refit."""
        self._smoothed += _SMOOTHING * (log_compression - self._smoothed)
        change = max(_CAP_CHANGE, _MOST_RISE * passed)
        self._cap += change * (opened - _ENDURED_SHARE) / (1 - _ENDURED_SHARE)
        self._cap = min(self._cap, self._log_factor + _CAP_MARGIN)
        asked = min(1.0, max(0.0, (progress - _DELAY) / (_REACH - _DELAY))) * math.log(self.compression)
        error = max(0.0, asked - self._smoothed) + min(0.0, math.log(self.compression) - self._smoothed)
        is_held_back = self._cap <= self._log_factor < self._integral + _GAIN * error
        if error < 0 or not is_held_back:
            time = max(5 * passed, min(_INTEGRAL_SHARE, (1 - progress) * _REMAINING_SHARE))
            self._integral += _GAIN * error * passed / time
            self._integral = min(_LARGEST, max(-_LARGEST, self._integral))
        log_factor = min(self._integral + _GAIN * error, self._cap, self._log_factor + _MOST_RISE * passed)
        self._log_factor = min(_LARGEST, max(-_LARGEST, log_factor))

    def _warn_of_miss(self, reached: float) -> None:
        held_back = self._cap <= self._integral
        remedy = (
            "the gate was closed too often for a greater strength: give the network more steps before the refit, lower "
            "the gate's threshold, or ask for less"
            if reached < self.compression and held_back
            else "give it more steps before the refit, or another strength to begin with"
        )
        warn(
            f"target_compression={self.compression:g}: the refit at step {self.start} begins at {reached:.3g}; {remedy}"
        )

    # ------------------------------------------------------------------ the last steps

    def shrink(
        self,
        passes: Passes,
        multipliers: Sequence[float | Tensor],
        step_sizes: Sequence[float | Tensor],
        decision: Decision,
        counts: StepCounts,
        num_calls: int,
    ) -> None:
        """See :meth:`StrengthControl.shrink`."""
        begin = self.start - self._num_last
        if num_calls < begin or self._last_look >= self.start or not begin <= int(counts.step) < self.start:
            passes.shrink(multipliers, step_sizes)
        else:
            self._hit(passes, multipliers, step_sizes, decision.opened.tolist())

    def _hit(
        self,
        passes: Passes,
        multipliers: Sequence[float | Tensor],
        step_sizes: Sequence[float | Tensor],
        opened: Sequence[bool],
    ) -> None:
        """The proximal step with a factor on the multipliers that leaves as many weights as asked for."""
        if not any(opened):
            return
        shards, targets = passes.shards, passes.shards.targets()
        adapted = _are_adapted(targets)
        parts: list[Tensor] = [target.param for target, is_open in zip(targets, opened, strict=True) if is_open]
        saved = [part.clone() for part in parts]

        def excess(log_factor: float) -> float:
            """Shrinks; the logarithm of asked for to reached compression."""
            factors = [math.exp(log_factor) if is_adapted else 1.0 for is_adapted in adapted]
            passes.shrink([m * factor for m, factor in zip(multipliers, factors, strict=True)], step_sizes)
            nonzeros = [
                size - zeros if is_open or held < 0 else held
                for size, zeros, held, is_open in zip(
                    shards.sizes, shards.num_zeros(), self._nonzeros, opened, strict=True
                )
            ]
            return math.log(self.compression * max(1, sum(nonzeros)) / sum(shards.sizes))

        low, high, last = -_LAST_RANGE, _LAST_RANGE, 0.0
        for _ in range(_LAST_TRIALS):
            error = excess(last)
            if abs(error) < _LAST_ERROR:
                return
            low, high = (last, high) if error > 0 else (low, last)
            torch._foreach_copy_(parts, saved)
            last = (low + high) / 2
        excess(last)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`StrengthControl.state_dict`."""
        return {
            "log_factor": self._log_factor,
            "integral": self._integral,
            "cap": self._cap,
            "smoothed": self._smoothed,
            "last_look": self._last_look,
            "nonzeros": list(self._nonzeros),
            "num_open": list(self._num_open),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`StrengthControl.load_state_dict`."""
        for name, now in self.state_dict().items():
            saved = state[name]
            kind = float if isinstance(now, float) else int
            entries = saved if isinstance(now, list) and isinstance(saved, list) else [saved]
            good = all(type(entry) is kind and math.isfinite(entry) for entry in entries)
            if not good or len(entries) != (len(now) if isinstance(now, list) else 1):
                raise ValueError(f"the saved state of target_compression holds {name}={saved!r}")
        for name in self.state_dict():
            saved = state[name]
            setattr(self, f"_{name}", list(saved) if isinstance(saved, list) else saved)


def _are_adapted(targets: Sequence[Target]) -> list[bool]:
    """Whose strength is adapted: that of penalties that make zeros."""
    return [target.penalty.has_exact_zeros and target.penalty.strength > 0 for target in targets]


def build_control(settings: Settings, targets: Sequence[Target]) -> StrengthControl:
    """The control for a Regularizer.

    Args:
        settings: what the user chose.
        targets: the K penalized parameters.

    Returns:
        The control.

    Raises:
        ValueError: the compression cannot be reached with these settings.
    """
    compression, start = settings.target_compression, settings.schedule.refit_start
    if compression is None:
        return StrengthControl()
    label = f"target_compression={compression:g}"
    if settings.mode != "proximal":
        raise ValueError(f"{label} needs mode='proximal': in gradient mode no weight becomes exactly 0")
    if start == math.inf:
        raise ValueError(
            f"{label} needs to know by which step: pass schedule=Refit(start=...), such as half of all steps"
        )
    if start < FEWEST_STEPS:
        raise ValueError(f"{label} needs {FEWEST_STEPS} steps or more before the refit, got {settings.schedule!r}")
    total = sum(target.param.numel() for target in targets)
    adapted = _are_adapted(targets)
    fixed = sum(t.param.numel() for t, is_adapted in zip(targets, adapted, strict=True) if not is_adapted)
    if fixed * compression >= total:
        most = "no compression" if fixed == total else f"at most {total / fixed:.3g}"
        raise ValueError(
            f"{label} cannot be reached: {fixed} of {total} penalized weights have a penalty that makes no zeros, "
            f"which allows {most}; choose L1 or another penalty of exact zeros for them, or leave them out (None)"
        )
    return CompressionControl(compression, int(start), len(targets))
