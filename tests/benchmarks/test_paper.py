"""The paper's grid, end to end at small scale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "paper.py"
DATA = Path(os.environ.get("STRONGREG_DATA", ROOT.parent / "shared" / "data"))


def _run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


def test_the_grid_is_complete():
    names = {file.stem for file in (ROOT / "recipes" / "paper").glob("*.toml")}
    models, data, penalties = ("alexnet", "vgg16", "resnet18"), ("cifar10", "cifar100", "svhn"), ("l1", "l2")
    assert names == {f"{m}-{d}-{p}" for m in models for d in data for p in penalties}


@pytest.mark.slow
def test_a_part_of_the_grid_runs_and_goes_on(tmp_path):
    arguments = [
        "--only",
        "resnet18-cifar10-*",
        "--methods",
        "dense,coherent,magnitude",
        "--out",
        "out",
        "--results",
        "tables",
    ]
    arguments += ["--set", "data.name=digits", "--set", "model.name=lenet300", "--set", "training.epochs=2"]
    arguments += ["--set", "training.compile=false", "--set", "training.device=cpu", "--workers", "1"]
    done = _run(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "tables" / "paper.json").read_text())["runs"]
    assert [(run["recipe"], run["method"]) for run in runs] == [
        (f"resnet18-cifar10-{penalty}", method)
        for penalty in ("l1", "l2")
        for method in ("dense", "coherent", "magnitude")
    ]
    assert all(run["images_per_second"] > 0 for run in runs)
    table = (tmp_path / "tables" / "paper.md").read_text().splitlines()
    assert len(table) == 2 + 6
    again = _run(tmp_path, *arguments)
    assert again.stderr.count("0 runs to train") == 2


@pytest.mark.slow
@pytest.mark.skipif(
    not (DATA / "fashion_mnist").is_dir(), reason="Fashion-MNIST lies neither in $STRONGREG_DATA nor beside the project"
)
def test_the_data_may_lie_where_only_an_option_says(tmp_path, monkeypatch):
    monkeypatch.delenv("STRONGREG_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = ["--only", "resnet18-cifar10-l1", "--methods", "dense", "--out", "out", "--results", "tables"]
    arguments += ["--set", "data.name=fashion_mnist", "--set", "data.num_train=100", "--set", "model.name=lenet300"]
    arguments += ["--set", "training.epochs=1", "--set", "training.compile=false", "--set", "training.device=cpu"]
    done = _run(tmp_path, *arguments, "--data-dir", str(DATA))
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "tables" / "paper.json").read_text())["runs"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "vgg17-*"], "fits no recipe"),
        (["--methods", "coherrent"], "did you mean 'coherent'"),
        (["--set", "training.epoch=3"], "did you mean training.epochs"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
    done = _run(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
