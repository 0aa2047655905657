"""The gate that opens after a fixed number of steps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from strongreg.gates.base import Gate
from strongreg.validation import check_steps


@dataclass(frozen=True)
class Delay(Gate):
    """Delayed strong regularization: no penalty for the first ``steps`` optimizer steps, then the full penalty.

    Args:
        steps: optimizer steps without penalty, >= 0 (epochs times steps per epoch).

    Raises:
        TypeError: ``steps`` is not an int.
        ValueError: ``steps`` is negative.

    References:
        *Achieving Strong Regularization for Deep Neural Networks*, ICLR 2018 submission, OpenReview Bys_NzbC-.

    Example:
        >>> import torch, strongreg
        >>> strongreg.Delay(steps=100).is_open(torch.tensor(1.0), torch.tensor(99))
        tensor(False)
    """

    steps: int

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        check_steps(self, "steps", minimum=0)

    def is_open(self, coherence: Tensor, step: Tensor) -> Tensor:
        """See :meth:`Gate.is_open`."""
        return (step >= self.steps).expand_as(coherence)
