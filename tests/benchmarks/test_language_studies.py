"""The studies of a small language model, end to end at the smallest scale."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from strongreg.experiments.table import half_width_95, with_error

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
METHODS = ("always", "delayed", "coherent")


def _study(directory: Path, script: str, *options: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    text = directory / "text.txt"
    text.write_bytes(b"to be, or not to be: that is the question. " * 200)
    small = {"data.name": str(text), "data.num_train": 64, "data.context": 16, "model.width": 32, "model.depth": 1}
    small |= {f"training.{key}": value for key, value in settings.items()}
    command = [sys.executable, str(BENCHMARKS / script), *options, "--workers", "1"]
    command += ["--out", str(directory / "out"), "--results", str(directory / "results")]
    command += [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)


@pytest.mark.slow
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


@pytest.mark.slow
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


def _told(runs: list[dict[str, Any]], key: str) -> str:
    losses = [run[key] for run in runs]
    assert len(losses) == 3
    return with_error(statistics.fmean(losses), half_width_95(losses))


def test_the_tables_of_weight_decay_are_the_recorded_ones():
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "how-to" / "language-models.md").read_text(encoding="utf-8")
    runs = json.loads((BENCHMARKS / "results" / "weight-decay.json").read_text())["runs"]
    dense = [run for run in runs if run["method"] == "dense"]
    assert f"| none | {_told(dense, 'loss')} | | | |" in text
    assert f"| none | {_told(dense, 'best_validation_loss')} | | | |" in text
    assert f"| none | {_told(dense, 'loss')} | | {_told(dense, 'best_validation_loss')} | | |" in page
    strengths = sorted({run["strength"] for run in runs} - {0})
    assert strengths == [0.1, 0.3, 1, 3, 10, 30]
    for strength in strengths:
        groups = [[r for r in runs if (r["method"], r["strength"]) == (method, strength)] for method in METHODS]
        always, _, coherent = groups
        for key in ("loss", "best_validation_loss"):
            assert f"| {strength:g} | | {' | '.join(_told(group, key) for group in groups)} |" in text
        pairs = [_told(group, key) for key in ("loss", "best_validation_loss") for group in (always, coherent)]
        opened = statistics.fmean(run["open_fraction"] for run in coherent)
        assert f"| {strength:g} | {' | '.join(pairs)} | {opened:.0%} |" in page
        epochs = sorted(run["best_epoch"] for run in always)
        assert f"| {epochs[0]} to {epochs[-1]} |" in next(
            x for x in text.splitlines() if _told(always, "best_validation_loss") in x
        )


def test_the_strength_that_is_coherent_is_the_largest_one(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from coherent_strength import coherent_strength

    torch.manual_seed(0)
    steps, weights = ([torch.randn(3, 4), torch.randn(5)] for _ in range(2))

    def cosine(strength: float) -> float:
        alone = torch.cat([step.flatten() for step in steps])
        decay = torch.cat([weight.flatten() for weight in weights])
        return torch.cosine_similarity(alone, alone + strength * decay, dim=0).item()

    limited = coherent_strength(steps, weights, 100.0, 0.9)
    assert 0 < limited < 100
    assert cosine(limited) == pytest.approx(0.9, abs=1e-6)
    assert coherent_strength(steps, weights, 0.5 * limited, 0.9) == 0.5 * limited
    opposite = [-weight for weight in weights]
    assert coherent_strength(opposite, weights, 0.5, 0.9) == 0.5  # shorter, and still in the direction
    assert coherent_strength(opposite, weights, 2.0, 0.9) == pytest.approx(1.0)


@pytest.mark.slow
def test_that_of_coherent_strengths_writes_a_row_per_run(tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(b"to be, or not to be: that is the question. " * 200)
    small = {"data.name": text, "data.num_train": 64, "data.context": 16, "model.width": 32, "model.depth": 1}
    command = [sys.executable, str(BENCHMARKS / "coherent_strength.py"), "--strengths", "50", "--thresholds", "0.9"]
    command += ["--seeds", "1", "--results", str(tmp_path), "--set", "training.epochs=2"]
    command += [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    (run,) = json.loads((tmp_path / "coherent-strength.json").read_text())["runs"]
    assert done.stdout.splitlines()[2].startswith(f"| 50 | 0.9 | 0 | {run['loss']:.3f} | ")
    assert len(run["strengths"]) == 2
    assert all(0 < strength < 50 for strength in run["strengths"])


def test_the_table_of_compression_is_the_recorded_one(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from language_compression import _table

    runs = json.loads((BENCHMARKS / "results" / "language-compression.json").read_text())["runs"]
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "how-to" / "language-models.md").read_text(encoding="utf-8")
    for row in _table(runs):
        assert f"{row}\n" in text
    for run in runs:
        group = [each for each in runs if (each["method"], each["asked"]) == (run["method"], run["asked"])]
        assert _told(group, "loss") in page


def test_the_table_of_coherent_strengths_is_the_recorded_one():
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    for run in json.loads((BENCHMARKS / "results" / "coherent-strength.json").read_text())["runs"]:
        strengths = run["strengths"]
        assert (
            f"| {run['strength']:g} | {run['threshold']:g} | {run['seed']} | {run['loss']:.3f} | "
            f"{run['best_validation_loss']:.3f} | {strengths[0]:.1f}, {strengths[-1]:.1f} |\n"
        ) in text
