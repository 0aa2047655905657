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
from strongreg.gates import Delay
from strongreg.groups import Target
from strongreg.kernels import Passes
from strongreg.precision import scalar_dtype
from strongreg.scalars import Scalars, as_scalars, namespace
from strongreg.schedules import Constant, Schedule
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
_LAST_FALL, _LAST_RISE = math.log(10.0), math.log(2.0)  # the gate has not seen what is stronger
_LAST_TRIALS, _LAST_ERROR = 12, 0.002


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

    def state_of(self, rows: Sequence[int]) -> dict[str, Any]:
        """What it remembers of some of the tensors.

        Args:
            rows: their positions.

        Returns:
            A dictionary for :meth:`load_state_dict` of a control of these.
        """
        state = self.state_dict()
        return {name: [kept[i] for i in rows] if isinstance(kept, list) else kept for name, kept in state.items()}

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
    * falls where the gate is closed at more than a fifth of the steps at which the penalty could act: a strength that
      the network does not endure is not imposed, and a step at a closed gate sets the zeros free.

    In the last steps before the refit the factor for the one step is found by bisection, so that the compression after
    it is the one asked for: single batches move it by several per cent. It is at most twice the one that the gate has
    seen.

    Args:
        compression: the asked one, weights to nonzero weights, over all penalized parameters, > 1.
        start: first step of the refit.
        adapted: whether the strength of each penalized tensor is adapted, K entries.
        begin: the first step at which the gate may be open.
        schedule: factor on the strength; where it is 0 nothing is learned about the gate.
    """

    def __init__(
        self,
        compression: float,
        start: int,
        adapted: Sequence[bool],
        begin: int = 0,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        self.compression = compression
        self.start, self.begin = start, begin
        self._adapted = list(adapted)
        self._schedule = Constant() if schedule is None else schedule
        self._log_factor = 0.0
        self._integral = 0.0
        self._cap = _CAP_MARGIN
        self._smoothed = 0.0
        self._last_look = 0
        self._nonzeros = [-1] * len(self._adapted)  # when the penalty last acted; -1: it never has
        self._num_open = [0] * len(self._adapted)
        self._num_allowed = [0] * len(self._adapted)

    @property
    def factor(self) -> float:
        """See :attr:`StrengthControl.factor`."""
        return math.exp(self._log_factor)

    def factors(self, targets: Sequence[Target], scales: Sequence[float], device: torch.device) -> Scalars:
        """See :meth:`StrengthControl.factors`."""
        fixed = super().factors(targets, scales, device)
        adapted = as_scalars(self._constant(self._adapted, torch.bool, device))
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
        """See :meth:`StrengthControl.look`."""
        is_last = num_calls > self.start - self._num_last
        if self._last_look >= self.start or not (is_last or num_calls % self._every == 0):
            return
        step = int(counts.step)
        if step <= self._last_look:  # a GradScaler made the optimizer skip
            return
        sizes = shards.sizes
        last_open, num_open, num_allowed = (
            counted.tolist() for counted in (counts.last_open, counts.num_open, counts.num_allowed)
        )
        nonzeros = [size - zeros for size, zeros in zip(sizes, shards.num_zeros(), strict=True)]
        self._nonzeros = [
            now if is_open or then < 0 else then
            for now, then, is_open in zip(nonzeros, self._nonzeros, last_open, strict=True)
        ]
        opened = self._weigh(sizes, num_open, self._num_open)
        allowed = self._weigh(sizes, num_allowed, self._num_allowed)
        self._num_open, self._num_allowed, self._last_look = num_open, num_allowed, step
        reached = sum(sizes) / max(1, sum(self._nonzeros))
        is_on = float(self._schedule.factor(torch.tensor(step - 1))) > 0
        could_act = is_on and step > self.begin and allowed > 0
        if could_act and step <= self.start - self._num_last:
            progress, passed = step - self.begin, self._every
            length = self.start - self.begin
            self._adapt(progress / length, passed / length, math.log(reached), opened / allowed)
        elif step >= self.start and abs(reached / self.compression - 1) > _TOLERANCE:
            is_smaller = reached > self.compression
            remedy = "lower the gate's threshold where it was closed often"
            warn(
                f"target_compression={self.compression:g}: the refit at step {self.start} begins at {reached:.3g}"
                f"{', smaller than asked' if is_smaller else ''}; give the network more steps before the refit"
                f"{f' or {remedy}' if is_smaller else f', {remedy}, or ask for less'}"
            )

    def _weigh(self, sizes: Sequence[int], now: Sequence[int], then: Sequence[int]) -> int:
        """Steps since the last look, times the weights of the tensors whose strength is adapted."""
        return sum(
            size * (number - former)
            for size, number, former, is_adapted in zip(sizes, now, then, self._adapted, strict=True)
            if is_adapted
        )

    def _adapt(self, progress: float, passed: float, log_compression: float, opened: float) -> None:
        """One step of the controller; times are shares of the steps before the refit."""
        self._smoothed += _SMOOTHING * (log_compression - self._smoothed)
        change = max(_CAP_CHANGE, _MOST_RISE * passed)
        self._cap += change * (opened - _ENDURED_SHARE) / (1 - _ENDURED_SHARE)
        self._cap = max(-_LARGEST, min(self._cap, self._log_factor + _CAP_MARGIN))
        asked = min(1.0, max(0.0, (progress - _DELAY) / (_REACH - _DELAY))) * math.log(self.compression)
        error = max(0.0, asked - self._smoothed) + min(0.0, math.log(self.compression) - self._smoothed)
        is_held_back = self._cap <= self._log_factor < self._integral + _GAIN * error
        if error < 0 or not is_held_back:
            time = max(5 * passed, min(_INTEGRAL_SHARE, (1 - progress) * _REMAINING_SHARE))
            self._integral += _GAIN * error * passed / time
            self._integral = min(_LARGEST, max(-_LARGEST, self._integral))
        log_factor = min(self._integral + _GAIN * error, self._cap, self._log_factor + _MOST_RISE * passed)
        self._log_factor = min(_LARGEST, max(-_LARGEST, log_factor))

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
        """See :meth:`StrengthControl.shrink`.

        Raises:
            RuntimeError: the step is being captured in a CUDA graph.
        """
        if is_captured(counts.step.device):
            raise RuntimeError(
                "target_compression adapts the strength on the host, which a CUDA graph leaves out: capture forward "
                "and backward alone, and leave the optimizer's step outside"
            )
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
        parts: list[Tensor] = [target.param for target, is_open in zip(targets, opened, strict=True) if is_open]
        saved = [part.clone() for part in parts]

        def excess(log_factor: float) -> float:
            """Shrinks; the logarithm of asked for to reached compression."""
            factors = [math.exp(log_factor) if is_adapted else 1.0 for is_adapted in self._adapted]
            passes.shrink([m * factor for m, factor in zip(multipliers, factors, strict=True)], step_sizes)
            nonzeros = [
                size - zeros if is_open or held < 0 else held
                for size, zeros, held, is_open in zip(
                    shards.sizes, shards.num_zeros(), self._nonzeros, opened, strict=True
                )
            ]
            return math.log(self.compression * max(1, sum(nonzeros)) / sum(shards.sizes))

        low, high, last, best = -_LAST_FALL, _LAST_RISE, 0.0, (math.inf, 0.0)
        for _ in range(_LAST_TRIALS):
            error = excess(last)
            best = min(best, (abs(error), last))
            if abs(error) < _LAST_ERROR:
                return
            low, high = (last, high) if error > 0 else (low, last)
            torch._foreach_copy_(parts, saved)
            last = (low + high) / 2
        excess(best[1])

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
            "num_allowed": list(self._num_allowed),
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
    if compression > total:
        raise ValueError(f"{label} cannot be reached: there are {total} penalized weights; ask for less")
    begin = settings.gate.steps if isinstance(settings.gate, Delay) else 0
    if start - begin < FEWEST_STEPS:
        raise ValueError(
            f"{label} needs {FEWEST_STEPS} steps or more at which the gate may be open, before the refit, got "
            f"{settings.gate!r} and {settings.schedule!r}"
        )
    return CompressionControl(compression, int(start), adapted, begin, settings.schedule)
