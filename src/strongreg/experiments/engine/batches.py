"""Shuffled, augmented batches on the device, from generators of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from strongreg.experiments.data import Augmentation, Data

_AUGMENTATION_STREAM = 0x5EED  # another stream of numbers than the order's, from the same seed


class Batches:
    """The training examples in a new order at each pass; it can go on in the middle of one.

    Args:
        data: the examples, on the device.
        batch_size: examples per optimizer step.
        augmentation: what is done to images; texts take none.
        seed: of order and augmentation.
        rank: which share of each batch is taken.
        world_size: number of shares.
    """

    def __init__(
        self,
        data: Data,
        batch_size: int,
        augmentation: Augmentation,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._data, self._batch_size, self._augment = data, batch_size, augmentation
        self._rank, self._world_size = rank, world_size
        self._order = torch.Generator().manual_seed(seed)
        self._random = torch.Generator().manual_seed((seed ^ _AUGMENTATION_STREAM) + rank)
        self._order_at_start = self._order.get_state()

    def __len__(self) -> int:
        """Number of optimizer steps of one pass."""
        return math.ceil(len(self._data.train) / self._batch_size)

    def epoch(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor, float]]:
        """One pass over the examples.

        Args:
            first: number of batches to leave out, for a run that goes on.

        Yields:
            Inputs as a network reads them, shape (n, ...): float32 images, normalized, or int64 tokens; labels, shape
            (n,) or (n, num_positions); and the factor on their mean loss that makes its mean over the shares the mean
            loss of the whole batch. A share without examples is the whole batch with factor 0: its process takes part
            in the step as the others do.
        """
        split = self._data.train
        self._order_at_start = self._order.get_state()
        order = torch.randperm(len(split), generator=self._order).to(split.inputs.device)
        for batch in order.split(self._batch_size)[first:]:
            mine = batch[self._rank :: self._world_size] if self._world_size > 1 else batch
            factor = len(mine) * self._world_size / len(batch)
            if not len(mine):
                mine = batch
            examples = split.select(mine)
            yield self._data.normalize(self._augment(examples.inputs, self._random)), examples.labels, factor

    def state_dict(self) -> dict[str, Any]:
        """Where the generators stand; the order's is that at the start of the pass.

        Returns:
            Tensors for :meth:`load_state_dict`.
        """
        return {"order": self._order_at_start, "order_now": self._order.get_state(), "random": self._random.get_state()}

    def load_state_dict(self, state: dict[str, Any], *, in_epoch: bool) -> None:
        """Go on where ``state_dict`` was taken.

        Args:
            state: what it returned.
            in_epoch: whether that was in the middle of a pass, which is to be taken up.
        """
        self._order_at_start = state["order"] if in_epoch else state["order_now"]
        self._order.set_state(self._order_at_start)
        self._random.set_state(state["random"])
