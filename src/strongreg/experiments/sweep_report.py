"""Draws a sweep as one self-contained HTML file: the Pareto front of accuracy and compression, and every trial."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

import strongreg
from strongreg.experiments.drawing import COLORS, LIGHT, svg
from strongreg.experiments.page import render_page
from strongreg.experiments.recipe import Method, show_recipe
from strongreg.experiments.sweep import Sweep
from strongreg.experiments.sweep_table import TRIAL_HEADER, TRIAL_NOTE, trial_cells
from strongreg.files import write_bytes
from strongreg.sweeps import SearchResult, SearchTrial

_FRONT_CAPTION = (
    "Each living trial is a point: validation accuracy against penalized weights / weights that are not 0. The dashed "
    "line joins the trials that no other beats; the ring is the chosen one."
)
_STRENGTH_CAPTION = (
    "The same trials by strength: where accuracy begins to fall, and how much smaller the network is there. Crosses "
    "are trials whose network died; they were ended early."
)


def write_sweep_report(sweep: Sweep, found: SearchResult, chosen: SearchTrial | None, file: Path) -> None:
    """Write report.html.

    Args:
        sweep: the sweep.
        found: its finished trials, at least one.
        chosen: the one that was chosen; None if none lives.
        file: where to write.

    Raises:
        OSError: the file cannot be written.
    """
    recipe = sweep.recipe
    by_compression = [*reversed(found.front)]

    def rows(trials: list[SearchTrial]) -> list[dict[str, object]]:
        return [
            {"cells": trial_cells(trial, found, chosen), "dead": trial.is_dead, "chosen": trial == chosen}
            for trial in trials
        ]

    num_seeds = len(sweep.seeds)
    page = render_page(
        "sweep.html.j2",
        title=f"{recipe.model.name} on {recipe.data.name}: {sweep.method}, {len(found.trials)} strengths",
        subtitle=f"{recipe.penalty.name} of strength {sweep.range.lowest:g} to {sweep.range.highest:g}, "
        f"{recipe.training.epochs} epochs, {num_seeds} {'seed' if num_seeds == 1 else 'seeds'} a trial; study "
        f"{sweep.study_name} in {sweep.storage}; strongreg {strongreg.__version__}",
        header=TRIAL_HEADER,
        front=rows(by_compression),
        trials=rows(list(found.trials)),
        num_dead=sum(trial.is_dead for trial in found.trials),
        chosen=chosen,
        note=TRIAL_NOTE,
        figures=[
            ("Pareto front", svg(lambda figure: _draw_front(figure, found, chosen, sweep.method), 3.6), _FRONT_CAPTION),
            ("By strength", svg(lambda figure: _draw_strengths(figure, found, sweep.method), 3.2), _STRENGTH_CAPTION),
        ],
        recipe=show_recipe(recipe),
    )
    write_bytes(file, page)


def _draw_front(figure: Figure, found: SearchResult, chosen: SearchTrial | None, method: Method) -> None:
    ax = figure.subplots()
    alive = [trial for trial in found.trials if not trial.is_dead]
    ax.plot(*_places(alive), "o", color=COLORS[method], label="trial", markersize=5)
    ax.plot(*_places(found.front), color=LIGHT.ink, linewidth=1, linestyle="--", label="front", zorder=0)
    if chosen is not None:
        ax.plot(*_places([chosen]), "o", color=LIGHT.ink, markersize=11, fillstyle="none", label="chosen")
    ax.set(xscale="log" if alive else "linear", xlabel="times smaller", ylabel="validation accuracy (%)")
    _show_plain_numbers(ax.xaxis)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _places(trials: tuple[SearchTrial, ...] | list[SearchTrial]) -> tuple[list[float], list[float]]:
    return [trial.compression for trial in trials], [100 * trial.accuracy for trial in trials]


def _draw_strengths(figure: Figure, found: SearchResult, method: Method) -> None:
    left, right = figure.subplots(1, 2, sharex=True)
    alive = [trial for trial in found.trials if not trial.is_dead]
    dead = [trial for trial in found.trials if trial.is_dead]
    left.plot([t.strength for t in alive], [100 * t.accuracy for t in alive], "o", color=COLORS[method], markersize=4)
    reached = [100 * sum(t.details["accuracies"]) / len(t.details["accuracies"]) for t in dead]
    left.plot([t.strength for t in dead], reached, "x", color=COLORS["always"], markersize=5, label="died")
    left.set(xscale="log", xlabel="strength", ylabel="validation accuracy (%)", ylim=(0, 101))
    if dead:
        left.legend(loc="center left")
    right.plot([t.strength for t in alive], [t.compression for t in alive], "o", color=COLORS[method], markersize=4)
    scale = "log" if alive else "linear"  # the first has no place for nothing
    right.set(yscale=scale, xlabel="strength", ylabel="times smaller")
    _show_plain_numbers(right.yaxis)


def _show_plain_numbers(axis: Axis) -> None:
    """Such as 2 and 5 on a logarithmic axis, instead of powers of 10."""
    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter())
