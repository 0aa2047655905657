"""Draws any finished runs together as one self-contained HTML file: accuracy against size, curves, layers, verdicts."""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.torch import load_file

import strongreg
from strongreg.diagnosis import Diagnosis
from strongreg.experiments.drawing import COLORS, LIGHT, svg
from strongreg.experiments.engine import EpochMetrics, RunResult, load_history, load_metrics, load_result
from strongreg.experiments.engine.record import HISTORY_FILE, METRICS_FILE, RECIPE_FILE, RESULT_FILE, WEIGHTS_FILE
from strongreg.experiments.errors import UserError
from strongreg.experiments.fate import diagnose_run
from strongreg.experiments.page import render_page
from strongreg.files import write_bytes
from strongreg.sweeps.result import undominated

_MOST_LAYERS = 40
_FEWEST_OF_A_FRONT = 2
_ROOM = 3.0


@dataclass(frozen=True)
class _Run:
    name: str
    result: RunResult
    metrics: list[EpochMetrics]
    layers: list[tuple[str, float]]
    """Each penalized tensor, from input to output, with the share of its weights that is kept."""
    diagnosis: Diagnosis
    recipe: str

    @property
    def color(self) -> str:
        """That of its method."""
        return COLORS[self.result.method]

    @property
    def num_asked(self) -> int:
        """Epochs that its recipe asks for; those that it has where the recipe does not say."""
        try:
            asked = tomllib.loads(self.recipe)["training"]["epochs"]
        except (tomllib.TOMLDecodeError, KeyError, TypeError):
            return self.result.epochs
        return asked if isinstance(asked, int) else self.result.epochs

    @property
    def is_stopped(self) -> bool:
        """Whether it was ended as dead."""
        return self.result.epochs < self.num_asked

    @property
    def compression(self) -> float:
        """How many times smaller; infinite if nothing is left."""
        return math.inf if self.result.compression is None else self.result.compression


def write_gallery(directories: list[Path], file: Path) -> None:
    """Write a page of runs.

    Args:
        directories: of finished runs, at least one.
        file: where to write.

    Raises:
        UserError: a run's file is missing or damaged.
        OSError: the page cannot be written.
    """
    runs = [_read(directory, name) for directory, name in _names(directories).items()]
    recipes: dict[str, list[str]] = {}
    for run in runs:
        recipes.setdefault(run.recipe, []).append(run.name)
    page = render_page(
        "gallery.html.j2",
        title=f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}",
        version=strongreg.__version__,
        runs=runs,
        front=pareto_front(runs),
        stopped=", ".join(f"{r.name} after epoch {r.result.epochs} of {r.num_asked}" for r in runs if r.is_stopped),
        figures=[
            ("Accuracy against size", svg(lambda figure: _draw_front(figure, runs), 3.6), _FRONT_CAPTION),
            ("Over the epochs", svg(lambda figure: _draw_curves(figure, runs), 3.2), _CURVES_CAPTION),
            ("Weights kept in each layer", _layers(runs), _LAYERS_CAPTION),
        ],
        recipes=[(", ".join(names), recipe) for recipe, names in recipes.items()],
    )
    write_bytes(file, page)


_FRONT_CAPTION = (
    "Each run is a point: test accuracy after the last epoch against penalized weights / weights that are not 0. The "
    "line joins the runs that no other beats. Runs at chance are crosses, drawn at most 3 times further right than the "
    "smallest network that lives."
)
_CURVES_CAPTION = "Accuracy on the validation images (the test images where none were held out), and the weights left."
_LAYERS_CAPTION = f"Share of the weights that are not 0, from input to output; the first {_MOST_LAYERS} layers at most."


def pareto_front(runs: list[_Run]) -> list[_Run]:
    """The living runs that no other beats: at least as small, at least as accurate, and better in one of the two.

    Args:
        runs: any.

    Returns:
        The undominated ones, from the largest to the smallest network; equals stand side by side.
    """
    alive = [run for run in runs if run.result.alive]
    front = [alive[i] for i in undominated([(run.compression, run.result.accuracy) for run in alive])]
    return sorted(front, key=lambda run: (run.compression, -run.result.accuracy))


