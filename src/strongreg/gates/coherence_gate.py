"""The gate of gradient-coherent strong regularization."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from strongreg.gates.base import SCOPES, Gate, Scope
from strongreg.validation import check_number


@dataclass(frozen=True)
class CoherenceGate(Gate):
    r"""The penalty acts if and only if :math:`\cos(g, g + \lambda r) \ge \theta`.

    Open while the gradient of the regularized objective still points where the data loss points; closed when the
    penalty would take over, so that the loss can restore the gradient first. The measure and the threshold are a
    reconstruction: the paper's abstract says that regularization is imposed "only when the gradients are kept
    coherent", not how that is measured (docs/theory.md, equation 3).

    Args:
        threshold: :math:`\theta`, a cosine in [-1, 1]. 0.7 is about 45 degrees. Higher protects more and compresses
            less.
        scope: "global", one decision for all penalized weights, or "layer", one per parameter tensor.

    Raises:
        TypeError: ``threshold`` is not a number.
        ValueError: ``threshold`` is outside [-1, 1], or ``scope`` is unknown.

    References:
        D. Park, C. Ho, Y. Chang, H. Zhang, *Gradient-Coherent Strong Regularization for Deep Neural Networks*, arXiv
        1811.08056.

    Example:
        >>> import torch, strongreg
        >>> strongreg.CoherenceGate(0.7).is_open(torch.tensor(0.9), torch.tensor(0))
        tensor(True)
    """

    threshold: float = 0.7
    scope: Scope = "global"

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        check_number(self, "threshold", minimum=-1.0, maximum=1.0)
        if self.scope not in SCOPES:
            raise ValueError(
                f"CoherenceGate(scope={self.scope!r}): scope must be one of {', '.join(map(repr, SCOPES))}"
            )

    @property
    def decision_scope(self) -> Scope:
        """See :attr:`Gate.decision_scope`."""
        return self.scope

    def is_open(self, coherence: Tensor, step: Tensor) -> Tensor:
        """See :meth:`Gate.is_open`: NaN is never >= the threshold, so an unmeasurable gradient closes the gate."""
        del step
        return coherence >= self.threshold
