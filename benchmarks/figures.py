"""Draws the README's figures from the recorded results, for light and for dark pages.

    python benchmarks/figures.py
    strongreg compare --seeds 10 --out ten && python benchmarks/figures.py --record ten

The second form records the accuracy after each epoch of a comparison before it draws. Writes collapse-and-rescue,
accuracy-and-size and weight-decay, each as NAME-light.svg and NAME-dark.svg, into docs/figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from strongreg.experiments.drawing import DARK, LIGHT, Palette, draw_file, label_ends
from strongreg.experiments.engine import load_metrics, load_result
from strongreg.experiments.engine.record import METRICS_FILE, RESULT_FILE
from strongreg.experiments.errors import UserError
from strongreg.experiments.fate import find_runs
from strongreg.experiments.recipe import COMPARED, Method

RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).parents[1] / "docs" / "figures"
EPOCHS = RESULTS / "compare-l1-epochs.json"
PALETTES = {"light": LIGHT, "dark": DARK}
Run = dict[str, Any]


def main() -> int:
    """Record what was asked for, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, metavar="FOLDER", help="of a comparison with its runs")
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder to write to")
    arguments = parser.parse_args()
    try:
        if arguments.record is not None:
            EPOCHS.write_text(_lines(record(arguments.record)), encoding="utf-8")
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, content in draw_all().items():
            (arguments.out / name).write_bytes(content)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def record(folder: Path) -> list[Run]:
    """Outcome of each run of a comparison, and its accuracy on the test images after each epoch.

    Raises:
        UserError: there are none, or a file is damaged.
    """
    runs = []
    for directory in find_runs(folder):
        result = load_result(directory / RESULT_FILE)
        accuracies = [epoch.accuracy for epoch in load_metrics(directory / METRICS_FILE, result.epochs)]
        about = {"method": result.method, "seed": result.seed, "compression": result.compression}
        about |= {"refit_start": result.refit_start, "steps_per_epoch": result.steps_per_epoch, "chance": result.chance}
        runs.append({**about, "accuracies": [round(accuracy, 4) for accuracy in accuracies]})
    return sorted(runs, key=lambda run: (COMPARED.index(run["method"]), run["seed"]))


def _lines(runs: Sequence[Run]) -> str:
    """A run a line."""
    return '{"runs": [\n' + ",\n".join(json.dumps(run) for run in runs) + "\n]}\n"


def draw_all() -> dict[str, bytes]:
    """Every figure.

    Returns:
        Name of the file and its content.
    """
    figures = {
        "collapse-and-rescue": _collapse_and_rescue,
        "accuracy-and-size": _accuracy_and_size,
        "weight-decay": _weight_decay,
    }
    return {f"{name}-{mode}.svg": draw(palette) for name, draw in figures.items() for mode, palette in PALETTES.items()}


def _recorded(file: Path) -> list[Run]:
    runs: list[Run] = json.loads(file.read_text(encoding="utf-8"))["runs"]
    return runs


# ---------------------------------------------------------------------- collapse and rescue

_NAMES: dict[Method, str] = {
    "dense": "dense: no penalty",
    "always": "always on: dead",
    "delayed": "delayed",
    "coherent": "coherent: with the gate",
}


def _collapse_and_rescue(palette: Palette) -> bytes:
    """Test accuracy over the epochs: a thin line for each seed, a thick one for their mean."""
    runs = _recorded(EPOCHS)

    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ends = []
        for method in COMPARED:
            curves = [[100 * a for a in run["accuracies"]] for run in runs if run["method"] == method]
            color, epochs = palette.methods[method], range(1, len(curves[0]) + 1)
            mean = [statistics.fmean(values) for values in zip(*curves, strict=True)]
            for curve in curves:
                ax.plot(epochs, curve, color=color, linewidth=0.5, alpha=0.35)
            ax.plot(epochs, mean, color=color, linewidth=1.8)
            ends.append((mean[-1], _NAMES[method], color))
        run = next(run for run in runs if run["method"] == "coherent")
        refit = run["refit_start"] / run["steps_per_epoch"]
        ax.axvspan(0, refit, color=palette.soft, alpha=0.1, linewidth=0)
        for x, text in (
            (refit / 2, "the penalty shrinks"),
            (1.5 * refit, "the penalty is off: what is left is refitted"),
        ):
            ax.text(x, 50, text, color=palette.soft, ha="center", fontsize=8)
        ax.set(xlim=(0, len(run["accuracies"])), ylim=(0, 102), xlabel="epoch", ylabel="test accuracy (%)")
        label_ends(ax, ends, gap=0.075)

    return draw_file(draw, height=3.0, width=8, palette=palette)


# ---------------------------------------------------------------------- accuracy and size

_SERIES: dict[tuple[Method, str], tuple[str, str, str]] = {  # name, marker and line
    ("magnitude", "l1"): ("magnitude pruning", "s", "-"),
    ("coherent", "mcp"): ("MCP, gate", "D", "-"),
    ("coherent", "l1"): ("L1, gate", "o", "--"),
    ("delayed", "l1"): ("L1, delayed", "^", "--"),
    ("always", "l1"): ("L1, always on", "v", "--"),
}
_PANELS = {"fashion_mnist": ("Fashion-MNIST", 80, 90), "cifar10": ("CIFAR-10", 28, 58)}
_TICKS = (10, 20, 50, 100, 200)
_SMALLEST, _LARGEST = 7, 300
_LABELS: dict[tuple[str, str], tuple[float, float]] = {  # where there is room, as times smaller and accuracy in %
    ("fashion_mnist", "magnitude pruning"): (22.5, 88.3),
    ("fashion_mnist", "MCP, gate"): (23, 87.6),
    ("fashion_mnist", "L1, gate"): (60, 85.35),
    ("fashion_mnist", "L1, delayed"): (42, 83.1),
    ("fashion_mnist", "L1, always on"): (8, 85.6),
    ("cifar10", "magnitude pruning"): (22.5, 50.9),
    ("cifar10", "MCP, gate"): (22.5, 48.3),
    ("cifar10", "L1, gate"): (33, 41.5),
    ("cifar10", "L1, delayed"): (58, 36.6),
    ("cifar10", "L1, always on"): (9, 33.5),
}


