"""Which weights a refit holds at zero: those that the penalty had at zero when it last acted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from strongreg.counts import StepCounts
from strongreg.decision import BeforeStep, Decision
from strongreg.devices import Constants, is_captured, reading_is_free
from strongreg.dtensors import as_dtensor, is_dtensor, local, part_of, whole
from strongreg.groups import Target
from strongreg.kernels.zeros import PackedMask, as_boolean
from strongreg.scalars import as_scalars, namespace, per_tensor


class ZeroMasks:
    """Remembers the zeros that a step at a closed gate is about to set free.

    While the gate is open the zeros of the weights themselves are the mask, and nothing is stored on the CPU; while it
    is closed, one bit per weight is. On an accelerator, where the host does not know the decision, one byte is, always.

    Args:
        num_targets: number of penalized tensors, K.
    """

    def __init__(self, num_targets: int) -> None:
        self._masks: list[Tensor | PackedMask | None] = [None] * num_targets
        self._constant = Constants()

    def look(
        self,
        targets: Sequence[Target],
        before: BeforeStep,
        decision: Decision,
        counts: StepCounts,
        start: float,
        num_steps: int,
    ) -> list[bool | Tensor] | None:
        """Remember the zeros for a refit to come, or tell whose it freezes.

        Args:
            targets: the K penalized parameters.
            before: what was known before the step.
            decision: what was decided.
            counts: of the steps before it.
            start: the step from which on the refit goes; infinity for none.
            num_steps: steps before it, as far as the host knows.

        Returns:
            Whether the zeros of each are to be kept over the step, K entries; None before the refit.

        Raises:
            RuntimeError: the step is being captured in a CUDA graph.
        """
        if start == math.inf:
            return None
        if is_captured(counts.step.device):
            raise RuntimeError(
                "a refit begins at a step that the host counts, which a CUDA graph leaves out: capture forward and "
                "backward alone, and leave the optimizer's step outside"
            )
        has_begun = num_steps >= start
        step, last_open = as_scalars(counts.step), as_scalars(counts.last_open)
        devices = [target.param.device for target in targets]
        frozen = None
        if has_begun:
            # zeros that the penalty had no part in stay free, unless there was no step at which it might have had one
            able = counts.num_open > 0
            if start == 0:
                able = self._constant([t.penalty.strength > 0 for t in targets], torch.bool, counts.step.device)
            frozen = per_tensor((step >= start) & as_scalars(able), devices)
        if not has_begun or isinstance(step, Tensor):
            # a step that a GradScaler skips on the device moves no zeros, nor does one without a gradient
            unmoved = decision.skipped | ~decision.allowed
            opened = namespace(step).where(unmoved, last_open, decision.opened)
            self.before_step(before.weights, per_tensor(last_open, devices), per_tensor(opened, devices))
        return frozen

    def before_step(
        self, weights: Sequence[Tensor], was_open: Sequence[bool | Tensor], is_open: Sequence[bool | Tensor]
    ) -> None:
        """Note what a step does to the zeros.

        Args:
            weights: the K penalized tensors as they are before the step.
            was_open: whether the penalty acted at the last step that took place, K entries; numbers, or 0-d tensors on
                the device of each tensor.
            is_open: whether it acts at this one, K entries of the same kind.
        """
        for i, (weight, was, now) in enumerate(zip(weights, was_open, is_open, strict=True)):
            if isinstance(was, Tensor):
                mask = self._masks[i]
                kept = torch.zeros_like(weight, dtype=torch.bool) if mask is None else as_boolean(mask)
                self._masks[i] = ~torch.as_tensor(now) & torch.where(was, weight == 0, kept.to(weight.device))
            elif now:
                self._masks[i] = None
            elif was:
                self._masks[i] = _packed(weight == 0)

    def laid_out_as(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The masks for who writes into them, all there, in the layout and on the device of the weights.

        Args:
            weights: the K penalized tensors.

        Returns:
            K boolean tensors; what is written into them is remembered.
        """
        masks: list[Tensor] = []
        for weight, kept in zip(weights, self._masks, strict=True):
            mask = None if kept is None else as_boolean(kept)
            if mask is None or mask.stride() != weight.stride() or mask.device != weight.device:
                laid_out = torch.zeros_like(weight, dtype=torch.bool)
                mask = laid_out if mask is None else laid_out.copy_(mask)
            masks.append(mask)
        self._masks = list(masks)
        return masks

    @property
    def hidden(self) -> Sequence[Tensor | PackedMask | None]:
        """The zeros that a step at a closed gate has set free: K masks, None where there are none."""
        return self._masks

    def select(self, rows: Sequence[int]) -> ZeroMasks:
        """The masks of some of the tensors.

        Args:
            rows: their positions.

        Returns:
            New masks.
        """
        kept = ZeroMasks(len(rows))
        kept._masks = [self._masks[i] for i in rows]
        return kept

    def state_dict(self, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The masks that the weights do not show.

        Args:
            targets: the K penalized parameters.

        Returns:
            Boolean tensors on the CPU, by parameter name; only those that hold a zero at all. DTensors for DTensors, so
            that no process waits for another.
        """
        saved = {}
        for target, kept in zip(targets, self._masks, strict=True):
            mask = None if kept is None else as_boolean(kept)
            if mask is not None and is_dtensor(target.param):
                saved[target.name] = as_dtensor(mask.clone(), target.param)
            elif mask is not None and bool(mask.any()):
                saved[target.name] = mask.to("cpu", copy=True)
        return saved

    def load_state_dict(self, targets: Sequence[Target], state: dict[str, Tensor]) -> None:
        """Replace the masks.

        Args:
            targets: the K penalized parameters.
            state: what ``state_dict`` returned for the same parameters.

        Raises:
            ValueError: a mask has another shape than its parameter, is not boolean, or is of an unknown parameter.
        """
        unknown = sorted(set(state) - {target.name for target in targets})
        if unknown:
            raise ValueError(f"there are saved zeros of {unknown}, which are not penalized")
        for target in targets:
            saved = state.get(target.name)
            if saved is not None and saved.shape != target.param.shape:
                raise ValueError(
                    f"the saved zeros of {target.name!r} have shape {tuple(saved.shape)}, the parameter "
                    f"{tuple(target.param.shape)}: build the Regularizer on the same network"
                )
            if saved is not None and saved.dtype != torch.bool:
                raise ValueError(f"the saved zeros of {target.name!r} have dtype {saved.dtype}: they must be boolean")
        found = [state.get(target.name) for target in targets]
        self._masks = [
            None if mask is None else _packed(_part(mask, t.param).to(t.param.device, copy=True))
            for t, mask in zip(targets, found, strict=True)
        ]


def _packed(mask: Tensor) -> Tensor | PackedMask:
    """The mask as it is kept where it is."""
    return PackedMask.of(mask) if reading_is_free(mask.device) and type(mask) is Tensor else mask


def _part(mask: Tensor, param: Tensor) -> Tensor:
    """This process's part of a saved mask, whichever way it was laid out."""
    if is_dtensor(mask):
        return local(mask, param) if is_dtensor(param) else whole(mask)
    return part_of(mask, param)
