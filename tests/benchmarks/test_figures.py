"""The README's figures are those of the recorded results."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.finished import train_runs
from experiments.recipes import recipe
from strongreg.experiments.recipe import COMPARED, build_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def figures():
    return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "figures.py")))


def _jobs(runs) -> list[tuple[str, int]]:
    return [(run["method"], run["seed"]) for run in runs]


def test_the_figures_drawn_again_are_the_same_bytes(figures):
    drawn = figures.draw_all()
    assert len(drawn) == 6
    for name, content in drawn.items():
        assert (figures.FIGURES / name).read_bytes() == content, f"{name}: run python benchmarks/figures.py"
        assert len(content) < 100_000


def test_the_recorded_epochs_are_those_of_the_default_comparison_and_show_collapse_and_rescue(figures):
    runs = json.loads(figures.EPOCHS.read_text())["runs"]
    default = build_recipe({})
    assert [(run["method"], run["seed"]) for run in runs] == [
        (method, seed) for method in COMPARED for seed in range(10)
    ]
    for run in runs:
        assert len(run["accuracies"]) == default.training.epochs
        assert (run["accuracies"][-1] > 0.9) == (run["method"] != "always")
    ends = {m: [r["accuracies"][-1] for r in runs if r["method"] == m] for m in ("dense", "coherent", "always")}
    told = json.loads((ROOT / "benchmarks" / "results" / "compare-l1.json").read_text())["runs"]
    for method, accuracies in ends.items():
        expected = [run["accuracy"] for run in told if run["method"] == method]
        assert accuracies == pytest.approx(expected, abs=1e-4)


def test_what_is_told_of_them_is_what_was_recorded(figures):
    text = " ".join((ROOT / "benchmarks/README.md").read_text(encoding="utf-8").split())
    for method, name in (("coherent", "the gate"), ("delayed", "the delay")):
        runs = [run for run in json.loads(figures.EPOCHS.read_text())["runs"] if run["method"] == method]
        sizes, mean = [run["compression"] for run in runs], sum(run["accuracies"][-1] for run in runs) / len(runs)
        end = f"{name} ends at {100 * mean:.1f} % and {min(sizes):.0f} to {max(sizes):.0f} times fewer weights"
        assert end in text


def test_a_comparison_is_recorded_run_by_run(figures, tmp_path):
    train_runs(tmp_path, recipe(model="lenet300", epochs=2), ["dense", "coherent"], [1, 0])
    runs = figures.record(tmp_path)
    assert [(run["method"], run["seed"]) for run in runs] == [
        ("dense", 0),
        ("dense", 1),
        ("coherent", 0),
        ("coherent", 1),
    ]
    lines = (tmp_path / "runs" / "coherent-seed1" / "metrics.jsonl").read_text().splitlines()
    assert runs[-1]["accuracies"] == [round(json.loads(line)["accuracy"], 4) for line in lines]
