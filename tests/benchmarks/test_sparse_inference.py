"""The benchmark of sparse inference runs, and its table in the README is the recorded one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "sparse_inference.py"
RECORDED = ROOT / "benchmarks" / "results" / "sparse-inference.json"


def _rows(text: str) -> list[str]:
    """Rows of the tables, without headers."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rules = {i for i, line in enumerate(lines) if line.startswith("|---")}
    return [line for i, line in enumerate(lines) if i not in rules and i + 1 not in rules]


def test_it_measures_every_network_and_layer_and_writes_what_it_prints(tmp_path):
    file = tmp_path / "rows.json"
    command = [sys.executable, "-W", "error", str(SCRIPT), "--rounds", "1", "--seconds", "0.001", "--json", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    content = json.loads(file.read_text())
    networks = [(row["network"], row["sparsity"], row["batch_size"]) for row in content["networks"]]
    assert networks == [
        (name, sparsity, batch) for name in ("lenet300", "mlp-1024") for sparsity in (0.95, 0.98) for batch in (1, 64)
    ]
    assert all(0 < row["lowest"] <= row["ratio"] <= row["highest"] for row in content["networks"])
    assert len(content["layers"]) == 6
    assert all(len(row["ratios"]) == 7 for row in content["layers"])
    assert [row["batch_size"] for row in content["kernels"]] == [1, 2, 3, 4, 16, 64]
    assert len(_rows(done.stdout)) == 8 + 6 + 6


def test_the_tables_are_the_recorded_ones():
    section = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").partition("## Sparse inference")[2]
    shown = _rows(section.partition("\n## ")[0])
    content = json.loads(RECORDED.read_text())
    recorded = []
    for row in content["networks"]:
        times = f"{1e3 * row['dense_ms']:.0f} | {1e3 * row['sparse_ms']:.0f} | {row['ratio']:.2f}"
        name = f"| {row['network']} | {row['sparsity']:.0%} | {row['batch_size']} | "
        recorded.append(f"{name}{times} | {row['converted']} of {row['layers']} |")
    for row in content["layers"]:
        even = "-" if row["break_even"] is None else f"{row['break_even']:.0%}"
        name = f"| {row['layer'][0]}x{row['layer'][1]} | {row['batch_size']} | {even} | "
        recorded.append(name + " | ".join(f"{ratio:.2f}" for ratio in row["ratios"].values()) + " |")
    names = list(content["kernels"][0]["ratios"])
    for row in content["kernels"]:
        cells = (f"{row['ratios'][name]:.2f}" if name in row["ratios"] else "-" for name in names)
        recorded.append(f"| {row['batch_size']} | " + " | ".join(cells) + " |")
    assert shown == recorded


def test_the_table_for_users_is_the_recorded_one():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    networks = json.loads(RECORDED.read_text())["networks"]
    for name, shown in (("lenet300", "LeNet-300-100"), ("mlp-1024", "MLP, 1024 wide")):
        ratios = [f"{row['ratio']:.2f}" for row in networks if row["network"] == name]
        assert f"| {shown} | {' | '.join(ratios)} |" in readme
