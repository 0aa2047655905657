"""Sees a collapse begin: the penalty acts with a much larger gradient than the loss while the weights shrink.

Measured on runs of known fate (benchmarks/README.md): once the weights had fallen to half their first norm, the
smoothed ratio of penalty gradient to loss gradient stayed below 1 in every network that lived, and went beyond 2 in
every one that died of the penalty, beyond 10 where its strength had not grown slowly.
"""

from __future__ import annotations

from torch import Tensor

from strongreg.history import QUANTITIES, History
from strongreg.warning import warn

NUM_SMOOTHED = 16
"""Records over which norms are averaged."""
SHRUNK = 0.5
"""Share of the first weight norm."""
_TAKEN_OVER = 2.0
_EVERY = 32
_OPEN, _GRADIENT, _PENALTY, _WEIGHT = (
    QUANTITIES.index(q) for q in ("open", "gradient_norm", "penalty_norm", "weight_norm")
)


class CollapseWatch:
    """Warns once when the recorded steps show that a collapse has begun.

    Args:
        enabled: whether it does.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._has_warned = not enabled

    def look(self, history: History) -> None:
        """Look at the last records, now and then, and only at what needs no waiting for an accelerator.

        Args:
            history: of the run.
        """
        if self._has_warned or not history.is_settled(_EVERY):
            return
        first, last = history.first(), history.last(NUM_SMOOTHED)
        if first is None or len(last) < NUM_SMOOTHED or not has_taken_over(first, last):
            return
        self._has_warned = True
        penalty, gradient = _mean(last[:, _PENALTY]), _mean(last[:, _GRADIENT])
        warn(
            f"a collapse has begun: the penalty acts with a gradient of norm {penalty:.2g} on a loss gradient of "
            f"{gradient:.2g}, and the weights have fallen from norm {first[_WEIGHT]:.3g} to {last[-1, _WEIGHT]:.3g}; "
            "put CoherenceGate(0.7) in front of the penalty, raise its threshold, or lower the strength "
            "(Regularizer(warn_of_collapse=False) silences this)",
            RuntimeWarning,
        )


def has_taken_over(first: Tensor, last: Tensor) -> bool:
    """Whether the penalty steers alone.

    Args:
        first: the first record of the whole network, shape (5,), columns as in ``QUANTITIES``.
        last: its last records, shape (n, 5).

    Returns:
        True if a collapse is under way.
    """
    acting = _mean(last[:, _PENALTY] * (last[:, _OPEN] > 0))
    return last[-1, _WEIGHT].item() < SHRUNK * first[_WEIGHT].item() and acting > _TAKEN_OVER * _mean(
        last[:, _GRADIENT]
    )


def _mean(values: Tensor) -> float:
    return float(values.double().mean())
