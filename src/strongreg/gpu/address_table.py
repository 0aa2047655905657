"""A table of addresses for the loops of a step, sent to the GPU where it has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from strongreg.devices import is_captured
from strongreg.kernels.multi_tensor import Sent, Table


class AddressTable:
    """A table of addresses on the GPU, made anew where they have changed.

    Args:
        sent: sends it.
        make: makes it.
    """

    def __init__(self, sent: Sent, make: Callable[[Sequence[int]], Table]) -> None:
        self._sent, self._make = sent, make
        self._addresses: Sequence[int] = ()
        self._kept: Tensor | None = None

    def __call__(self, addresses: Sequence[int]) -> Tensor:
        """The table, not to be written to."""
        if is_captured(self._sent.device):
            return self._sent(self._make(addresses))
        if self._kept is None or addresses != self._addresses:
            self._addresses, self._kept = addresses, self._sent(self._make(addresses))
        return self._kept

    def forget(self) -> None:
        """Make it anew the next time: what it is made of besides has changed."""
        self._kept = None
