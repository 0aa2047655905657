"""A step on a GPU in four launches, whatever the number of tensors: measured, decided, counted and recorded there.

It does what the Regularizer does in general, where all is as it mostly is: plain dense tensors of one dtype on one GPU
under penalties of known terms, a gate and a schedule of ours, one learning rate, no loss scale. Whether that is so is
looked at in every step; otherwise the general way is gone.
"""

from __future__ import annotations

import importlib
import math
import operator
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from strongreg.counts import StepCounts
from strongreg.devices import is_captured
from strongreg.gates import AlwaysOpen, CoherenceGate, Delay, Gate
from strongreg.gpu.address_table import AddressTable
from strongreg.groups import Target
from strongreg.history import History
from strongreg.kernels.multi_tensor import BITS_OF_1, MultiTensorPasses, Sent, Table
from strongreg.optimizers import GroupIndex, effective_step_size, loss_scale
from strongreg.penalties import L1
from strongreg.pull import away_from_0
from strongreg.refit import ZeroMasks
from strongreg.schedules import Constant, CosineRamp, LinearRamp, Refit, Schedule

_GATES: tuple[type[Gate], ...] = (AlwaysOpen, CoherenceGate, Delay)
_SCHEDULES: tuple[type[Schedule], ...] = (Constant, LinearRamp, CosineRamp)
_NOT_PENALIZED = L1(0.0)
_MOST_AT_ONCE = 512  # tensors, in the decision
_NO_ROW = -1
_OF_PULL, _OF_WEIGHT = 0, 3
"""Columns of the sums: in the first are the squared norms of gradients that are pulls, in the last those of weights."""


