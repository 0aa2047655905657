"""How the curves of a run are drawn, in the report of many runs and in the figure of one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from strongreg.experiments.drawing import LIGHT, Palette

Values = npt.ArrayLike
GRADIENT_LABEL = "‖g‖ of the loss"
PENALTY_LABEL = "‖λr‖ of the penalty"
WEIGHT_LABEL = "‖w‖ of the weights"
COHERENCE_LABEL = "coherence"
OPEN_LABEL = "share of open steps"


def draw_norms(
    ax: Axes, x: Values, gradient: Values, penalty: Values, weight: Values | None = None, palette: Palette = LIGHT
) -> None:
    """The norms of what pulls at the weights, and of the weights, on a logarithmic axis.

    Args:
        ax: to draw on.
        x: epochs or steps, shape (n,).
        gradient: norm of the loss gradient; NaN leaves a gap, here and below.
        penalty: norm of strength times subgradient.
        weight: norm of the weights; None leaves it out.
        palette: the colours.
    """
    colors = palette.methods
    ax.plot(x, gradient, color=colors["coherent"], label=GRADIENT_LABEL)
    ax.plot(x, penalty, color=colors["always"], linestyle="--", label=PENALTY_LABEL)
    if weight is not None:
        ax.plot(x, weight, color=colors["dense"], linestyle=":", label=WEIGHT_LABEL)
    ax.set_yscale("log")
    ax.minorticks_off()


def draw_gate(
    ax: Axes,
    x: Values,
    coherence: Values,
    opened: Values,
    color: str,
    threshold: float | None = None,
    palette: Palette = LIGHT,
) -> None:
    """The coherence, and how often the gate was open.

    Args:
        ax: to draw on.
        x: epochs or steps, shape (n,).
        coherence: mean around each; NaN leaves a gap, here and below.
        opened: share of open steps around each.
        color: of the method.
        threshold: of the gate; None where it has none.
        palette: the colours.
    """
    values = np.asarray(opened, dtype=np.float64)
    changes = values[1:] != values[:-1]
    edges = np.concatenate([[True], changes]) | np.concatenate([changes, [True]])  # nothing is to be seen between them
    places = np.asarray(x)[edges]
    ax.fill_between(places, values[edges], color=color, alpha=0.15, step="mid", linewidth=0, label=OPEN_LABEL)
    ax.plot(x, coherence, color=palette.methods["dense"], label=COHERENCE_LABEL)
    if threshold is not None:
        ax.axhline(threshold, color=color, linestyle=":", linewidth=1)
    ax.set_ylim(-0.05, 1.05)
