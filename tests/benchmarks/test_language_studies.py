"""The studies of a small language model, end to end at the smallest scale."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.slow


def _study(directory: Path, script: str, *options: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    text = directory / "text.txt"
    text.write_bytes(b"to be, or not to be: that is the question. " * 200)
    small = {"data.name": str(text), "data.num_train": 64, "data.context": 16, "model.width": 32, "model.depth": 1}
    small |= {f"training.{key}": value for key, value in settings.items()}
    command = [sys.executable, str(BENCHMARKS / script), *options, "--workers", "1"]
    command += ["--out", str(directory / "out"), "--results", str(directory / "results")]
    command += [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)


def test_that_of_weight_decay_records_every_run_and_goes_on_where_it_stopped(tmp_path):
    study = "weight_decay.py", "--strengths", "100", "--seeds", "2"
    first = _study(tmp_path, *study, epochs=2)
    lines = first.stdout.splitlines()
    assert lines[0] == "| strength | dense | always | delayed | coherent |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 0", "| 100"]
    runs = json.loads((tmp_path / "results" / "weight-decay.json").read_text())["runs"]
    assert len(runs) == 2 + 3 * 2
    assert all(run["best_validation_loss"] <= run["validation_loss"] for run in runs)
    assert all(run["task"] == "language" for run in runs)
    again = _study(tmp_path, *study, epochs=2)
    assert again.stdout == first.stdout
    assert "[" not in again.stderr  # nothing was trained


def test_that_of_compression_says_what_shrinking_leaves(tmp_path):
    study = (
        "language_compression.py",
        "--penalties",
        "group_l2",
        "--targets",
        "2",
        "--methods",
        "always",
        "--seeds",
        "1",
    )
    done = _study(tmp_path, *study, epochs=12, batch_size=4)
    header, _, dense, smaller = done.stdout.splitlines()
    assert header == "| penalty | asked | method | loss | weights | open | parameters | bytes | heads | neurons |"
    assert dense.startswith("| - | - | dense | ")
    assert dense.endswith(" | 1 of 1 | 88 of 88 |")
    assert smaller.startswith("| group_l2 | 2 | always | ")
    runs = json.loads((tmp_path / "results" / "language-compression.json").read_text())["runs"]
    assert [(run["method"], run["asked"]) for run in runs] == [("dense", None), ("always", 2.0)]
    before, after = runs[1]["num_parameters"]
    assert before == runs[0]["num_parameters"][0] == runs[0]["num_parameters"][1]
    assert after < before
    assert runs[1]["neurons"][1][0] < runs[1]["neurons"][0][0] == 88
    assert runs[1]["compression"] == pytest.approx(2.0, rel=0.05)