def _names(directories: list[Path]) -> dict[Path, str]:
    """Each directory once, with its name and its study's; its path where another one is called the same."""
    names: dict[Path, str] = {}
    for resolved, directory in {directory.resolve(): directory for directory in reversed(directories)}.items():
        parent = resolved.parents[1] if resolved.parent.name == "runs" else resolved.parent
        names[directory] = f"{parent.name}/{resolved.name}"
    taken = Counter(names.values())
    return {path: name if taken[name] == 1 else str(path) for path, name in reversed(names.items())}


def _read(directory: Path, name: str) -> _Run:
    result = load_result(directory / RESULT_FILE)
    metrics = load_metrics(directory / METRICS_FILE, result.epochs)
    order = load_history(directory / HISTORY_FILE).layers  # the model's; safetensors sorts by name
    file = directory / WEIGHTS_FILE
    try:
        weights = load_file(file)
        file = directory / RECIPE_FILE
        recipe = file.read_text(encoding="utf-8")
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{file} is missing or damaged: train that run again") from error
    layers = [(layer, float((weights[layer] != 0).float().mean())) for layer in order if layer in weights]
    return _Run(name, result, metrics, layers, diagnose_run(directory), recipe)


def _draw_front(figure: Figure, runs: list[_Run]) -> None:
    ax = figure.subplots()
    seen: set[str] = set()
    largest = max((r.compression for r in runs if math.isfinite(r.compression) and r.result.alive), default=1.0)

    def place(run: _Run) -> tuple[float, float]:
        """Not beyond what leaves room for the others: nothing left would lie at infinity."""
        return min(run.compression, _ROOM * largest), 100 * run.result.accuracy

    for run in runs:
        label = run.result.method if run.result.method not in seen else None
        seen.add(run.result.method)
        ax.plot(*place(run), "o" if run.result.alive else "x", color=run.color, label=label, markersize=6)
    front = pareto_front(runs)
    if len(front) >= _FEWEST_OF_A_FRONT:
        x, y = zip(*map(place, front), strict=True)
        ax.plot(x, y, color=LIGHT.ink, linewidth=1, linestyle="--", zorder=0)
    ax.set(xscale="log", xlabel="times smaller", ylabel="test accuracy (%)")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_curves(figure: Figure, runs: list[_Run]) -> None:
    left, right = figure.subplots(1, 2)
    for run in runs:
        epochs = [line.epoch for line in run.metrics]
        style = {"color": run.color, "linewidth": 1.1, "alpha": 0.8}
        left.plot(epochs, [100 * line.accuracy for line in run.metrics], **style)
        right.plot(epochs, [max(line.num_nonzero, 0.5) for line in run.metrics], **style)
    left.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, 101))
    right.set(xlabel="epoch", ylabel="weights that are not 0", yscale="log")


def _layers(runs: list[_Run]) -> Markup:
    def draw(figure: Figure) -> None:
        ax: Axes = figure.subplots()
        for run in runs:
            shares = [max(share, 1e-5) for _, share in run.layers[:_MOST_LAYERS]]
            ax.plot(range(len(shares)), shares, "o-", color=run.color, linewidth=0.8, markersize=3, alpha=0.8)
        names = max((run.layers[:_MOST_LAYERS] for run in runs), key=len, default=[])
        same = all([n for n, _ in run.layers[: len(names)]] == [n for n, _ in names] for run in runs)
        ax.set(yscale="log", ylabel="share of weights kept")
        labels = [name if same else str(i) for i, (name, _) in enumerate(names)]
        ax.set_xticks(range(len(names)), labels, rotation=60, parse_math=False)  # a name may hold a $
        ax.tick_params(axis="x", labelsize=7)

    return svg(draw, 3.4)