class GpuStep(MultiTensorPasses):
    """The steps of an optimizer that holds the penalized parameters, as long as :meth:`still_fits`.

    Where a CUDA graph is captured, it reads this object's tensors: keep the Regularizer as long as it is replayed.

    Args:
        targets: the K penalized parameters.
        optimizer: the optimizer; :class:`strongreg.gpu.fast_path.FastPath` has seen that all is as it must be.
        gate: when the penalty acts.
        schedule: factor on the strength over the steps.
        factors: factor on the strength of each tensor apart from that, shape (K,), float64 on the GPU.
        of_step: whether the penalty must be coherent with the optimizer's step and not with the gradient.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        optimizer: Optimizer,
        gate: Gate,
        schedule: Schedule,
        factors: Tensor,
        *,
        of_step: bool,
    ) -> None:
        others = [Target("", param, _NOT_PENALIZED, by_pattern=False) for param in other_params(targets, optimizer)]
        super().__init__([*targets, *others])
        self._is_in_a_graph = False
        self._held = [(group, tuple(group["params"])) for group in optimizer.param_groups]
        self._group = GroupIndex(targets).groups(optimizer)[0]
        self._weights = [param.data_ptr() for param in self._params]
        self._layouts = [(param.shape, param.stride(), param.dtype) for param in self._params]
        self._strides = [param.stride() for param in self._params]  # of the gradients
        self._counts_of_entries = [param.numel() for param in self._params]
        self._dtype = self._params[0].dtype
        self._num_penalized, self._of_step, self._factors = len(targets), of_step, factors
        count, sizes = len(self._params), [target.param.numel() for target in targets]
        self._starts = np.cumsum([0, *sizes])
        self._sizes = torch.tensor(sizes, device=self._device)
        self._copies: Tensor | None = None
        self._pulls: list[int] = []
        self._in_graphs: list[Tensor] = []
        self._squares_at = AddressTable(self._of_squares, self._gradients_alone)
        moved = self._copies_and_weights if of_step else self._gradients_and_weights
        self._products_at = AddressTable(self._of_products, moved)
        self._at = torch.empty(0, device=self._device)  # the table of the step that is under way
        self._by_piece, self._squares, self._products = map(self._new, (self._num_pieces, count, count))
        self._multipliers = torch.zeros(count, dtype=torch.float64, device=self._device)
        self._shrink_at = self._table_of_shrink()
        self._refit_start = schedule.refit_start
        self._changes, self._held_zeros = torch.zeros((2, count), dtype=torch.int8, device=self._device)
        self._remembered_at = AddressTable(Sent((count, 3), self._device), self._before_and_masks)
        self._marked_at = AddressTable(Sent((count, 3), self._device), self._weights_masks_and_marks)
        self._masks: list[int] = []
        self._marks: Tensor | None = None
        self._decision = importlib.import_module("strongreg.kernels.decision_loops").decide
        self._zeros = importlib.import_module("strongreg.kernels.zeros_loops")
        self._settings = torch.tensor(_numbers(gate, schedule), dtype=torch.float64, device=self._device)
        self._kinds = {
            "COLUMN": _OF_WEIGHT if of_step else _OF_PULL,
            "GATE": _GATES.index(type(gate)),
            "BY_LAYER": gate.decision_scope == "layer",
            "SCHEDULE": _SCHEDULES.index(type(_until_refit(schedule))),
            "BLOCK": min(_MOST_AT_ONCE, 1 << count.bit_length()),
            "enable_fp_fusion": False,
        }

    def still_fits(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer and its parameters are those for which this was made, and where they were.

        Args:
            optimizer: the optimizer.

        Returns:
            Whether :meth:`before_step` may be called.
        """
        groups = optimizer.param_groups
        if len(groups) != len(self._held):
            return False
        for group, (known, params) in zip(groups, self._held, strict=True):
            now = group["params"]
            if group is not known or len(now) != len(params) or not all(map(operator.is_, now, params)):
                return False
        return list(map(Tensor.data_ptr, self._params)) == self._weights

    def before_step(self, optimizer: Optimizer, counts: StepCounts, masks: ZeroMasks, num_steps: int) -> bool:
        """Measure what is to be measured before the weights move.

        Args:
            optimizer: within its step, with the gradients there.
            counts: of the steps before it.
            masks: the zeros that a refit to come will hold.
            num_steps: steps before it, or more if a GradScaler made the device skip some: all that the host knows.

        Returns:
            Whether this step is done here. If not, nothing has been done.
        """
        self._copies, self._marks = None, None  # of a step that failed
        is_captured_now = is_captured(self._device)
        if not _is_simple(optimizer) or (is_captured_now and self._refit_start < math.inf):
            return False
        grads = self._addresses_of_gradients()
        if grads is None:
            return False
        counts.to(self._device)
        self._is_in_a_graph |= is_captured_now
        with self._on_device():
            if self._of_step:
                self._squares_of(self._squares_at(grads), self._by_piece, self._squares)
                self._copies = torch.empty(int(self._starts[-1]), dtype=self._dtype, device=self._device)
                self._pulls = [self._copies.data_ptr(), *grads]
                self._at = self._products_at(self._pulls)
                self._over_all(self._loops.copy, self._at)
            else:
                self._at = self._products_at(grads)
                self._products_of(self._at, self._by_piece, self._products)
            self._masks = []
            if self._refit_start < math.inf:
                self._masks = [mask.data_ptr() for mask in masks.laid_out_as(self._params[: self._num_penalized])]
                self._before_refit_or_in_it(counts, has_begun=num_steps >= self._refit_start)
        return True

    def after_step(self, optimizer: Optimizer, counts: StepCounts, history: History, *, records: bool) -> None:
        """Decide, count, record, and impose the penalty.

        Args:
            optimizer: after its step.
            counts: of the steps before it; counted on.
            history: what to record the step in.
            records: whether to.
        """
        size = float(effective_step_size(optimizer, self._group))
        if list(map(Tensor.data_ptr, self._params)) != self._weights:
            self._follow()
        records = records and not is_captured(self._device)  # replays would share the place
        place = history.place(self._num_penalized + 1, self._device) if records else None
        with self._on_device():
            if self._of_step:
                self._products_of(self._at, self._by_piece, self._products)
            self._decide(counts, place, 1 / float(away_from_0(size)) if self._of_step else 1.0)
            if self._of_step and self._masks:
                self._remember(self._copies)
            self._copies = None
            if size > 0:
                self._shrink_by(self._shrink_at, _bits(size))
            if self._marks is not None:
                marks, self._marks = self._marks, None
                self._over_all(self._zeros.set_marked, self._marked_at([marks.data_ptr(), *self._masks]))
        torch.autograd.graph.increment_version(self._params[: self._num_penalized])
        if place is not None:
            history.written()

    def _follow(self) -> None:
        """The optimizer has put other tensors into its parameters (``param.data = ...``) within its step."""
        if self._layouts != [(param.shape, param.stride(), param.dtype) for param in self._params]:
            raise RuntimeError(
                "the optimizer has changed shape, memory layout or dtype of a parameter within its step, where "
                "strongreg cannot follow on a GPU: set the environment variable STRONGREG_COMPILED=0"
            )
        self._weights = [param.data_ptr() for param in self._params]
        if self._is_in_a_graph:
            self._in_graphs.append(self._shrink_at)
        self._shrink_at = self._table_of_shrink()
        for table in (self._products_at, self._remembered_at, self._marked_at):
            table.forget()
        if self._copies is not None:
            self._at = self._products_at(self._pulls)

    def _decide(
        self, counts: StepCounts, place: tuple[Tensor, Tensor, int] | None, unit: float, *, only_look: bool = False
    ) -> None:
        """Decide on the step, record it where there is a place, and count it."""
        records, steps, row = (self._multipliers, counts.step, _NO_ROW) if place is None else place
        self._decision[(1,)](
            self._squares if self._of_step else self._products,
            self._products,
            _bits(unit),
            self._at,
            self._factors,
            self._sizes,
            self._settings,
            counts.step,
            counts.num_nonfinite,
            counts.num_open,
            counts.num_allowed,
            counts.last_open,
            self._multipliers,
            self._changes,
            self._held_zeros,
            records,
            steps,
            self._num_penalized,
            len(self._params),
            row,
            COUNTS=not only_look,
            **self._kinds,
        )

    def _before_refit_or_in_it(self, counts: StepCounts, *, has_begun: bool) -> None:
        """Remember zeros for a refit to come, and mark those that it holds, while the weights have not moved."""
        if has_begun or not self._of_step:
            # with the optimizer's step there are no products of it yet: of what is decided only the held zeros are used
            self._decide(counts, None, 1.0, only_look=True)
        if not self._of_step:
            self._remember(None)
        self._marks = None
        if has_begun:
            self._marks = torch.empty(int(self._starts[-1]), dtype=torch.int8, device=self._device)
            self._over_all(self._zeros.mark, self._marked_at([self._marks.data_ptr(), *self._masks]), self._held_zeros)

    def _remember(self, copies: Tensor | None) -> None:
        """Remember the zeros that the weights had before the step."""
        at = self._remembered_at([0 if copies is None else copies.data_ptr(), *self._masks])
        self._over_all(self._zeros.remember, at, self._changes)

    def _over_all(self, loop: Any, *tables: Tensor) -> None:
        """A launch over all pieces."""
        if self._num_pieces:
            loop[(self._num_pieces,)](self._pieces, *tables, **self._element)

    def _addresses_of_gradients(self) -> list[int] | None:
        """Where the gradients lie, 0 for none; None if one of them is not laid out as its parameter was."""
        addresses, dtype, strides, counts = [], self._dtype, self._strides, self._counts_of_entries
        for i, param in enumerate(self._params):
            grad = param.grad
            if grad is None:
                addresses.append(0)
                continue
            if type(grad) is not Tensor or grad.dtype is not dtype or grad.layout is not torch.strided or grad.is_neg():
                return None
            if grad.numel() != counts[i] or (grad.stride() != strides[i] and not self._is_laid_out(grad, i)):
                return None
            address = grad.data_ptr()
            if address == 0 and counts[i]:  # a lazy zero, or freed memory
                return None
            addresses.append(address or 1)  # where there are no entries nobody reads
        return addresses

    def _is_laid_out(self, grad: Tensor, i: int) -> bool:
        """Whether a gradient's strides differ along dimensions of size 1 only; if so, they are known from now on."""
        shape, stride, _ = self._layouts[i]
        same = grad.shape == shape and all(
            a == b or n <= 1 for a, b, n in zip(grad.stride(), stride, shape, strict=True)
        )
        if same:
            self._strides[i] = grad.stride()
        return same

    # ------------------------------------------------------------------ tables of addresses

    def _table_of_shrink(self) -> Tensor:
        table = np.zeros((len(self._params), 5), dtype=np.int64)
        table[:, 0] = self._weights
        table[: self._num_penalized, 1] = BITS_OF_1
        table[:, 2] = self._multipliers.data_ptr() + 8 * np.arange(len(table))
        return torch.from_numpy(table).to(self._device)

    def _gradients_alone(self, addresses: Sequence[int]) -> Table:
        table = np.zeros((len(self._params), 3), dtype=np.int64)
        table[:, 0] = addresses
        return table

    def _gradients_and_weights(self, addresses: Sequence[int]) -> Table:
        table = np.zeros((len(self._params), 3), dtype=np.int64)
        table[: self._num_penalized, 0] = self._weights[: self._num_penalized]
        table[:, 1] = addresses
        return table

    def _copies_and_weights(self, addresses: Sequence[int]) -> Table:
        """Of the weights before the step, of these again where there is a gradient, and of the weights."""
        table, count = np.zeros((len(self._params), 3), dtype=np.int64), self._num_penalized
        table[:count, 0] = addresses[0] + self._params[0].element_size() * self._starts[:-1]
        table[:count, 1] = np.where(np.array(addresses[1 : count + 1]) != 0, table[:count, 0], 0)
        table[:count, 2] = self._weights[:count]
        return table

    def _before_and_masks(self, addresses: Sequence[int]) -> Table:
        """Of the weights before the step, which are those of a copy if there is one, and of what is remembered."""
        table, count = np.zeros((len(self._params), 3), dtype=np.int64), self._num_penalized
        copied = addresses[0] + self._params[0].element_size() * self._starts[:-1]
        table[:count, 0] = copied if addresses[0] else self._weights[:count]
        table[:count, 1] = addresses[1:]
        return table

    def _weights_masks_and_marks(self, addresses: Sequence[int]) -> Table:
        table, count = np.zeros((len(self._params), 3), dtype=np.int64), self._num_penalized
        table[:count, 0] = self._weights[:count]
        table[:count, 1] = addresses[1:]
        table[:count, 2] = addresses[0] + self._starts[:-1]
        return table


