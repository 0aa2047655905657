"""The scaled study: equal budgets, a choice on validation only, and a small run from end to end."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "scaled_study.py"
DATA = Path(os.environ.get("STRONGREG_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="module")
def study():
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@pytest.mark.parametrize("data", ["fashion_mnist", "cifar10"])
@pytest.mark.parametrize("penalty", ["l1", "mcp", "l2"])
def test_every_method_has_the_same_number_of_settings(study, penalty, data):
    methods = ("dense", "always", "delayed", "coherent")
    assert {len(study.settings_of(method, penalty, data)) for method in methods} == {4}
    magnitude = study.settings_of("magnitude", penalty, data)
    assert {sum(s["pruning.compression"] == target for s in magnitude) for target in study.TARGETS} == {4}


def _result(validation, compression, *, alive=True):
    return SimpleNamespace(
        validation_accuracy=validation, compression=compression, alive=alive, accuracy=1 - validation
    )


def test_the_choice_is_the_best_on_validation_of_those_small_enough_and_never_looks_at_the_test(study):
    settings = [{"a": i} for i in range(5)]
    results = [
        _result(0.9, 2.0),
        _result(0.8, 10.0),
        _result(0.85, 9.6),
        _result(0.95, 50.0, alive=False),
        _result(0.7, None),
    ]
    assert study.choose(settings, results, 10.0) == {"a": 2}
    assert study.choose(settings, results, 1.0) == {"a": 0}
    assert study.choose(settings, results, 20.0) is None


def test_the_deadly_setting_is_the_largest_strength_if_it_killed(study):
    settings = [{"penalty.strength": strength} for strength in (0.3, 0.1, 0.2)]
    fates = [_result(0.1, None, alive=False), _result(0.1, 50.0, alive=False), _result(0.9, 2.0)]
    assert study.deadly(settings, fates) == {"penalty.strength": 0.3}
    assert study.deadly(settings, [_result(0.9, 2.0), *fates[1:]]) is None


def test_a_run_that_two_rows_show_is_one_entry(study):
    run = {"data": "d", "method": "coherent", "seed": 0, "setting": {"a": 1.0}}
    entries = [{**run, "asked": ["10x"]}, {**run, "seed": 1, "asked": ["10x"]}, {**run, "asked": ["20x"]}]
    found = study.merged(entries)
    assert [(entry["seed"], entry["asked"]) for entry in found] == [(0, ["10x", "20x"]), (1, ["10x"])]


@pytest.mark.slow
@pytest.mark.skipif(
    not (DATA / "fashion_mnist").is_dir(), reason="Fashion-MNIST lies neither in $STRONGREG_DATA nor beside the project"
)
def test_a_small_study_runs_and_goes_on(tmp_path):
    command = [
        sys.executable,
        str(SCRIPT),
        "--out",
        "out",
        "--data",
        "fashion_mnist",
        "--penalty",
        "l2",
        "--seeds",
        "1",
    ]
    command += ["--workers", "1", "--json", "study.json", "--data-dir", str(DATA), "--set", "training.epochs=1"]
    command += ["--set", "data.num_train=64", "--set", "data.validation_share=0.002", "--set", "model.name=lenet300"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| fashion_mnist")]
    assert [row.split(" | ")[3] for row in rows[:3]] == ["always", "delayed", "coherent"]
    runs = json.loads((tmp_path / "study.json").read_text())["runs"]
    assert {run["method"] for run in runs} <= {"always", "delayed", "coherent"}
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert again.stderr == ""
    assert again.stdout == done.stdout
    other = subprocess.run(
        [*command, "--set", "optimizer.lr=0.01"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert other.returncode == 2
    assert "holds a run of another recipe: choose another --out" in other.stderr
