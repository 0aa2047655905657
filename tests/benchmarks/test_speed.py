"""The benchmarks of speed and memory run from end to end, and what they write is what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.slow


def _run(tmp_path: Path, script: str, *options: str, python: tuple[str, ...] = ("-W", "error")) -> dict[str, Any]:
    """What the script has written as JSON, once it is sure that it has written as Markdown what it printed."""
    json_file, markdown = tmp_path / "numbers.json", tmp_path / "tables.md"
    files = ("--json", str(json_file), "--markdown", str(markdown))
    command = [sys.executable, *python, str(BENCHMARKS / script), *options, *files]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert markdown.read_text(encoding="utf-8") == done.stdout
    assert done.stdout.count("\n| --- |") >= 1
    content: dict[str, Any] = json.loads(json_file.read_text(encoding="utf-8"))
    assert {"strongreg", "torch", "python"} <= set(content["versions"])
    return content | {"text": done.stdout}


def test_steps_of_all_contenders(tmp_path):
    options = ("--networks", "lenet300", "--threads", "1", "2", "--rounds", "2", "--seconds", "0.0001")
    content = _run(tmp_path, "step.py", *options, python=())  # other libraries may warn when they are imported
    assert [(network["network"], network["threads"]) for network in content["networks"]] == [
        ("lenet300", 1),
        ("lenet300", 2),
    ]
    expected = {"SGD, fused", "SGD, foreach", "AdamW, fused", "AdamW, foreach", "L1 on AdamW, fused"}
    expected |= {f"{name}, coherence gate" for name in ("L1", "L2", "ElasticNet", "MCP", "GroupL2", "SparseGroup")}
    expected |= {f"L1, {name}" for name in ("always open", "gate closed", "gate per layer", "gradient mode")}
    expected |= {"L1, no history", "L1, without numba", "L1 in the loss", "L2 in the loss", "copy"}
    expected |= {"multiplication in place", "SGD, fused, between a dot product and a multiplication in place"}
    for network in content["networks"]:
        assert expected <= set(network["turns"])
        assert {"torchao PAT, ProxLasso", "Cautious Weight Decay"} <= set(network["turns"]) | set(network["left_out"])
        assert all(len(times) == 2 and min(times) > 0 for times in network["turns"].values())
        assert all(0 < row["low"] <= row["median"] <= row["high"] for row in network["rows"])
        assert all(f"Left out: {name}" in content["text"] for name in network["left_out"])
    bars = {verdict["bar"] for verdict in content["verdicts"]}
    assert bars >= {"with L1 and gate / fused SGD", "with L1 and gate / 9 words by copies"}
    assert all(isinstance(verdict["met"], bool) for verdict in content["verdicts"])


def test_whole_training_steps(tmp_path):
    options = ("--networks", "lenet300", "--batch-size", "4", "--rounds", "3", "--seconds", "0.001", "--threads", "1")
    content = _run(tmp_path, "train.py", *options, "--dtype", "bf16", "--channels-last")
    assert (content["threads"], content["dtype"], content["channels_last"]) == (1, "bf16", True)
    (row,) = content["networks"]
    assert 0 < row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
    assert row["ratio_by_optimizer_steps"] > 1
    assert {len(times) for times in row["turns"].values()} == {3}


def test_memory_of_a_step(tmp_path):
    """Of AdamW, where the step that the penalty must be coherent with is foreseen without a copy."""
    optimizer = "AdamW, fused"
    one = ("--optimizers", optimizer)
    content = _run(tmp_path, "memory.py", "--networks", "lenet300", "--regularizers", "L1, no history", *one)
    cases = {(case["optimizer"], case["regularizer"]): case for case in content["cases"]}
    bare, penalized = cases[optimizer, "none"], cases[optimizer, "L1, no history"]
    assert bare["parameter_bytes"] == penalized["parameter_bytes"] == 4 * 266_610
    assert 0 <= bare["peak"] <= penalized["peak"] < 0.01 * penalized["parameter_bytes"]
    assert bare["kept"] < penalized["kept"] < 0.01 * penalized["parameter_bytes"]
    assert {verdict["bar"] for verdict in content["verdicts"]} == {"peak", "kept"}
    assert all(verdict["met"] for verdict in content["verdicts"])


def test_cost_by_size_and_by_number_of_tensors(tmp_path):
    drawing = tmp_path / "scaling.svg"
    options = ("--max-parameters", "1e5", "--rounds", "1", "--seconds", "0.0001", "--svg", str(drawing))
    content = _run(tmp_path, "scaling.py", *options)
    assert [row["num_weights"] for row in content["sizes"]] == [10_000, 100_000]
    assert [row["num_tensors"] for row in content["counts"]] == [1, 3, 10, 30, 100, 300, 1000]
    assert content["left_out"] == []
    assert drawing.read_text(encoding="utf-8").startswith("<svg ")
