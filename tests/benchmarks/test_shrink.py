"""The benchmark of shrinking runs, and its tables are the recorded ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "shrink.py"
RECORDED = ROOT / "benchmarks" / "results" / "shrink.json"
SPEEDS = ["torch, batch 1", "onnxruntime, batch 1", "torch, batch 64", "onnxruntime, batch 64"]


def _row(run: dict[str, object]) -> str:
    before, after = run["num_parameters"]
    flops_before, flops_after = run["flops"]
    cells = [
        *(run["case"], str(run["seed"]), str(run["round_to"])),
        *(f"{run['accuracy'][name]:.1%}" for name in ("dense", "shrunk")),
        f"{run['open_fraction']:.0%}",
        *(f"{before / after:.1f}", f"{flops_before / flops_after:.1f}"),
        *(f"{run['speedup'][name]:.1f}" for name in SPEEDS),
    ]
    return f"| {' | '.join(cells)} |"


def test_it_trains_shrinks_and_measures_and_goes_on_where_it_stopped(tmp_path):
    settings = ["model.name=plain_cnn", "training.epochs=6", "optimizer.lr=0.02", "penalty.strength=0.02"]
    command = [
        *(sys.executable, "-W", "error", str(SCRIPT), "--case", "resnet18-digits", "--seeds", "1", "--seconds", "0.01"),
        *("--out", str(tmp_path / "runs"), "--json", str(tmp_path / "rows.json")),
        *(part for setting in settings for part in ("--set", setting)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    outcomes = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        rows = json.loads((tmp_path / "rows.json").read_text())["runs"]
        assert done.stdout.splitlines()[2:] == [_row(run) for run in rows]
        assert [run["round_to"] for run in rows] == [1, 8]
        outcomes.append([(run["accuracy"], run["num_parameters"], run["flops"]) for run in rows])
    assert outcomes[0] == outcomes[1]
    other = subprocess.run([*command, "--set", "training.epochs=7"], capture_output=True, text=True, check=False)
    assert other.returncode == 2
    assert "holds a run of another recipe: choose another --out" in other.stderr
    for run in rows:
        assert run["accuracy"]["shrunk"] == run["accuracy"]["coherent"]
        assert run["num_parameters"][1] < run["num_parameters"][0]
        assert list(run["speedup"]) == SPEEDS
        assert all(ratio > 0 for ratio in run["speedup"].values())


def _shown(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| resnet18-digits |")]


def test_the_tables_are_the_recorded_ones():
    runs = json.loads(RECORDED.read_text())["runs"]
    section = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").partition("## Physical shrinking")[2]
    assert _shown(section.partition("\n## ")[0]) == [_row(run) for run in runs]


def test_the_table_for_users_is_the_recorded_one():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for run in json.loads(RECORDED.read_text())["runs"]:
        cells = _row(run).split(" | ")
        row = " | ".join([cells[1], *cells[3:5], *cells[6:]])
        assert (f"| {row}" in readme) == (run["round_to"] == 8)


def test_the_claim_of_the_readme_holds_in_every_recorded_run():
    rounded = [run for run in json.loads(RECORDED.read_text())["runs"] if run["round_to"] == 8]
    assert len(rounded) == 3
    for run in rounded:
        assert run["accuracy"]["shrunk"] >= run["accuracy"]["dense"] - 0.01
        assert run["num_parameters"][0] >= 4 * run["num_parameters"][1]
        assert min(run["speedup"].values()) >= 2
