"""The table that ``Regularizer.summary()`` returns: weights, zeros and compression, per layer and in total."""

from __future__ import annotations

import math
from dataclasses import dataclass

from strongreg.text_table import text_table

_RARELY = 0.05


@dataclass(frozen=True)
class SummaryRow:
    """Counts of one penalized parameter, or of all together.

    Args:
        name: the parameter's name, or "total".
        shape: its shape; empty for the total.
        num_weights: number of weights.
        num_zeros: number of weights that are exactly 0.
        open_fraction: share of the steps at which its gate was open (for the total: weighted by the number of weights),
            in [0, 1]; NaN before the first step.
    """

    name: str
    shape: tuple[int, ...]
    num_weights: int
    num_zeros: int
    open_fraction: float

    @property
    def num_nonzero(self) -> int:
        """Number of weights kept."""
        return self.num_weights - self.num_zeros

    @property
    def compression(self) -> float:
        """Dense weights / kept weights; infinite when none is kept, 1 when there are no weights."""
        if self.num_weights == 0:
            return 1.0
        return self.num_weights / self.num_nonzero if self.num_nonzero else math.inf


@dataclass(frozen=True)
class Summary:
    """The rows of all penalized parameters and their total; ``print`` shows them as a table.

    Args:
        layers: one row per penalized parameter.
        num_steps: optimizer steps done.
        num_nonfinite: steps with a non-finite gradient, at which the gate stayed closed.
        advice: what to change, where the penalty did not do what one would expect; empty otherwise.
    """

    layers: tuple[SummaryRow, ...]
    num_steps: int
    num_nonfinite: int
    advice: str = ""

    @property
    def total(self) -> SummaryRow:
        """All penalized parameters together."""
        return _total(self.layers)

    def __str__(self) -> str:
        """The table as text."""
        header = ("parameter", "shape", "weights", "zeros", "kept", "times smaller", "gate open")
        lines = text_table(header, [_cells(row) for row in self.layers], _cells(self.total), num_left=2)
        steps = f"{self.num_steps} steps"
        if self.num_nonfinite:
            steps += f", {self.num_nonfinite} of them with a non-finite gradient (gate closed)"
        if self.advice:
            steps += f"\n{self.advice}"
        return f"{lines}\n{steps}"


def advise(opened: float, *, zeros_moved: bool) -> str:
    """What to tell the user of a run whose penalty did not do what one would expect.

    Args:
        opened: share of the steps at which the penalty acted, of those at which it might have (outside a refit, with a
            strength above 0 and a gradient), weighted by the number of weights; NaN where there were none.
        zeros_moved: whether the gate of a penalty that has made zeros was closed at the last such step, outside a
            refit, so that they have moved.

    Returns:
        One sentence, or nothing.
    """
    if opened < _RARELY:
        return (
            f"the penalty acted at {opened:.1%} of the steps at which it might have, and had little effect: unless "
            "that is intended, lower the strength or the gate's threshold"
        )
    if zeros_moved:
        return (
            "a gate was closed at the last step, which sets its zeros free to move; to end with them, finish the "
            "run with schedule=Refit(...)"
        )
    return ""


def _total(layers: tuple[SummaryRow, ...]) -> SummaryRow:
    num_weights = sum(row.num_weights for row in layers)
    num_zeros = sum(row.num_zeros for row in layers)
    opened = sum(row.num_weights * row.open_fraction for row in layers) / num_weights if num_weights else math.nan
    return SummaryRow("total", (), num_weights, num_zeros, opened)


def _cells(row: SummaryRow) -> tuple[str, ...]:
    kept = f"{row.num_nonzero / row.num_weights:.1%}" if row.num_weights else "-"
    opened = "-" if math.isnan(row.open_fraction) else f"{row.open_fraction:.1%}"
    shape = "x".join(map(str, row.shape))
    return (row.name, shape, f"{row.num_weights:,}", f"{row.num_zeros:,}", kept, f"{row.compression:.1f}", opened)
