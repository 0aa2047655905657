"""Whether a step can be done on the GPU alone: looked at in every step, and otherwise the general way is gone."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from strongreg.counts import StepCounts
from strongreg.devices import is_captured
from strongreg.gates import CoherenceGate, Gate
from strongreg.gpu.step import GpuStep, knows, other_params
from strongreg.groups import Target
from strongreg.history import History
from strongreg.kernels import multi_tensor
from strongreg.kernels.layout import is_dense, is_plain
from strongreg.kernels.multi_tensor import MultiTensorPasses, warn_of_triton
from strongreg.optimizers import GroupIndex
from strongreg.penalties import L1
from strongreg.pull import compares_with_step
from strongreg.refit import ZeroMasks
from strongreg.schedules import CosineRamp, Refit, Schedule
from strongreg.settings import CoherenceOf, Mode
from strongreg.strength_control import StrengthControl


class FastPath:
    """Whether a step can be done on the GPU alone, and by what; remembers both.

    Args:
        targets: the K penalized parameters.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = targets
        self._made_of: tuple[object, ...] = ()
        self._step: GpuStep | None = None
        self._in_graphs: list[tuple[GpuStep, StepCounts]] = []

    def release(self) -> None:
        """Let go of the optimizer; what a CUDA graph reads is kept."""
        self._made_of, self._step = (), None

    def begin(
        self,
        optimizer: Optimizer,
        state: tuple[StepCounts, ZeroMasks, int],
        gate: Gate,
        schedule: Schedule,
        mode: Mode,
        coherence_of: CoherenceOf,
        control: StrengthControl,
        scales: Sequence[float],
    ) -> GpuStep | None:
        """Measure what is to be measured before the weights move, if all is as it must be.

        Args:
            optimizer: within its step, with the gradients there.
            state: for :meth:`GpuStep.before_step`.
            gate: when the penalty acts.
            schedule: factor on the strength over the steps.
            mode: how the penalty is imposed.
            coherence_of: what the penalty must be coherent with.
            control: of the strength.
            scales: relative strength of each tensor, K entries.

        Returns:
            What will end the step; None where the general way is to be gone.
        """
        device = self._targets[0].param.device
        if device.type not in multi_tensor.DEVICES or mode != "proximal":
            return None
        made_of = optimizer, gate, schedule, coherence_of, control, scales
        is_known = len(self._made_of) == len(made_of) and all(map(operator.is_, self._made_of, made_of))
        if not is_known or (self._step is not None and not self._step.still_fits(optimizer)):
            self._made_of, self._step = made_of, None
            of_step = compares_with_step(coherence_of, mode, optimizer)
            if type(control) is StrengthControl and _fit(self._targets, optimizer, gate, schedule):
                factors = control.factors(self._targets, scales, device)
                self._step = GpuStep(self._targets, optimizer, gate, schedule, factors, of_step=of_step)
        if self._step is None or not self._step.before_step(optimizer, *state):
            return None
        if is_captured(device):
            self._in_graphs.append((self._step, state[0]))
        return self._step


def _fit(targets: Sequence[Target], optimizer: Optimizer, gate: Gate, schedule: Schedule) -> bool:
    """Whether the loops know all of these."""
    if not knows(gate, schedule):
        return False
    group, *others = {id(group): group for group in GroupIndex(targets).groups(optimizer)}.values()
    first = targets[0].param
    if others or "lr" not in group or not any(target.penalty.strength > 0 for target in targets):
        return False
    if not all(MultiTensorPasses.accepts(target) for target in targets):
        return False
    params = [target.param for target in targets] + other_params(targets, optimizer)
    return _work_on(first.device, first.dtype) and all(
        p.device == first.device and p.dtype == first.dtype and is_plain(p) and is_dense(p) for p in params
    )


@functools.cache
def _work_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the loops that the other passes do not need run there, too: they are tried once."""
    param = nn.Parameter(torch.ones(2, 2, device=device, dtype=dtype))
    param.grad = torch.ones_like(param)
    targets, optimizer = [Target("", param, L1(1.0), by_pattern=False)], SGD([param], lr=0.1)
    gate, schedule, counts, masks = CoherenceGate(), Refit(0, before=CosineRamp(1)), StepCounts(1), ZeroMasks(1)
    try:
        for of_step in (False, True):
            factors = torch.ones(1, dtype=torch.float64, device=device)
            step = GpuStep(targets, optimizer, gate, schedule, factors, of_step=of_step)
            step.before_step(optimizer, counts, masks, 0)
            step.after_step(optimizer, counts, History([""], 0), records=False)
    except Exception as error:  # whatever a compiler or a driver raises: the general way needs neither
        warn_of_triton(device, dtype, error)
        return False
    return True