def _accuracy_and_size(palette: Palette) -> bytes:
    """Test accuracy against times smaller: every seed of what the scaled study chose on validation, and their mean."""
    runs = [run for run in _recorded(RESULTS / "scaled-study.json") if run["penalty"] != "l2"]

    def draw(figure: Figure) -> None:
        for ax, (data, (title, lowest, highest)) in zip(figure.subplots(1, 2), _PANELS.items(), strict=True):
            ax.set(xscale="log", xlim=(_SMALLEST, _LARGEST), ylim=(lowest, highest), xlabel="times smaller")
            ax.set_title(title, loc="left", fontweight="bold")
            ax.set_xticks(_TICKS, map(str, _TICKS))
            ax.minorticks_off()
            mine = [run for run in runs if run["data"] == data]
            _draw_dense(ax, [100 * run["accuracy"] for run in mine if run["method"] == "dense"], palette, _LARGEST)
            for series in _SERIES:
                _draw_series(ax, data, series, [r for r in mine if (r["method"], r["penalty"]) == series], palette)
        figure.axes[0].set_ylabel("test accuracy (%)")

    return draw_file(draw, height=3.7, width=9, palette=palette)


def _draw_dense(ax: Axes, values: list[float], palette: Palette, x: float) -> None:
    """A line for the mean of the seeds, a band for their range, and the name at x."""
    color, mean = palette.methods["dense"], statistics.fmean(values)
    ax.axhspan(min(values), max(values), color=color, alpha=0.15, linewidth=0)
    ax.axhline(mean, color=color, linewidth=1)
    ax.annotate("dense", (x, mean), (-2, 4), textcoords="offset points", ha="right", color=color)


def _draw_series(ax: Axes, data: str, series: tuple[Method, str], runs: list[Run], palette: Palette) -> None:
    """A small mark for each seed that lives, a large one for the mean where all do, a cross for each that died."""
    (name, marker, line), color = _SERIES[series], palette.methods[series[0]]
    settings: dict[str, list[Run]] = {}
    for run in runs:
        settings.setdefault(json.dumps(run["setting"]), []).append(run)
    means = []
    for group in settings.values():
        places = [(run["compression"], 100 * run["accuracy"]) for run in group if run["alive"]]
        ax.plot(*_columns(places), marker, color=color, markersize=3, alpha=0.5)
        if len(places) == len(group):
            x, y = _columns(places)
            means.append((statistics.geometric_mean(x), statistics.fmean(y)))
    ax.plot(*_columns(sorted(means)), line, marker=marker, color=color, markersize=6, linewidth=1.3)
    ax.text(*_LABELS[data, name], name, color=color, va="center")
    dead = [run for run in runs if not run["alive"]]
    if dead:
        x = [min(run["compression"], _LARGEST) for run in dead]
        lowest, highest = ax.get_ylim()
        y = lowest + 0.04 * (highest - lowest)
        ax.plot(x, [y] * len(x), "x", color=color, markersize=6, clip_on=False)
        ax.text(
            min(x) / 1.08, y, f"{name}: {len(dead)} of {len(runs)} dead, at 10 %", color=color, ha="right", va="center"
        )


def _columns(places: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in places], [y for _, y in places]


# ---------------------------------------------------------------------- weight decay of a language model

_DECAYED: dict[Method, tuple[str, str, tuple[float, float]]] = {  # name, marker, and where there is room for the name
    "always": ("always on", "v", (7, 2.55)),
    "delayed": ("delayed", "^", (4.6, 2.29)),
    "coherent": ("with the gate", "o", (9, 2.15)),
}
_LOSSES = {"loss": "after the last epoch, test text", "best_validation_loss": "at the best epoch, validation text"}


def _weight_decay(palette: Palette) -> bytes:
    """Loss against the strength of the decay: a small mark for each seed, a large one for their mean."""
    runs = _recorded(RESULTS / "weight-decay.json")
    strengths = sorted({run["strength"] for run in runs if run["strength"] > 0})

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        for ax, (key, title) in zip(axes, _LOSSES.items(), strict=True):
            ax.set(xscale="log", xlabel="weight decay")
            ax.set_title(title, loc="left", fontweight="bold")
            ax.set_xticks(strengths, [f"{strength:g}" for strength in strengths])
            ax.minorticks_off()
            _draw_dense(ax, [run[key] for run in runs if run["method"] == "dense"], palette, 3)
            for method, (name, marker, place) in _DECAYED.items():
                color, mine = palette.methods[method], [run for run in runs if run["method"] == method]
                ax.plot(
                    *_columns([(run["strength"], run[key]) for run in mine]),
                    marker,
                    color=color,
                    markersize=3,
                    alpha=0.4,
                )
                means = [(x, statistics.fmean(run[key] for run in mine if run["strength"] == x)) for x in strengths]
                ax.plot(*_columns(means), marker=marker, color=color, markersize=6, linewidth=1.3)
                if key == "best_validation_loss":
                    ax.text(*place, name, color=color)
        axes[0].set_ylabel("nats per byte")

    return draw_file(draw, height=3.3, width=9, palette=palette)


if __name__ == "__main__":
    sys.exit(main())