def knows(gate: Gate, schedule: Schedule) -> bool:
    """Whether the loops know a gate and a schedule.

    Args:
        gate: when the penalty acts.
        schedule: factor on the strength over the steps.

    Returns:
        True for those of this library, and not for classes derived from them.
    """
    return type(gate) in _GATES and type(_until_refit(schedule)) in _SCHEDULES


def other_params(targets: Sequence[Target], optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters that are not penalized: their gradients must be finite, too.

    Args:
        targets: the penalized parameters.
        optimizer: the optimizer that holds all.

    Returns:
        Those with entries.
    """
    penalized = {id(target.param) for target in targets}
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [param for param in params if id(param) not in penalized and param.numel()]


def _is_simple(optimizer: Optimizer) -> bool:
    """Whether nothing scales the gradients, turns their sign, or stops the step."""
    if loss_scale(optimizer) is not None or getattr(optimizer, "found_inf", None) is not None:
        return False
    return not any(
        isinstance(group.get("lr"), Tensor) or group.get("lr", 0) == 0 or group.get("maximize", False)
        for group in optimizer.param_groups
    )


def _numbers(gate: Gate, schedule: Schedule) -> tuple[float, ...]:
    """What the decision is made by, as ``decision_loops.decide`` takes it."""
    of_gate = 0.0
    if isinstance(gate, CoherenceGate):
        of_gate = gate.threshold
    elif isinstance(gate, Delay):
        of_gate = float(gate.steps)
    before, start = _until_refit(schedule), schedule.refit_start
    if isinstance(before, LinearRamp | CosineRamp):
        return of_gate, float(before.steps), before.initial, before.final, float(before.start), start
    return of_gate, 1.0, 1.0, 1.0, 0.0, start


def _until_refit(schedule: Schedule) -> Schedule:
    """The schedule before a refit, if it is one."""
    return schedule.before if type(schedule) is Refit else schedule


def _bits(number: float) -> int:
    """A float64 in the bits of an integer."""
    return int(struct.unpack("<q", struct.pack("<d", number))[0])
