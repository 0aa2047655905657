"""The README's code runs, and its tables are the recorded runs; docs/test_pages.py checks its commands and links."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import fields

import pytest
import torch
from torch import nn

from docs.markdown import ROOT
from docs.markdown import code as blocks
from strongreg.experiments.engine import RunResult
from strongreg.experiments.recipe import build_recipe, default_changes
from strongreg.experiments.table import HEADER, cells, summarize

README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDED = ROOT / "benchmarks" / "results"


def _recorded(penalty: str) -> list[RunResult]:
    return [RunResult(**run) for run in json.loads((RECORDED / f"compare-{penalty}.json").read_text())["runs"]]


@pytest.mark.parametrize("code", blocks(ROOT / "README.md", "python"))
def test_the_code_runs(code, tmp_path, monkeypatch):
    """Each block by itself, with a network whose layers have the names that the README uses."""
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential()
    model.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten())
    model.body, model.head = nn.Linear(64, 8), nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    names = {
        "torch": torch,
        "strongreg": __import__("strongreg"),
        "model": model,
        "optimizer": optimizer,
        "num_steps": 200 if "target_compression" in code else 4,  # too few steps to adapt in are an error
        "images": torch.randn(2, 1, 8, 8),
    }
    exec(code, names)
    if "report" in names:
        images = torch.randn(3, 1, 8, 8)
        assert torch.allclose(names["fast"](images), model(images), atol=1e-5)
        assert {row.name for row in names["report"].layers} >= {"body", "head"}
        return
    if "found" in names:
        found = names["found"]
        assert len(found.trials) == 16
        assert all(trial.is_dead == (trial.strength > 0.1) for trial in found.trials)
        assert found.best(min_accuracy=0.95) in found.front
        return
    if "reg" not in names:
        assert "packed" in code
        assert (tmp_path / "model.packed").stat().st_size == names["contents"].file_bytes
        return
    for _ in range(4):
        names["optimizer"].zero_grad()
        model(torch.randn(8, 1, 8, 8)).square().mean().backward()
        names["optimizer"].step()
    summary = names["reg"].summary()
    assert summary.num_steps == 4
    assert summary.total.num_weights > 0


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_the_table_is_that_of_the_recorded_runs(penalty):
    results = _recorded(penalty)
    assert {(r.penalty, r.strength) for r in results if r.method != "dense"} == {
        (penalty, build_recipe(default_changes(penalty)).penalty.strength)
    }
    assert {r.seed for r in results} == set(range({"l1": 10, "l2": 5}[penalty]))
    assert "| " + " | ".join(HEADER[:-1]) + " |" in README
    for summary in summarize(results):
        assert "| " + " | ".join(cells(summary)[:-1]) + " |" in README


def test_the_recorded_runs_show_collapse_and_rescue():
    for penalty in ("l1", "l2"):
        runs = {
            method: [r for r in _recorded(penalty) if r.method == method] for method in ("dense", "always", "coherent")
        }
        assert statistics.mean(r.accuracy for r in runs["dense"]) >= 0.97
        assert all(r.accuracy <= 0.2 for r in runs["always"])
        assert all(r.accuracy >= 0.9 for r in runs["coherent"])
    coherent = [r for r in _recorded("l1") if r.method == "coherent"]
    assert statistics.mean(r.accuracy for r in coherent) >= 0.96
    assert all(r.compression >= 40 for r in coherent)


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_the_tolerance_levels_are_those_that_were_recorded(penalty):
    levels = json.loads((RECORDED / f"tolerance-{penalty}.json").read_text())["tolerance"]
    always = next(level["failed"] for level in levels if level["method"] == "always")
    assert {level["method"] for level in levels} == {"always", "delayed", "coherent"}
    for level in levels:
        ratio = "-" if level["method"] == "always" else f"{level['endured'] / always:.1f}"
        words = [penalty, level["method"], f"{level['endured']:.4g}", f"{level['failed']:.4g}", level["reason"]]
        words += [f"{level['accuracy']:.1%}", f"{level['compression']:.1f}", f"{level['open_fraction']:.0%}", ratio]
        assert f"| {' | '.join(words)} |" in README


def _rows_of_the_study() -> set[str]:
    runs = json.loads((RECORDED / "scaled-study.json").read_text())["runs"]
    known = {field.name for field in fields(RunResult)}
    groups: dict[tuple[str, ...], list[RunResult]] = {}
    for run in runs:
        without = run["method"] in ("dense", "magnitude")
        for asked in run["asked"]:
            result = RunResult(**{name: value for name, value in run.items() if name in known})
            group = (run["data"], asked, "-" if without else run["penalty"], run["method"])
            groups.setdefault(group, []).append(result)
    rows = set()
    for (data, asked, penalty, _), results in groups.items():
        assert [result.seed for result in results] == [0, 1, 2]
        (summary,) = summarize(results)
        method, accuracy, alive, _, times, opened, _ = cells(summary)
        rows.add(f"| {data} | {asked} | {method} | {penalty} | {accuracy} | {alive} | {times} | {opened} |")
    return rows


def test_the_table_of_the_study_is_that_of_the_recorded_runs():
    table = README.partition("### Against magnitude pruning")[2].partition("## What it does")[0]
    shown = [line for line in table.splitlines() if line.startswith("| ") and "| asked |" not in line]
    assert sorted(shown) == sorted(_rows_of_the_study())


def test_every_target_of_make_is_there():
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert set(targets) == {"demo", "test", "docs"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_number_of_right_verdicts_is_the_recorded_one():
    record = json.loads((RECORDED / "fates.json").read_text())
    right, total = record["num_right"], record["num_runs"]
    assert total == len(record["runs"])
    assert right == sum(run["fate"] == run["verdict"] for run in record["runs"])
    assert f"{right} of {total} runs of known fate" in README
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert f"trains {total} runs whose fate is known" in text
    assert f"{right} of {total} right" in text
