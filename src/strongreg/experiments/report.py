"""Draws a comparison as one self-contained HTML file: why one run died and another lived."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import strongreg
from strongreg.experiments.compare import Comparison, Job
from strongreg.experiments.curves import draw_gate, draw_norms
from strongreg.experiments.data.text import is_text
from strongreg.experiments.drawing import COLORS, svg
from strongreg.experiments.engine import EpochMetrics
from strongreg.experiments.page import render_page
from strongreg.experiments.recipe import METHODS, Method, Recipe, show_recipe
from strongreg.experiments.table import BYTE_HEADER, byte_cells, show_rows, stopped_note, summarize
from strongreg.files import write_bytes

Curves = dict[Job, list[EpochMetrics]]


@dataclass(frozen=True)
class _Drawing:
    title: str
    svg: Markup
    caption: str


def write_report(comparison: Comparison, file: Path) -> None:
    """Write report.html.

    Args:
        comparison: at least one of its runs is finished.
        file: where to write.

    Raises:
        OSError: the file cannot be written.
    """
    results = comparison.finished_results
    recipe = comparison.recipe
    curves = {Job(r.method, r.seed): comparison.metrics(Job(r.method, r.seed)) for r in results}
    summaries = summarize(results)
    header, rows = show_rows(summaries)
    num_seeds = len({r.seed for r in results})
    seeds = "1 seed" if num_seeds == 1 else f"{num_seeds} seeds"
    penalty = f"{recipe.penalty.name} of strength {recipe.penalty.strength:g}"
    page = render_page(
        "report.html.j2",
        title=f"{recipe.model.name} on {recipe.data.name}: {', '.join(s.method for s in summaries)}",
        subtitle=f"{penalty}, {recipe.training.epochs} epochs, {seeds}; strongreg {strongreg.__version__}",
        header=[*header, *BYTE_HEADER],
        rows=[
            {"cells": [*row, *byte_cells(s)], "dead": s.num_alive == 0} for row, s in zip(rows, summaries, strict=True)
        ],
        several_seeds=num_seeds > 1,
        stopped_note=stopped_note(results, recipe),
        figures=_draw(curves, recipe),
        runs=results,
        recipe=show_recipe(recipe),
    )
    write_bytes(file, page)


def _draw(curves: Curves, recipe: Recipe) -> list[_Drawing]:
    split = "validation" if recipe.data.validation_share > 0 else "test"
    of_text = is_text(recipe.data.name)
    first = {job.method: metrics for job, metrics in reversed(curves.items())}  # each method's first seed
    return [
        _Drawing(
            "Loss and weights kept" if of_text else "Accuracy and weights kept",
            svg(lambda figure: _draw_outcome(figure, curves, split, of_text=of_text), height=3.2),
            "Every seed is a line. A collapsed network gives one answer to everything: "
            + ("its loss stays that of the commonest bytes." if of_text else "its accuracy stays at chance."),
        ),
        _Drawing(
            "Loss gradient against penalty gradient",
            svg(lambda figure: _draw_per_method(figure, first, _draw_norms, share_y=True), height=2.9),
            "Mean norms per epoch, each method's first seed. Where the penalty's gradient stays far above the "
            "loss's, the penalty alone "
            "steers the weights to 0. The gap of the dashed line ends the penalty: from there on zeros are frozen and "
            "the kept weights are refitted.",
        ),
        _Drawing(
            "Coherence and gate",
            svg(
                lambda figure: _draw_per_method(figure, first, _gate_drawer(recipe.gate.threshold), share_y=True),
                height=2.9,
            ),
            "Coherence is the cosine between the loss gradient and the regularized gradient (mean per epoch). "
            "The coloured "
            "area is the share of the epoch's steps at which the gate was open and the penalty acted; the "
            "dotted line is "
            "the threshold of the coherence gate.",
        ),
    ]


def _draw_outcome(figure: Figure, curves: Curves, split: str, *, of_text: bool) -> None:
    left, right = figure.subplots(1, 2)
    for job, metrics in curves.items():
        epochs = [m.epoch for m in metrics]
        first_of_method = next(other for other in curves if other.method == job.method) == job
        label = job.method if first_of_method else None
        left.plot(
            epochs,
            [math.nan if m.loss is None else m.loss for m in metrics]
            if of_text
            else [100 * m.accuracy for m in metrics],
            color=COLORS[job.method],
            label=label,
            linewidth=1.2,
            alpha=0.85,
        )
        right.plot(
            epochs, [max(m.num_nonzero, 0.5) for m in metrics], color=COLORS[job.method], linewidth=1.2, alpha=0.85
        )
    left.set(xlabel="epoch", ylabel=f"{split} {'loss (nats per byte)' if of_text else 'accuracy (%)'}")
    if not of_text:
        left.set_ylim(0, 101)
    left.legend(loc="upper right" if of_text else "center right")
    right.set(xlabel="epoch", ylabel="weights that are not 0", yscale="log")


def _draw_per_method(
    figure: Figure,
    curves: dict[Method, list[EpochMetrics]],
    draw: Callable[[Axes, Method, list[EpochMetrics]], None],
    *,
    share_y: bool,
) -> None:
    methods = [method for method in METHODS if method in curves]
    axes = figure.subplots(1, len(methods), sharey=share_y, squeeze=False)[0]
    for ax, method in zip(axes, methods, strict=True):
        draw(ax, method, curves[method])
        ax.set_title(method, color=COLORS[method], loc="left", fontweight="bold")
        ax.set_xlabel("epoch")
    axes[0].legend(loc="best")


def _draw_norms(ax: Axes, method: Method, metrics: list[EpochMetrics]) -> None:
    del method
    gradient = [m.gradient_norm or math.nan for m in metrics]
    draw_norms(ax, [m.epoch for m in metrics], gradient, [m.penalty_norm or math.nan for m in metrics])


def _gate_drawer(threshold: float) -> Callable[[Axes, Method, list[EpochMetrics]], None]:
    def draw(ax: Axes, method: Method, metrics: list[EpochMetrics]) -> None:
        coherence = [math.nan if m.coherence is None else m.coherence for m in metrics]
        opened = [math.nan if m.open_fraction is None else m.open_fraction for m in metrics]
        shown = threshold if method == "coherent" else None
        draw_gate(ax, [m.epoch for m in metrics], coherence, opened, COLORS[method], shown)

    return draw
