"""Drawings as SVG text, to be put into a page or a file."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from strongreg.experiments.recipe import Method
from strongreg.experiments.tolerance import Probe, Tolerance

COLORS: dict[Method, str] = {
    "dense": "#5b6475",
    "always": "#c2362b",
    "delayed": "#c98a1b",
    "coherent": "#1f6feb",
    "magnitude": "#2e8b57",
    "oneshot": "#8a5cc9",
    "slimming": "#b0568f",
}
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e9ef",
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def svg(draw: Callable[[Figure], None], height: float, width: float = 10) -> Markup:
    """Draw a figure.

    Args:
        draw: fills the empty figure.
        height: in inches.
        width: in inches.

    Returns:
        SVG without prolog, for use within HTML.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")), transparent=True
        )
    text = buffer.getvalue()
    # inlined: without XML prolog and document type; the rest is matplotlib's own drawing of numbers
    return Markup(re.sub(r"^.*?(?=<svg)", "", text, count=1, flags=re.DOTALL))


def draw_tolerance(probes: Sequence[Probe], levels: Sequence[Tolerance]) -> str:
    """Accuracy against strength for each method, and where its tolerance level lies.

    Args:
        probes: what was tried.
        levels: the tolerance levels.

    Returns:
        SVG text.
    """

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        for level in levels:
            mine = sorted((p for p in probes if p.method == level.method), key=lambda p: p.strength)
            color = COLORS[level.method]
            strengths = [p.strength for p in mine]
            worst = [100 * min(p.accuracies) for p in mine]
            ax.plot(strengths, worst, color=color, linewidth=1.2, label=level.method)
            for marker, chosen in (("o", "endured"), ("s", "silent")):
                shown = [(p.strength, 100 * min(p.accuracies)) for p in mine if getattr(p, chosen)]
                ax.plot(*zip(*shown, strict=True) if shown else ([], []), marker, color=color)
            dead = [(p.strength, 100 * min(p.accuracies)) for p in mine if not (p.endured or p.silent)]
            ax.plot(*zip(*dead, strict=True) if dead else ([], []), "x", color=color)
            if level.endured > 0 and math.isfinite(level.failed):
                ax.axvspan(level.endured, level.failed, color=color, alpha=0.15, linewidth=0)
        ax.set(xscale="log", xlabel="strength", ylabel="accuracy of the worst seed (%)", ylim=(0, 101))
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        ax.set_title("o endured   x died   square: learned, but the penalty never acted", loc="left", fontsize=8)

    return str(svg(draw, height=3.4, width=8))
