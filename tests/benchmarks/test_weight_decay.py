"""The study of weight decay, end to end at the smallest scale."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def command(tmp_path) -> list[str]:
    text = tmp_path / "text.txt"
    text.write_bytes(b"to be, or not to be: that is the question. " * 200)
    small = {"data.name": str(text), "data.num_train": 64, "data.context": 16, "model.width": 32, "model.depth": 1}
    small |= {"training.epochs": 2}
    settings = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    return [
        *(sys.executable, str(BENCHMARKS / "weight_decay.py"), "--strengths", "100", "--seeds", "2"),
        *("--out", str(tmp_path / "out"), "--results", str(tmp_path / "results"), *settings),
    ]


@pytest.mark.slow
def test_it_records_every_run_and_goes_on_where_it_stopped(command, tmp_path):
    first = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    lines = first.stdout.splitlines()
    assert lines[0] == "| strength | dense | always | delayed | coherent |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 0", "| 100"]
    runs = json.loads((tmp_path / "results" / "weight-decay.json").read_text())["runs"]
    assert len(runs) == 2 + 3 * 2
    assert all(run["best_validation_loss"] <= run["validation_loss"] for run in runs)
    assert all(run["task"] == "language" for run in runs)
    again = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert again.stdout == first.stdout
    assert "[" not in again.stderr  # nothing was trained
