"""Draws what happened in one run: how well it does, the gate, the norms, and where its fate was decided."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from strongreg.experiments.curves import draw_gate, draw_norms
from strongreg.experiments.data.text import is_text
from strongreg.experiments.drawing import LIGHT, Format, Palette, draw_file, label_ends
from strongreg.experiments.errors import UserError
from strongreg.experiments.fate import Fate
from strongreg.experiments.recipe import METHODS, Method

Array = npt.NDArray[np.float64]
_Labels = list[tuple[float, str, str]]
_MOST_POINTS = 240  # of a line: more make a larger file and no finer line
_CLOSE = 0.05  # share of the run that is looked at closely, around the step that decided
_FEWEST_CLOSE = 40  # records
_LARGEST_CLOSE = 0.5  # share of the run: a larger part would be the same picture twice
_MOST_MARKED = 40  # epochs
_WIDTH, _WIDTH_OF_TWO = 7.0, 8.4
_HEIGHT, _HEIGHT_OF_GATE = 4.2, 1.4
_TITLE, _SUBTITLE = 11, 15  # letters per inch


@dataclass(frozen=True)
class _Window:
    """A part of the run, from step to step, and the unit in which it is told."""

    first: float
    last: float
    unit: int
    label: str

    def holds(self, step: float) -> bool:
        """Whether a step lies in it."""
        return self.first <= step <= self.last


def draw_run(
    fate: Fate, steps: tuple[int, int] | None = None, palette: Palette = LIGHT, file_format: Format = "svg"
) -> bytes:
    """Draw a run: the whole of it, and closely where its fate was decided.

    Args:
        fate: the run and its diagnosis.
        steps: first and last of those to be looked at closely; None for those around the step that the diagnosis names,
            if it names one.
        palette: the colours.
        file_format: of the file.

    Returns:
        The file's content.

    Raises:
        UserError: fewer than two of the steps are recorded.
    """
    record = fate.record
    close = _around(fate) if steps is None else _chosen(fate, steps)
    windows = [_Window(0, record.num_steps, record.steps_per_epoch, "epoch")]
    windows += [] if close is None else [_Window(*close, 1, "step")]
    width = _WIDTH if close is None else _WIDTH_OF_TWO
    height = _HEIGHT + (_HEIGHT_OF_GATE if record.strength > 0 else 0)
    story = _Story(fate, palette)
    return draw_file(lambda figure: story.draw(figure, windows, width), height, width, palette, file_format)


def _around(fate: Fate) -> tuple[float, float] | None:
    """First and last step of a closer look; None where there is no step to look at, or it would be most of the run."""
    step, num_steps, recorded = fate.diagnosis.step, fate.record.num_steps, fate.record.history.steps
    if step is None or len(recorded) < _FEWEST_CLOSE:
        return None
    length = max(_CLOSE * num_steps, _FEWEST_CLOSE * float(np.median(np.diff(recorded))))
    if length > _LARGEST_CLOSE * num_steps:
        return None
    first = min(max(step - length / 4, 0.0), num_steps - length)
    return first, first + length


def _chosen(fate: Fate, steps: tuple[int, int]) -> tuple[float, float]:
    """First and last step of a closer look at what the user named."""
    recorded, (first, last) = fate.record.history.steps, steps
    num = int(((recorded >= first) & (recorded <= last)).sum())
    if num <= 1:
        raise UserError(
            f"--steps {first}:{last}: {num} of these steps recorded; choose among those from {recorded[0]} to "
            f"{recorded[-1]}"
        )
    return float(first), float(last)


class _Story:
    """A run as rows of curves.

    Args:
        fate: the run and its diagnosis.
        palette: the colours.
    """

    def __init__(self, fate: Fate, palette: Palette) -> None:
        record, history = fate.record, fate.record.history
        self._fate, self._palette = fate, palette
        name = fate.directory.resolve().name
        self._method: Method | None = next((method for method in METHODS if name.startswith(f"{method}-seed")), None)
        self._name = name
        self._color = palette.methods[self._method or "coherent"]
        self._steps = history.steps
        self._has_penalty = record.strength > 0
        acts = self._has_penalty & (self._steps < record.refit_start)
        self._gradient, self._weight = _positive(history["gradient_norm"]), _positive(history["weight_norm"])
        self._penalty = np.where(acts, _positive(history["penalty_norm"]), math.nan)
        self._coherence = np.where(acts, history["coherence"], math.nan)
        self._opened = np.where(acts, history["open"], 0.0)

    def draw(self, figure: Figure, windows: list[_Window], width: float) -> None:
        """Fill a figure: a column for each part of the run, a row for each kind of curve."""
        rows = [self._draw_score, self._draw_gate, self._draw_norms]
        heights = [1.0, 1.0, 1.5]
        if not self._has_penalty:
            del rows[1], heights[1]
        axes = figure.subplots(
            len(rows), len(windows), sharex="col", sharey="row", squeeze=False, height_ratios=heights
        )
        for i, draw in enumerate(rows):
            labels: _Labels = []
            for ax, window in zip(axes[i], windows, strict=True):
                labels = draw(ax, window)
                ax.set_xlim(window.first / window.unit, window.last / window.unit)
                self._mark(ax, window, windows[-1])
            label_ends(axes[i, -1], labels, gap=0.16 / heights[i])
        for ax, window in zip(axes[-1], windows, strict=True):
            ax.set_xlabel(window.label)
        self._name_mark(axes[0, -1], windows[-1])
        figure.align_ylabels(axes[:, 0])
        self._entitle(figure, axes[0, 0], width)

    def _entitle(self, figure: Figure, ax: Axes, width: float) -> None:
        """The verdict above all, what was reached below it."""
        diagnosis = self._fate.diagnosis
        title = textwrap.fill(str(diagnosis).partition("\n")[0], int(_TITLE * width))
        figure.suptitle(title, x=0.012, ha="left", fontsize=11, fontweight="bold", parse_math=False)
        told = next(sentence for sentence in diagnosis.evidence if sentence.startswith("accuracy"))
        subtitle = textwrap.fill(f"{self._name}: {told}", int(_SUBTITLE * width))
        ax.set_title(subtitle, loc="left", fontsize=9, color=self._palette.soft, parse_math=False)

    def _mark(self, ax: Axes, window: _Window, closest: _Window) -> None:
        """The step that decided, and which part is looked at closely."""
        step = self._fate.diagnosis.step
        if step is not None and window.holds(step):
            ax.axvline(step / window.unit, color=self._palette.ink, linewidth=1, linestyle=(0, (4, 2)))
        if window is not closest:
            ends = closest.first / window.unit, closest.last / window.unit
            ax.axvspan(*ends, color=self._palette.soft, alpha=0.15, linewidth=0)

    def _name_mark(self, ax: Axes, window: _Window) -> None:
        """The number of the step that decided, beside its line, on the side where there is room."""
        step = self._fate.diagnosis.step
        if step is None or not window.holds(step):
            return
        is_left = step < (window.first + window.last) / 2
        ax.annotate(
            f"step {step:,}",
            (step / window.unit, 0.5),
            xycoords=("data", "axes fraction"),
            xytext=(4 if is_left else -4, 0),
            textcoords="offset points",
            ha="left" if is_left else "right",
            fontweight="bold",
        )

    # ------------------------------------------------------------------ rows; each says what its lines are called

    def _draw_score(self, ax: Axes, window: _Window) -> _Labels:
        """Accuracy after each epoch; of a text the loss."""
        record, recipe = self._fate.record, self._fate.recipe
        of_text = recipe is not None and is_text(recipe.data.name)
        losses = [epoch.train_loss if epoch.loss is None else epoch.loss for epoch in self._fate.epochs]
        score = np.array([math.nan if loss is None else loss for loss in losses]) if of_text else 100 * record.accuracy
        ends = np.arange(1, len(score) + 1) * record.steps_per_epoch
        shown = (ends >= window.first) & (ends <= window.last)
        marker = "o" if shown.sum() <= _MOST_MARKED else ""
        ax.plot(ends[shown] / window.unit, score[shown], color=self._color, marker=marker, markersize=3)
        name = "loss" if of_text else "accuracy"
        if window.first == 0 and window.unit > 1:
            ax.set_ylabel("loss (nats per byte)" if of_text else "accuracy (%)")
        labels = [(float(score[shown][-1]), name, self._color)] if shown.any() else []
        if of_text:
            return labels
        chance = 100 * record.chance
        ax.axhline(chance, color=self._palette.soft, linewidth=1, linestyle=":")
        ax.set_ylim(0, 104)
        return [*labels, (chance, "by chance", self._palette.soft)]

    def _draw_gate(self, ax: Axes, window: _Window) -> _Labels:
        """Coherence and share of open steps."""
        recipe = self._fate.recipe
        threshold = recipe.gate.threshold if recipe is not None and self._method == "coherent" else None
        x, coherence, opened = self._thinned(window, self._coherence, self._opened)
        draw_gate(ax, x, coherence, opened, self._color, threshold, self._palette)
        off = self._fate.record.refit_start
        if window.unit > 1:
            ax.set_ylabel("gate")
        if window.unit > 1 and off < window.last:
            ax.text((off + window.last) / 2 / window.unit, 0.5, "penalty off", color=self._palette.soft, ha="center")
        labels = [(_last(coherence), "coherence", self._palette.methods["dense"]), (0.05, "gate open", self._color)]
        return labels if threshold is None else [*labels, (threshold, f"threshold {threshold:g}", self._color)]

    def _draw_norms(self, ax: Axes, window: _Window) -> _Labels:
        """Norms of loss gradient, penalty and weights."""
        x, *norms = self._thinned(window, self._gradient, self._penalty, self._weight)
        gradient, penalty, weight = norms
        draw_norms(ax, x, gradient, penalty, weight, self._palette)
        if window.unit > 1:
            ax.set_ylabel("norm")
        names = ("loss gradient", "penalty gradient", "weights")
        colors = (self._palette.methods[method] for method in ("coherent", "always", "dense"))
        return [(_last(norm), name, color) for norm, name, color in zip(norms, names, colors, strict=True)]

    def _thinned(self, window: _Window, *series: Array) -> list[Array]:
        """Places on the axis and values there: at most so many, each the mean of as many records."""
        inside = (self._steps >= window.first) & (self._steps <= window.last)
        every = max(1, math.ceil(inside.sum() / _MOST_POINTS))
        return [_means(values[inside], every) for values in (self._steps / window.unit, *series)]


def _positive(norms: npt.NDArray[np.float32]) -> Array:
    """What a logarithmic axis has a place for."""
    return np.where(np.isfinite(norms) & (norms > 0), norms, math.nan).astype(np.float64)


def _means(values: Array, every: int) -> Array:
    """The mean of each so many of them, of those that are numbers."""
    parts = [values[i : i + every] for i in range(0, len(values), every)]
    return np.array([part[known].mean() if (known := ~np.isnan(part)).any() else math.nan for part in parts])


def _last(values: Array) -> float:
    """The last one that is a number; NaN if none is."""
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else math.nan
