"""The command sweep: its options, its output, and two of it on one study of which one is killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from unittest.mock import Mock

import optuna
import pytest

from cli.command import error, examples, run, start, wait_for
from strongreg.experiments.pool import TaskPool
from strongreg.experiments.sweep import Sweep
from strongreg.sweeps.trials import SearchRange

SMALL = ["--model", "lenet300", "--epochs", "2"]


@pytest.fixture
def no_training(monkeypatch) -> Mock:
    """Stands in for the training: three trials get numbers at once."""

    def train(sweep: Sweep, *_: object) -> None:
        queue = sweep._queue
        while queue.num_finished(3) < 3 and (claim := queue.claim(min(sweep.num_trials, 3))) is not None:
            details = {"accuracies": [0.9], "test_accuracy": 0.8, "open_fraction": 0.5}
            queue.finish(claim, 0.9 - claim.strength, 1 + claim.strength, details)

    trained = Mock(side_effect=train)
    monkeypatch.setattr(Sweep, "run", lambda *arguments: trained(*arguments))
    return trained


def test_help_names_the_options_and_shows_examples_that_are_valid(capsys, no_training):
    output, _ = run(capsys, "sweep", "--help")
    options = (
        "--trials --workers --storage --study --method --lowest --highest --max-loss --seeds --out --json --epochs"
    )
    assert all(option in output for option in ["RECIPE", *options.split()])
    shown = examples(output)
    assert len(shown) >= 4
    for arguments in shown:
        run(capsys, *arguments)
    assert no_training.call_count == len(shown)
    assert Path("sweeps.db").exists()


def test_help_says_when_a_dead_run_is_ended(capsys, no_training):
    output, _ = run(capsys, "sweep", "--help")
    assert "Default: never" not in " ".join(output.replace("│", " ").split())
    run(capsys, "sweep")
    epochs = no_training.call_args.args[0].recipe.training.stop_when_dead
    assert f"at chance for this many epochs. Default: {epochs}." in " ".join(output.replace("│", " ").split())


def test_options_reach_the_sweep_and_the_options_win_over_the_recipe(capsys, no_training):
    Path("mine.toml").write_text('[penalty]\nname = "mcp"\nstrength = 0.5\n[data]\nvalidation_share = 0.25\n')
    run(capsys, "sweep", "mine.toml", "--strength", 0.2, "--method", "always", "--seeds", 2, "--workers", 3)
    sweep, workers, _ = no_training.call_args.args
    penalty = sweep.recipe.penalty
    assert (penalty.name, penalty.strength, sweep.recipe.data.validation_share) == ("mcp", 0.2, 0.25)
    assert (sweep.method, sweep.seeds, sweep.num_trials, workers) == ("always", [0, 1], 16, 3)
    assert (sweep.range.lowest, sweep.range.highest) == (pytest.approx(0.02), 2.0)
    assert sweep.directory == Path("strongreg-out/sweep-1")


@pytest.mark.usefixtures("no_training")
def test_the_table_and_the_files_show_every_trial_and_the_choice(capsys):
    output, messages = run(capsys, "sweep", *SMALL, "--trials", 3, "--max-loss", 0.05, "--out", "out")
    assert max(map(len, output.splitlines())) <= 80
    assert sorted(path.name for path in Path("out").iterdir()) == ["report.html", "runs", "sweep.db", "sweep.json"]
    content = json.loads(Path("out/sweep.json").read_text())
    strengths = [trial["strength"] for trial in content["trials"]]
    assert strengths == sorted(SearchRange(0.00125, 0.125).strength_of(i) for i in range(3))
    best = max(s for s in strengths if s <= min(strengths) + 0.05)
    assert output.endswith(f"--strength {best:.6g}\n")
    assert output.count("*") >= 3
    assert messages.endswith("wrote out/sweep.json and out/report.html\n")
    again, messages = run(capsys, "sweep", *SMALL, "--trials", 3, "--max-loss", 0.05, "--out", "out", "--json")
    assert json.loads(again) == content
    assert again == Path("out/sweep.json").read_text()
    assert messages.startswith("3 finished trials found in sqlite:///out/sweep.db\n")
    assert "it is of strongreg sweep, which goes on by itself" in error(capsys, "train", "--resume", "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--trials 0", "trials=0: must be >= 1"),
        ("--workers 0", "workers=0: must be >= 1"),
        ("--seeds 0", "seeds=0: must be >= 1"),
        ("--search-seed -1", "search_seed=-1: must be >= 0"),
        ("--max-loss nan", "max_loss=nan: must be between 0 and 1"),
        ("--method dense", "unknown method 'dense'"),
        ("--method coherrent", "unknown method 'coherrent': did you mean 'coherent'?"),
        ("--lowest 0", "lowest=0.0: the smallest strength"),
        ("--lowest 2 --highest 1", "highest=1.0: must be finite and above lowest=2.0"),
        ("--strength 0", "strength=0.0: a sweep goes from a tenth to ten times of it"),
        ("--storage nothing", "storage 'nothing' is no URL"),
        ("--storage=", "storage '' is no URL: write sqlite:///FILE"),
        ("--study=", "study name '' is empty: give it a name"),
        ("--storage nosuch://me:secret@host/x", "storage nosuch://me:***@host/x: there is no such kind"),
        ("--storage sqlite:///none/x.db", "storage sqlite:///none/x.db: unable to open database file"),
        ("none.toml", "cannot read recipe none.toml"),
        ("--out mine", "cannot write to mine"),
    ],
)
def test_a_bad_value_is_one_line(capsys, no_training, options, message):
    Path("mine").write_text("a file")
    assert message in error(capsys, "sweep", *options.split())
    assert no_training.call_count == 0
    assert [path.name for path in Path.cwd().iterdir()] == ["mine"]


@pytest.mark.usefixtures("no_training")
def test_another_recipe_in_the_study_is_one_line_that_names_the_difference(capsys):
    run(capsys, "sweep", *SMALL, "--trials", 1, "--out", "out")
    text = error(capsys, "sweep", *SMALL, "--trials", 1, "--out", "out", "--penalty", "l2")
    assert text.startswith("study 'sweep' in sqlite:///out/sweep.db is of another search (")
    assert "penalty.name='l1' there, 'l2' now" in text


@pytest.mark.usefixtures("no_training")
def test_a_refused_sweep_leaves_no_study_in_the_database(capsys):
    command = ["sweep", *SMALL, "--trials", 3, "--out", "out", "--storage", "sqlite:///out/mine.db"]
    run(capsys, *command)
    text = error(capsys, *command, "--study", "third")
    assert text.startswith(
        "out holds runs of another study than 'third' in sqlite:///out/mine.db: choose another --out"
    )
    assert "if that database is gone, delete out/sweep.json" in text
    storage = optuna.storages.RDBStorage("sqlite:///out/mine.db")
    assert [study.study_name for study in storage.get_all_studies()] == ["sweep"]
    storage.engine.dispose()  # optuna leaves connections open
    Path("out/mine.db").unlink()
    assert "holds runs of another study than 'sweep'" in error(capsys, *command)
    assert not Path("out/mine.db").exists()


@pytest.mark.usefixtures("no_training")
def test_a_request_to_terminate_after_the_last_trial_says_that_all_are_kept(capsys, monkeypatch):
    command = ["sweep", *SMALL, "--trials", 3, "--out", "out"]

    def write(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("strongreg.experiments.sweep_report.write_sweep_report", write)
    _, messages = run(capsys, *command, code=143)
    assert messages == (
        "strongreg: error: interrupted: 3 of 3 trials are finished and kept in sqlite:///out/sweep.db; the same "
        "command with --out out goes on\n"
    )


def test_runs_that_are_taken_over_are_told(capsys, monkeypatch):
    command = ["sweep", *SMALL, "--trials", 1, "--workers", 1, "--method", "always", "--out", "out"]
    output, _ = run(capsys, *command)
    for name in ("sweep.json", "sweep.db"):
        Path("out", name).unlink()
    monkeypatch.setattr(TaskPool, "submit", None)  # nothing is trained
    again, messages = run(capsys, *command)
    assert messages.startswith(
        "1 run of this recipe found in out/runs: what is of a strength that is tried is taken over"
    )
    assert again == output


def test_of_two_commands_on_one_study_one_is_killed_and_no_trial_is_lost_or_done_twice():
    """The killed one's trial goes on from its checkpoint in the other, which sees the same directory."""
    arguments = ["sweep", "--model", "lenet300", "--epochs", "10", "--set", "training.checkpoint_every=1"]
    arguments += ["--trials", "3", "--workers", "1", "--method", "always", "--out", "out"]
    first = start(*arguments)
    wait_for("out/sweep.json", first)
    second = start(*arguments)
    try:
        wait_for("out/runs/*/checkpoint.pt", first)
        held = {path.parent.name for path in Path("out/runs").glob("*/checkpoint.pt")}
        os.kill(first.pid, signal.SIGKILL)
        output, messages = second.communicate(timeout=240)
        assert second.returncode == 0, messages
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    assert "Chosen, " in output
    content = json.loads(Path("out/sweep.json").read_text())
    strengths = [trial["strength"] for trial in content["trials"]]
    assert strengths == sorted(SearchRange(0.00125, 0.125).strength_of(i) for i in range(3))
    # every run belongs to one trial, and the one that was begun by the killed command was taken on
    folders = {path.name for path in Path("out/runs").iterdir()}
    assert folders == {f"always-trial{trial['number']}-seed0" for trial in content["trials"]}
    assert held - folders
    assert len(list(Path("out/runs").glob("*/result.json"))) == 3
    assert not list(Path("out/runs").glob("*/checkpoint.pt"))
