"""Drawings: their colours on light and dark pages, as SVG text within a page or as files of their own."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from strongreg.experiments.recipe import Method
from strongreg.experiments.tolerance import Probe, Tolerance

Format = Literal["svg", "png"]


@dataclass(frozen=True)
class Palette:
    """Colours that stay apart for colour-blind eyes and stand out from the page (tests/experiments/test_drawing.py).

    Args:
        ink: of text and of what matters.
        soft: of axes and notes.
        grid: of grid lines.
        paper: of the page.
        methods: of each method.
    """

    ink: str
    soft: str
    grid: str
    paper: str
    methods: dict[Method, str]

    @property
    def names(self) -> dict[str, str]:
        """Each colour by the name that it has in the style of a page."""
        own = {"ink": self.ink, "soft": self.soft, "grid": self.grid, "paper": self.paper}
        return own | dict(self.methods)


LIGHT = Palette(
    ink="#1d2433",
    soft="#596274",
    grid="#e6e9ef",
    paper="#ffffff",
    methods={
        "dense": "#5b6475",
        "always": "#b3261e",
        "delayed": "#c97a00",
        "coherent": "#1f6feb",
        "magnitude": "#0a9178",
        "oneshot": "#6a4bb8",
        "slimming": "#c65fa0",
    },
)
DARK = Palette(
    ink="#e6edf3",
    soft="#a0aab8",
    grid="#283040",
    paper="#0d1117",
    methods={
        "dense": "#9aa4b5",
        "always": "#f4695c",
        "delayed": "#f0b13c",
        "coherent": "#6cabff",
        "magnitude": "#3fc7a4",
        "oneshot": "#a58bea",
        "slimming": "#ee9ccd",
    },
)
COLORS = LIGHT.methods
"""Of drawings within a page, whose style has others for dark screens."""

_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_DPI = 150
_FONTS = "system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"  # none wider than the one that is reckoned with
_PLACES = re.compile(r'(?<= )(?:d|x|y)="[^"]*"')
_DIGITS = re.compile(r"\d+\.\d{2,}")


def _style(palette: Palette) -> dict[Any, Any]:
    return {
        "font.family": "sans-serif",
        "font.size": 9,
        "text.color": palette.ink,
        "axes.labelcolor": palette.ink,
        "axes.edgecolor": palette.soft,
        "axes.facecolor": "none",
        "xtick.color": palette.soft,
        "ytick.color": palette.soft,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": palette.grid,
        "legend.frameon": False,
        "svg.fonttype": "none",
    }


def svg(draw: Callable[[Figure], None], height: float, width: float = 10) -> Markup:
    """Draw a figure for a page of :mod:`strongreg.experiments.page`, whose style has the colours.

    Args:
        draw: fills the empty figure, in the colours of ``LIGHT``.
        height: in inches.
        width: in inches.

    Returns:
        SVG without prolog, for use within HTML.
    """
    text = _compact(_save(draw, (width, height), LIGHT, "svg", transparent=True).decode())
    for name, color in LIGHT.names.items():
        text = text.replace(color, f"var(--{name})")
    return Markup(text)  # the rest is matplotlib's own drawing of numbers


def draw_file(
    draw: Callable[[Figure], None], height: float, width: float, palette: Palette = LIGHT, file_format: Format = "svg"
) -> bytes:
    """Draw a figure for a file of its own, on its own paper: it can be read wherever it is shown.

    Args:
        draw: fills the empty figure, in the colours of the palette.
        height: in inches.
        width: in inches.
        palette: the colours.
        file_format: of the file.

    Returns:
        The file's content; of the same figure the same bytes, with the same matplotlib.
    """
    content = _save(draw, (width, height), palette, file_format, transparent=False)
    return _compact(content.decode()).encode() if file_format == "svg" else content


def _save(
    draw: Callable[[Figure], None],
    size: tuple[float, float],
    palette: Palette,
    file_format: Format,
    *,
    transparent: bool,
) -> bytes:
    # drawings within one page must not share the names of their parts; a file is to be the same each time
    salt = {} if transparent else {"svg.hashsalt": "strongreg"}
    with mpl.rc_context(_style(palette) | salt):
        figure = Figure(figsize=size, layout="constrained", facecolor=palette.paper)
        draw(figure)
        buffer = io.BytesIO()
        metadata = _NO_METADATA if file_format == "svg" else {"Software": None}
        figure.savefig(buffer, format=file_format, metadata=metadata, transparent=transparent, dpi=_DPI)
    return buffer.getvalue()


def _compact(text: str) -> str:
    """A third of the size: without prolog, unused names and digits that nobody sees, and with the fonts said once."""
    text = re.sub(r"^.*?(?=<svg)", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*(?:; )?|(?<=<g) id=\"[^\"]*\"|(?<=\n) +", "", text)
    text = text.replace("<svg ", f'<svg font-family="{_FONTS}" ', 1)
    return _PLACES.sub(lambda found: _DIGITS.sub(_rounded, found[0]).replace("\n", ""), text)


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.1f}"


def label_ends(ax: Axes, labels: Sequence[tuple[float, str, str]], *, gap: float, x: float = 1.015) -> None:
    """Write the names of lines beside their right ends, apart from one another: no legend to look up.

    Args:
        ax: with its limits set.
        labels: of each line the height of its end, its name and its colour.
        gap: least distance of two names, in heights of the axes.
        x: where they begin, in widths of the axes.
    """
    ax.get_ylim()  # settles the limits
    place = ax.transScale + ax.transLimits
    ends = sorted((float(place.transform((1, y))[1]), i) for i, (y, _, _) in enumerate(labels) if math.isfinite(y))
    heights = [height for height, _ in ends]
    for k in range(1, len(heights)):
        heights[k] = max(heights[k], heights[k - 1] + gap)
    if heights and heights[-1] > 1:  # pushed out at the top: down again
        heights[-1] = max(1.0, ends[-1][0])
        for k in reversed(range(len(heights) - 1)):
            heights[k] = min(heights[k], heights[k + 1] - gap)
    for height, (_, i) in zip(heights, ends, strict=True):
        _, text, color = labels[i]
        ax.text(x, height, text, color=color, transform=ax.transAxes, va="center", parse_math=False)


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

    return draw_file(draw, height=3.4, width=8).decode()
