"""The verdict on a finished run is made of its files, and a damaged one is named."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from experiments.finished import DAMAGES, RUN_FILES, change, damage, train_runs
from experiments.recipes import recipe
from strongreg.experiments.engine import load_history, load_metrics, load_result
from strongreg.experiments.errors import UserError
from strongreg.experiments.fate import diagnose_run, find_runs

RECIPE = recipe(model="lenet300", epochs=3, strength=0.01)
KILLED = recipe(model="lenet300", epochs=3, strength=5.0, strength_ramp_share=0.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("fate")
    train_runs(directory / "mild", RECIPE, ["dense", "coherent"])
    train_runs(directory / "strong", KILLED, ["always", "coherent"])
    return directory


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return shutil.copytree(trained / "mild/runs/coherent-seed0", tmp_path / "runs/coherent-seed0")


# ---------------------------------------------------------------------- which runs


def test_every_finished_run_below_a_directory_is_found_in_the_order_of_the_names(trained):
    names = [path.relative_to(trained).as_posix() for path in find_runs(trained)]
    assert names == [
        "mild/runs/coherent-seed0",
        "mild/runs/dense-seed0",
        "strong/runs/always-seed0",
        "strong/runs/coherent-seed0",
    ]
    (alone,) = find_runs(trained / "mild/runs/dense-seed0")
    assert alone == trained / "mild/runs/dense-seed0"


def test_a_run_that_is_not_finished_is_not_found(run):
    (run / "result.json").unlink()
    with pytest.raises(UserError, match="holds no finished run"):
        find_runs(run)
    with pytest.raises(UserError, match=r"result\.json is missing: the run is not finished"):
        diagnose_run(run)


@pytest.mark.parametrize("name", ["nowhere", "file", "empty"])
def test_where_no_runs_are_is_an_error_that_names_it(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"{name} holds no finished run"):
        find_runs(tmp_path / name)


# ---------------------------------------------------------------------- verdicts


def test_runs_of_known_fate(trained):
    verdicts = {path.parts[-3] + "/" + path.name: diagnose_run(path) for path in find_runs(trained)}
    assert verdicts["mild/dense-seed0"].verdict == "learned"
    assert verdicts["mild/coherent-seed0"].learned
    assert verdicts["strong/coherent-seed0"].learned
    dead = verdicts["strong/always-seed0"]
    assert dead.verdict == "collapsed"
    assert dead.layer in load_history(trained / "strong/runs/always-seed0/history.safetensors").layers
    assert 0 <= dead.step < 3 * load_result(trained / "strong/runs/always-seed0/result.json").steps_per_epoch


def test_the_evidence_is_that_of_the_files(trained):
    folder = trained / "mild/runs/dense-seed0"
    result = load_result(folder / "result.json")
    (told, _) = diagnose_run(folder).evidence
    best = max(epoch.accuracy for epoch in load_metrics(folder / "metrics.jsonl", 3))
    assert told == f"accuracy {result.accuracy:.1%} at the end, {best:.1%} at best, {37 / 360:.1%} by chance"


def test_a_run_that_keeps_every_weight_is_told_so_if_its_penalty_makes_zeros(run):
    num_weights = load_result(run / "result.json").num_weights
    change(run, num_nonzero=num_weights, compression=1.0)
    assert diagnose_run(run).verdict == "nothing_removed"
    text = (run / "recipe.toml").read_text()
    for old, new in (('name = "l1"', 'name = "l2"'), ('mode = "proximal"', 'mode = "gradient"')):
        assert old in text
        (run / "recipe.toml").write_text(text.replace(old, new))
        assert diagnose_run(run).verdict == "learned"


def test_a_loss_that_was_not_finite_is_a_divergence(run):
    change(run, train_loss=None, accuracy=0.1, alive=False)
    diagnosis = diagnose_run(run)
    assert diagnosis.verdict == "diverged"
    assert "the loss was not finite from epoch 1 on" in diagnosis.evidence


# ---------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize(
    "name", [name for name in RUN_FILES if name.split(".")[0] not in ("recipe", "weights", "model")]
)
def test_a_missing_or_damaged_file_is_one_error_that_names_it(run, name, how):
    damage(run / name, how)
    with pytest.raises(UserError) as caught:
        diagnose_run(run)
    assert str(run / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        *({"accuracy": value} for value in ("high", None, math.nan, 1.5)),
        *({"chance": value} for value in (0, "x")),
        *({"num_nonzero": value} for value in (-5, 10**9)),
        *({"validation_accuracy": value} for value in (math.nan, 7.0)),
        *({"train_seconds": value} for value in (math.nan, -1.0)),
        *({"strength": value} for value in (math.inf, -1.0)),
        *({"compression": value} for value in (math.nan, -3.0)),
        *({"num_nonzero_parameters": value} for value in (-1, 10**9)),
        {"num_weights": 0, "num_nonzero": 0},
        {"epochs": 2},
        {"refit_start": -4},
        {"refit_start": [1]},
        {"steps_per_epoch": 0},
        *({"file_bytes": value} for value in (0, -1, 1.5, math.nan, "x", None)),
        *({"dense_bytes": value} for value in (0, -1, 1.5, math.nan, "x", None)),
        {"open_fraction": 2.0},
    ],
    ids=str,
)
def test_a_wrong_value_in_a_file_is_an_error_that_names_it(run, changes):
    change(run, **changes)
    with pytest.raises(UserError, match=r"(result\.json|metrics\.jsonl) is (missing or )?damaged"):
        diagnose_run(run)


def test_a_result_made_before_there_were_packed_files_is_no_damage(run):
    file = run / "result.json"
    content = json.loads(file.read_text())
    before = {key: value for key, value in content.items() if key not in ("file_bytes", "dense_bytes")}
    file.write_text(json.dumps(before))
    assert asdict(load_result(file)) == {**before, "file_bytes": None, "dense_bytes": None}
    for broken in ({**before, "file_bytes": 5}, {**before, "dense_bytes": 5}, {**before, "other": None}):
        file.write_text(json.dumps(broken))
        with pytest.raises(UserError, match=r"result\.json is damaged"):
            load_result(file)


@pytest.mark.parametrize("key", ["accuracy", "train_loss", "lr", "epoch"])
def test_epochs_that_lack_a_number_or_have_a_word_are_damaged(run, key):
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for broken in ({k: v for k, v in lines[1].items() if k != key}, {**lines[1], key: "much"}, [1], 3, None):
        file.write_text("".join(json.dumps(line) + "\n" for line in (lines[0], broken, lines[2])))
        with pytest.raises(UserError, match=r"metrics\.jsonl is missing or damaged"):
            load_metrics(file, 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("accuracy", value) for value in (math.nan, 7.0, -0.1)),
        *((key, math.nan) for key in ("lr", "train_loss", "coherence", "weight_norm")),
        *((key, -1) for key in ("num_nonzero", "compression", "gradient_norm", "penalty_norm")),
        ("open_fraction", 3.0),
    ],
)
def test_epochs_with_a_number_that_cannot_be_are_damaged(run, key, value):
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in (*lines[:2], {**lines[2], key: value})))
    with pytest.raises(UserError, match=r"metrics\.jsonl is missing or damaged"):
        load_metrics(file, 3)


def test_a_history_cut_off_anywhere_is_named(run):
    file = run / "history.safetensors"
    content = file.read_bytes()
    for length in (*range(0, 1000, 41), len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"history\.safetensors is missing or damaged"):
            load_history(file)
