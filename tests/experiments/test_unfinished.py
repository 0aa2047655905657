"""Runs that were stopped before their end are diagnosed from their checkpoint, or named with what finishes them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from experiments.finished import train_runs
from experiments.recipes import recipe
from strongreg.experiments.compare import Comparison
from strongreg.experiments.data import load_data
from strongreg.experiments.engine import RunStoppedError, train
from strongreg.experiments.engine.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from strongreg.experiments.errors import UserError
from strongreg.experiments.fate import diagnose_run, find_diagnosable, find_runs

RECIPE = recipe(model="lenet300", epochs=4, strength=5.0, strength_ramp_share=0.0, weight_decay=0.001)
STEPS = 23  # of an epoch


def _stopped(directory: Path, after: int) -> Path:
    """A run that was asked to stop after so many steps."""
    (job,) = Comparison(RECIPE, ["always"], [0], directory).jobs
    folder = directory / "runs" / job.directory_name
    calls = iter(range(1, 10**6))
    with pytest.raises(RunStoppedError):
        train(RECIPE, "always", 0, load_data("digits"), folder, should_stop=lambda: next(calls) >= after)
    return folder


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("stopped")
    _stopped(directory, after=3 * STEPS + 5)
    return directory


@pytest.fixture
def stopped(stopped_once, tmp_path) -> Path:
    shutil.copytree(stopped_once, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs/always-seed0"


def test_a_stopped_run_gets_the_verdict_that_it_would_get_finished(stopped, tmp_path_factory):
    found, left_out = find_diagnosable(stopped.parent.parent)
    assert (found, left_out) == ([stopped], [])
    diagnosis = diagnose_run(stopped)
    assert diagnosis.evidence[0] == "the run is not finished: its last checkpoint is of epoch 3 of 4"
    assert diagnosis.advice[-1] == f"strongreg train --resume {stopped.parent.parent} finishes it"
    finished = train_runs(tmp_path_factory.mktemp("whole"), RECIPE, ["always"]) / "runs/always-seed0"
    whole = diagnose_run(finished)
    assert (diagnosis.verdict, diagnosis.step, diagnosis.layer) == (whole.verdict, whole.step, whole.layer)
    assert diagnosis.verdict == "collapsed"


def test_looking_at_a_run_leaves_it_as_it_is(stopped):
    before = {file.name: file.read_bytes() for file in stopped.iterdir()}
    diagnose_run(stopped)
    assert {file.name: file.read_bytes() for file in stopped.iterdir()} == before


def test_a_run_that_has_no_checkpoint_yet_is_named_with_what_finishes_it(stopped):
    (stopped / "checkpoint.pt").unlink()
    for search in (find_runs, find_diagnosable):
        with pytest.raises(UserError) as caught:
            search(stopped)
        text = str(caught.value)
        assert f"the run in {stopped} is not finished (epoch 3 is done, accuracy " in text
        assert f"strongreg train --resume {stopped.parent.parent} finishes it, from its start" in text


def test_a_run_that_was_stopped_within_its_first_epoch_is_named(tmp_path):
    folder = _stopped(tmp_path, after=3)
    with pytest.raises(UserError, match=r"nothing to diagnose yet: .* \(no epoch is done\): strongreg train"):
        diagnose_run(folder)


def test_what_was_not_begun_by_train_is_finished_by_its_own_command(stopped):
    (stopped.parent.parent / "config.json").unlink()
    assert diagnose_run(stopped).advice[-1] == "the command that began it finishes it, with the same --out"


def test_a_line_that_a_kill_has_cut_off_is_no_epoch(stopped):
    (stopped / "checkpoint.pt").unlink()
    file = stopped / "metrics.jsonl"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(UserError, match="epoch 2 is done"):
        find_runs(stopped)


def test_finished_and_unfinished_runs_lie_side_by_side(stopped):
    train_runs(stopped.parent.parent, RECIPE, ["dense"])
    begun = stopped.parent / "dense-seed1"
    begun.mkdir()
    shutil.copy(stopped / "metrics.jsonl", begun)
    finished = stopped.parent / "dense-seed0"
    found, left_out = find_diagnosable(stopped.parent.parent)
    assert found == [stopped, finished]
    (told,) = left_out
    assert str(begun) in told
    assert find_runs(stopped.parent.parent) == [finished]


def test_a_checkpoint_that_is_damaged_or_older_is_named(stopped):
    file = stopped / "checkpoint.pt"
    state = read_checkpoint(stopped)
    assert load_checkpoint(stopped, state["fingerprint"])["about"] == state["about"]
    content = {key: value for key, value in state.items() if key not in ("about", "version")}
    for older in (content, {**content, "about": {}}, {**state, "optimizers": []}, {**state, "lines": []}):
        save_checkpoint(stopped, {key: value for key, value in older.items() if key != "version"})
        with pytest.raises(UserError, match=r"checkpoint\.pt was saved by another version .* --resume .* finishes it"):
            diagnose_run(stopped)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged"):
        diagnose_run(stopped)


def test_a_checkpoint_from_before_it_told_of_its_run_still_goes_on(stopped):
    state = read_checkpoint(stopped)
    save_checkpoint(stopped, {key: value for key, value in state.items() if key not in ("about", "version")})
    result = train(RECIPE, "always", 0, load_data("digits"), stopped)
    assert result.epochs == 4
    assert torch.isfinite(torch.tensor(result.accuracy))


@pytest.mark.parametrize("search", [find_runs, find_diagnosable, Comparison.open])
def test_what_does_not_exist_or_is_a_file_is_named_so(tmp_path, search):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"nowhere holds no .*: it does not exist"):
        search(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"file holds no .*: it is a file, name the directory of a run"):
        search(tmp_path / "file")
