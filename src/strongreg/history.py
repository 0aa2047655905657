"""What happened at each step: coherence, gate decision and norms, per layer and for the whole network."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from strongreg.devices import is_captured, reading_is_free
from strongreg.scalars import as_scalars

Quantity = Literal["coherence", "open", "gradient_norm", "penalty_norm", "weight_norm"]
QUANTITIES: tuple[Quantity, ...] = ("coherence", "open", "gradient_norm", "penalty_norm", "weight_norm")
_BLOCK_STEPS = 256


class History:
    """Records of the steps, written on the device of the weights and moved to the CPU in blocks.

    Per recorded step it takes ``4 * 5 * (num_layers + 1)`` bytes.

    Args:
        layers: names of the penalized parameters.
        every: record every n-th step; 0 records nothing.

    Raises:
        ValueError: ``every`` is negative.
    """

    def __init__(self, layers: list[str], every: int = 1) -> None:
        number: Any = every  # numpy's integers are welcome
        if isinstance(number, bool) or not isinstance(number, numbers.Integral) or number < 0:
            raise ValueError(
                f"history_every={every!r}: must be an int >= 0; 1 records every step, n every n-th, 0 none"
            )
        self.layers = list(layers)
        self.every = int(every)
        self._block: Tensor | None = None
        self._block_steps: Tensor | None = None
        self._num_in_block = 0
        self._num_appended = 0
        self._records: list[Tensor] = []
        self._steps: list[Tensor] = []

    def __len__(self) -> int:
        """Number of recorded steps."""
        return len(self.steps)

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """Numbers of the recorded steps, shape (num_records,)."""
        return self._all_steps().numpy().copy()

    def __getitem__(self, quantity: Quantity) -> npt.NDArray[np.float32]:
        """A quantity of the whole network over the recorded steps.

        Args:
            quantity: "coherence" (cosine; 1 where the strength is 0, as in a refit), "open" (share of the penalized
                weights whose gate was open), "gradient_norm" (norm of the loss gradient over the penalized weights),
                "penalty_norm" (norm of strength times subgradient) or "weight_norm".

        Returns:
            Array of shape (num_records,).

        Raises:
            KeyError: the quantity is unknown.
        """
        return self._column(quantity)[:, -1].copy()

    def per_layer(self, quantity: Quantity) -> npt.NDArray[np.float32]:
        """A quantity of each layer over the recorded steps.

        Args:
            quantity: as in ``history[quantity]``.

        Returns:
            Array of shape (num_records, num_layers), columns in the order of ``layers``.

        Raises:
            KeyError: the quantity is unknown.
        """
        return self._column(quantity)[:, :-1].copy()

    def wants(self, num_steps: int) -> bool:
        """Whether the step after ``num_steps`` steps is one to record.

        Args:
            num_steps: number of optimizer steps done, >= 0.

        Returns:
            True for every n-th step.
        """
        return self.every > 0 and num_steps % self.every == 0

    def is_settled(self, every: int) -> bool:
        """Whether the last records can be looked at without waiting for an accelerator, and it is time to.

        Args:
            every: how often it is time, where looking is free: after each so many records.

        Returns:
            On the CPU True at every n-th record; elsewhere when a block has just been moved, by :meth:`append` or by
            whoever reads.
        """
        if self._block is not None and reading_is_free(self._block.device):
            return self._num_appended % every == 0
        return self._num_in_block <= 1 and bool(self._records)

    def first(self) -> Tensor | None:
        """The first record of the whole network.

        Returns:
            Shape (5,), columns as in ``QUANTITIES``; None if there is none.
        """
        for records in self._records:
            if len(records):
                return records[0, -1]
        return self._block[0, -1] if self._block is not None and self._num_in_block else None

    def last(self, count: int) -> Tensor:
        """The last records of the whole network, of those that can be read without waiting for an accelerator.

        Args:
            count: how many, at most.

        Returns:
            Shape (n, 5) with n <= count, columns as in ``QUANTITIES``.
        """
        blocks = list(self._records)
        if self._block is not None and self._num_in_block and reading_is_free(self._block.device):
            blocks.append(self._block[: self._num_in_block])
        recent = [torch.empty((0, len(QUANTITIES)))]
        while blocks and count > 0:
            recent.insert(1, blocks.pop()[-count:, -1])
            count -= len(recent[1])
        return torch.cat(recent)

    def append(self, record: Tensor, step: Tensor) -> None:
        """Write one record on its device; none while a CUDA graph is captured, whose replays would share its place.

        Args:
            record: shape (num_layers + 1, 5): a row per layer and one for the whole network, columns as in
                ``QUANTITIES``.
            step: 0-d integer tensor, the step's number; negative marks a step that did not take place and is dropped
                later.
        """
        if is_captured(record.device):
            return
        block, steps, row = self.place(len(record), record.device)
        with np.errstate(over="ignore"):  # what float32 does not hold is infinite
            as_scalars(block)[row] = as_scalars(record)
        as_scalars(steps)[row] = as_scalars(step)
        self.written()

    def place(self, num_rows: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
        """Where to write the next record, for who does it himself; :meth:`written` is to follow.

        Args:
            num_rows: num_layers + 1.
            device: of the record.

        Returns:
            The records, shape (m, num_rows, 5), float32, and the numbers of their steps, shape (m,), both on the
            device; and which of the m it is to be.
        """
        if self._block is None or self._block_steps is None or self._block.device != device:
            self.flush()
            shape = (_BLOCK_STEPS, num_rows, len(QUANTITIES))
            self._block = torch.empty(shape, dtype=torch.float32, device=device)
            self._block_steps = torch.empty(_BLOCK_STEPS, dtype=torch.int64, device=device)
        return self._block, self._block_steps, self._num_in_block

    def written(self) -> None:
        """Count the record that was written at :meth:`place`."""
        self._num_in_block += 1
        self._num_appended += 1
        if self._num_in_block == _BLOCK_STEPS:
            self.flush()

    def flush(self) -> None:
        """Move what has been recorded to the CPU."""
        if self._num_in_block and self._block is not None and self._block_steps is not None:
            steps = self._block_steps[: self._num_in_block].to("cpu", copy=True)
            records = self._block[: self._num_in_block].to("cpu", copy=True)
            taken = steps >= 0
            self._steps.append(steps[taken])
            self._records.append(records[taken])
        self._num_in_block = 0

    def select(self, rows: Sequence[int]) -> History:
        """The records of some of the layers; those of the whole network stay what they were when they were taken.

        Args:
            rows: positions of the layers.

        Returns:
            A new history.
        """
        kept = History([self.layers[i] for i in rows], self.every)
        state = self.state_dict()
        kept.load_state_dict({**state, "records": state["records"][:, [*rows, -1]]})
        return kept

    def state_dict(self) -> dict[str, Any]:
        """The records as tensors.

        Returns:
            ``{"steps": (num_records,), "records": (num_records, num_layers + 1, 5)}``.
        """
        return {"steps": self._all_steps().clone(), "records": self._all_records().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the records.

        Args:
            state: what ``state_dict`` returned, for the same layers.

        Raises:
            ValueError: the records are for another number of layers, not one for each step, or no numbers.
        """
        steps, records = state["steps"], state["records"]
        expected = (len(self.layers) + 1, len(QUANTITIES))
        if tuple(records.shape[1:]) != expected:
            raise ValueError(
                f"the saved history holds records of shape {tuple(records.shape[1:])}, expected {expected}"
            )
        numbers_fit = steps.dtype == torch.int64 and records.is_floating_point()
        if not numbers_fit or tuple(steps.shape) != tuple(records.shape[:1]):
            raise ValueError(
                f"the saved history holds steps of shape {tuple(steps.shape)} and {steps.dtype} for records of shape "
                f"{tuple(records.shape)} and {records.dtype}"
            )
        self._num_in_block = 0
        self._steps = [steps.to("cpu", copy=True)]
        self._records = [records.to("cpu", torch.float32, copy=True)]

    def _column(self, quantity: Quantity) -> npt.NDArray[np.float32]:
        if quantity not in QUANTITIES:
            raise KeyError(f"unknown quantity {quantity!r}: choose one of {', '.join(map(repr, QUANTITIES))}")
        return self._all_records()[..., QUANTITIES.index(quantity)].numpy()

    def _all_steps(self) -> Tensor:
        self.flush()
        self._steps = [torch.cat(self._steps)] if self._steps else [torch.empty(0, dtype=torch.int64)]
        return self._steps[0]

    def _all_records(self) -> Tensor:
        self.flush()
        empty = torch.empty((0, len(self.layers) + 1, len(QUANTITIES)), dtype=torch.float32)
        self._records = [torch.cat(self._records)] if self._records else [empty]
        return self._records[0]
