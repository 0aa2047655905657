"""A sweep: what its trials are, what is chosen by, and how it survives a killed process."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from experiments.pages import Page, assert_needs_nothing, assert_references_are_there_once
from experiments.recipes import recipe
from strongreg.experiments.engine.record import load_result
from strongreg.experiments.errors import UserError
from strongreg.experiments.pool import ProcessDiedError, TaskPool
from strongreg.experiments.recipe import build_recipe, show_recipe
from strongreg.experiments.sweep import Sweep, SweepListener, judge
from strongreg.experiments.sweep_report import write_sweep_report
from strongreg.sweeps import StudyError
from strongreg.sweeps import storage as studies
from strongreg.sweeps.result import SearchResult
from strongreg.sweeps.trials import Claim, TrialQueue

# of the first three strengths two let lenet300 live, and one kills it
RECIPE = recipe(model="lenet300", epochs=3, strength_ramp_share=0.0, training__stop_when_dead=1)
RANGE = {"lowest": 1e-4, "highest": 10.0}
FOLDERS = [f"always-trial{number}-seed0" for number in range(3)]


def _sweep(directory: Path, run=RECIPE, num_trials=3, seeds=(0,), **options) -> Sweep:
    return Sweep(run, "always", list(seeds), num_trials, directory, **{**RANGE, **options})


def _listener() -> Mock:
    return Mock(spec=SweepListener)


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[Sweep, Mock]:
    sweep, listener = _sweep(tmp_path_factory.mktemp("sweep") / "new"), _listener()
    sweep.run(1, listener)
    return sweep, listener


# ---------------------------------------------------------------------- trials


def test_every_trial_is_a_run_of_its_strength_and_a_dead_one_is_pruned(swept):
    sweep, listener = swept
    found = sweep.found
    assert sweep.num_finished == len(found.trials) == 3
    assert sorted(path.name for path in (sweep.directory / "runs").iterdir()) == FOLDERS
    for trial in found.trials:
        result = load_result(sweep.directory / "runs" / FOLDERS[trial.number] / "result.json")
        assert result.strength == trial.strength == sweep.range.strength_of(trial.number)
        assert trial.details["accuracies"] == [result.validation_accuracy]
        if not trial.is_dead:
            assert trial.accuracy == result.validation_accuracy
            assert trial.compression == pytest.approx(result.compression)
    assert [trial.is_dead for trial in found.trials] == [False, False, True]
    assert found.trials[-1].details["epochs"] < [3]  # it was ended early
    told = [call.args for call in listener.on_trial.call_args_list]
    assert [(trial.number, num_finished) for trial, num_finished in told] == [(0, 1), (1, 2), (2, 3)]
    assert {trial.number for trial, _ in told if trial.is_dead} == {found.trials[-1].number}


def test_a_recipe_without_validation_images_and_an_end_of_dead_runs_is_given_both(swept, tmp_path):
    sweep, _ = swept
    assert sweep.recipe.data.validation_share == 1 / 6
    assert _sweep(tmp_path, recipe(model="lenet300")).recipe.training.stop_when_dead == 10


def test_the_test_images_choose_nothing(swept):
    """Whatever they say, a trial is what the validation images say of it."""
    sweep, _ = swept
    result = load_result(sweep.directory / "runs" / FOLDERS[0] / "result.json")
    claim = Claim(0, result.strength, 0, (), 1)
    one, other = (judge(claim, [replace(result, accuracy=x, alive=x > 0.5)]) for x in (0.1, 0.99))
    assert repr(replace(one, details={})) == repr(replace(other, details={}))  # NaN is not NaN
    assert judge(claim, [replace(result, accuracy=0.99, validation_accuracy=0.1)]).is_dead


def test_a_trial_is_the_mean_over_its_seeds_and_dead_if_one_of_them_is(swept):
    sweep, _ = swept
    result = load_result(sweep.directory / "runs" / FOLDERS[0] / "result.json")
    claim = Claim(0, result.strength, 0, (), 1)
    half = replace(result, num_nonzero=result.num_weights // 2)
    quarter = replace(result, num_nonzero=result.num_weights // 4)
    trial = judge(claim, [replace(half, validation_accuracy=0.9), replace(quarter, validation_accuracy=0.8)])
    assert (trial.accuracy, trial.compression) == (pytest.approx(0.85), pytest.approx(8 / 3))
    assert judge(claim, [half, replace(quarter, validation_accuracy=0.1)]).is_dead
    assert judge(claim, [half, replace(quarter, num_nonzero=0)]).is_dead


def test_the_same_sweep_trains_nothing_twice_and_goes_on_with_more_trials(swept):
    sweep, _ = swept
    before = {file: file.stat().st_mtime_ns for file in sweep.directory.glob("runs/*/*")}
    again, listener = _sweep(sweep.directory), _listener()
    again.run(1, listener)
    assert {file: file.stat().st_mtime_ns for file in sweep.directory.glob("runs/*/*")} == before
    assert listener.mock_calls == []
    assert repr(again.found) == repr(sweep.found)


def test_a_run_that_finished_before_its_command_was_killed_is_not_trained_again(swept, tmp_path):
    """Between the run's last file and the record in the study; and a folder keeps its trial's number."""
    sweep, _ = swept
    second = _sweep(tmp_path)
    claim = second._queue.claim(3)
    (sweep.directory / "runs" / FOLDERS[claim.number]).rename(folder := tmp_path / "runs" / FOLDERS[claim.number])
    try:
        written = (folder / "result.json").stat().st_mtime_ns
        second._queue.give_back(claim, 3)
        listener = _listener()
        third = _sweep(tmp_path, num_trials=1)
        third.run(1, listener)
        (trial,) = third.found.trials
        moved = tmp_path / "runs" / f"always-trial{trial.number}-seed0"
        assert (trial.number, trial.strength) == (3, claim.strength)
        assert (moved / "result.json").stat().st_mtime_ns == written
        assert not folder.exists()
    finally:
        for left in (folder, tmp_path / "runs" / "always-trial3-seed0"):
            if left.exists():
                left.rename(sweep.directory / "runs" / FOLDERS[claim.number])


# ---------------------------------------------------------------------- runs that were there before the study


def _without_its_study(sweep: Sweep, directory: Path) -> Path:
    """A copy of a finished sweep whose study is gone."""
    shutil.copytree(sweep.directory, directory)
    for name in ("sweep.json", "sweep.db"):
        (directory / name).unlink()
    return directory


def _results(sweep: Sweep) -> dict[float, tuple[float, float]]:
    return {trial.strength: (trial.accuracy, trial.details["kept"]) for trial in sweep.found.trials}


def test_finished_runs_are_taken_over_by_their_recipe_and_not_by_the_trial_s_number(swept, tmp_path):
    sweep, _ = swept
    runs = _without_its_study(sweep, tmp_path / "copy") / "runs"
    for old, new in ((0, "spare"), (1, 0), (2, 1), ("spare", 2)):  # as after a kill, which moves the numbers
        (runs / f"always-trial{old}-seed0").rename(runs / f"always-trial{new}-seed0")
    written = sorted(file.stat().st_mtime_ns for file in runs.glob("*/result.json"))
    again = _sweep(tmp_path / "copy")
    assert again.num_runs_taken_over == 3
    again.run(1, _listener())
    assert _results(again).keys() == _results(sweep).keys()
    assert str(_results(again)) == str(_results(sweep))  # one of them is NaN
    assert sorted(file.stat().st_mtime_ns for file in runs.glob("*/result.json")) == written
    assert sorted(path.name for path in runs.iterdir()) == FOLDERS


def test_a_finished_run_of_another_strength_is_kept_and_not_taken_for_a_trial_s(swept, tmp_path):
    sweep, _ = swept
    runs = _without_its_study(sweep, tmp_path / "copy") / "runs"
    before = load_result(runs / FOLDERS[0] / "result.json")
    other = _sweep(tmp_path / "copy", num_trials=1, search_seed=1)
    other.run(1, _listener())
    (trial,) = other.found.trials
    assert trial.strength != before.strength
    assert load_result(runs / FOLDERS[0] / "result.json").strength == trial.strength
    assert load_result(runs / f"{FOLDERS[0]}-before1" / "result.json") == before
    assert len(list(runs.glob("*/result.json"))) == 4


def test_a_checkpoint_of_another_strength_is_kept_and_not_gone_on_with(tmp_path):
    long = recipe(model="lenet300", epochs=3, training__checkpoint_every=1)
    sweep = _sweep(tmp_path, long, num_trials=1)
    folder = tmp_path / "runs" / FOLDERS[0]
    folder.mkdir()
    strange = build_recipe({"penalty.strength": 0.5}, sweep.recipe.model_dump())
    (folder / "recipe.toml").write_text(show_recipe(strange))
    (folder / "checkpoint.pt").write_bytes(b"of another run")
    sweep.run(1, _listener())
    assert load_result(folder / "result.json").strength == sweep.found.trials[0].strength
    assert (tmp_path / "runs" / f"{FOLDERS[0]}-before1" / "checkpoint.pt").read_bytes() == b"of another run"


def test_a_run_of_another_seed_under_a_trial_s_name_is_not_taken_for_it(swept, tmp_path):
    sweep, _ = swept
    runs = _without_its_study(sweep, tmp_path / "copy") / "runs"
    file = runs / FOLDERS[0] / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seed": 7}))
    again = _sweep(tmp_path / "copy", num_trials=1)
    again.run(1, _listener())
    assert load_result(file).seed == 0
    assert load_result(runs / f"{FOLDERS[0]}-before1" / "result.json").seed == 7


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"penalty__name": "l2", "epochs": 7}, "penalty.name='l1' there, 'l2' now, training.epochs=3 there, 7 now"),
        ({"penalty__refit_share": 0.25}, "penalty.refit_share=0.5 there, 0.25 now"),
    ],
)
def test_runs_of_another_recipe_are_an_error_that_names_the_difference(swept, tmp_path, options, difference):
    sweep, _ = swept
    directory = _without_its_study(sweep, tmp_path / "copy")
    same = {"model": "lenet300", "epochs": 3, "strength_ramp_share": 0.0, "training__stop_when_dead": 1}
    before = sorted(directory.glob("**/*"))
    with pytest.raises(
        UserError, match=rf"holds runs of another recipe \(.*{difference}.*choose another --out, or del"
    ):
        _sweep(directory, recipe(**{**same, **options}))
    assert sorted(directory.glob("**/*")) == before
    with pytest.raises(UserError, match="method='always' there, 'delayed' now"):
        Sweep(RECIPE, "delayed", [0], 3, directory, **RANGE)


# ---------------------------------------------------------------------- deaths


def test_a_killed_process_costs_no_trial_and_its_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    long = recipe(model="lenet300", epochs=12, training__checkpoint_every=1)
    sweep, listener = _sweep(tmp_path, long, num_trials=1, lowest=1e-4, highest=1e-3), _listener()
    killed: list[int] = []
    wait = TaskPool.wait

    def kill_once(pool, pending):
        if not killed and list(tmp_path.glob("runs/*/checkpoint.pt")):
            (process,) = multiprocessing.active_children()
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)
        return wait(pool, pending)

    monkeypatch.setattr(TaskPool, "wait", kill_once)
    sweep.run(1, listener)
    assert len(killed) == 1
    assert listener.on_death.call_count == 1
    assert [trial.number for trial in sweep.found.trials] == [0]
    result = load_result(tmp_path / "runs" / FOLDERS[0] / "result.json")
    assert result.epochs == 12
    assert [call.args[1] for call in listener.on_trial.call_args_list] == [1]


def test_processes_that_die_again_and_again_are_an_error(tmp_path, monkeypatch):
    sweep, listener = _sweep(tmp_path), _listener()
    monkeypatch.setattr(sweep, "_train", Mock(side_effect=ProcessDiedError("a training process died")))
    with pytest.raises(UserError, match="a training process died"):
        sweep.run(1, listener)
    assert listener.on_death.call_count == 2


# ---------------------------------------------------------------------- report


@pytest.fixture(scope="module")
def html(swept) -> str:
    sweep, _ = swept
    found, file = sweep.found, sweep.directory / "report.html"
    write_sweep_report(sweep, found, found.best(), file)
    return file.read_text(encoding="utf-8")


def test_the_report_needs_nothing_else_and_shows_two_drawings(html):
    assert_needs_nothing(html)
    assert_references_are_there_once(html)
    page = Page(html)
    assert page.tags.count("svg") == 2
    assert {"Pareto table", "Pareto front", "By strength", "Every trial", "times smaller", "chosen"} <= set(page.texts)


def test_the_report_s_front_is_that_of_the_trials_and_its_numbers_theirs(swept, html):
    found = swept[0].found
    front, every = html.split("<h2>Every trial</h2>")
    rows = re.findall(r"<tr[^>]*><td>(\d+)</td><td>([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td>", front)
    assert [int(row[0]) for row in rows] == [trial.number for trial in reversed(found.front)]
    assert rows[0][1:] == (
        f"{found.front[-1].strength:.4g}",
        f"{found.front[-1].accuracy:.1%}",
        f"{found.front[-1].details['test_accuracy']:.1%}",
    )
    assert every.count('<tr class="dead">') == 1
    assert "Died: 1 of 3." in every


def test_a_sweep_all_of_whose_trials_died_has_a_report_too(swept, tmp_path):
    sweep, _ = swept
    write_sweep_report(sweep, SearchResult(sweep.found.trials[-1:]), None, tmp_path / "report.html")
    assert "Every trial died: sweep smaller strengths." in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_sweep_json_holds_what_there_is_without_nan(swept):
    sweep, _ = swept
    content = sweep.write(sweep.found, sweep.found.best())
    assert json.loads((sweep.directory / "sweep.json").read_text()) == json.loads(json.dumps(content, allow_nan=False))
    assert content["front"] == [trial.number for trial in sweep.found.front]
    assert [trial["accuracy"] is None for trial in content["trials"]] == [False, False, True]
    _sweep(sweep.directory)  # and it is still the same sweep


# ---------------------------------------------------------------------- mistakes


def test_another_recipe_or_range_is_an_error_that_names_the_difference(swept):
    sweep, _ = swept
    for options, difference in (
        ({"highest": 5.0}, "sweep.highest=10.0 there, 5.0 now"),
        ({"seeds": (0, 1)}, r"sweep.seeds=\[0\] there, \[0, 1\] now"),
        ({"search_seed": 1}, "sweep.seed=0 there, 1 now"),
        ({"run": recipe(model="lenet300", epochs=7)}, "training.epochs=3 there, 7 now"),
    ):
        with pytest.raises(UserError, match=rf"study 'sweep' .* is of another search \(.*{difference}.*choose another"):
            _sweep(sweep.directory, **options)
    other_start = RECIPE.model_copy(update={"penalty": RECIPE.penalty.model_copy(update={"strength": 0.3})})
    _sweep(sweep.directory, other_start)  # the strength is swept


def test_a_directory_of_another_study_is_an_error(swept, tmp_path):
    sweep, _ = swept
    with pytest.raises(UserError, match=r"holds runs of another study than 'sweep' in sqlite:.*another --out"):
        _sweep(sweep.directory, storage=f"sqlite:///{tmp_path / 'new.db'}")


def test_a_sweep_that_cannot_be_made_leaves_no_connection_open(tmp_path, monkeypatch):
    closed = Mock(wraps=studies.close)
    monkeypatch.setattr(studies, "close", closed)
    monkeypatch.setattr(TrialQueue, "plan", Mock(side_effect=StudyError("the database is away")))
    with pytest.raises(UserError, match="the database is away"):
        _sweep(tmp_path / "out")
    assert closed.called


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 0.0}, "lowest=0.0"),
        ({"highest": 1e-5}, "highest=1e-05: must be finite and above lowest=0.0001"),
        ({"lowest": math.nan}, "lowest=nan"),
        ({"run": recipe(strength=0.0), "lowest": None}, r"strength=0.0: .* give --lowest and --highest"),
        ({"run": build_recipe({"methods.always.penalty.strength": 1.0})}, "methods.always sets penalty.strength"),
        ({"storage": "nowhere"}, "storage 'nowhere' is no URL"),
    ],
)
def test_bad_values_are_an_error(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        _sweep(tmp_path, **options)


def test_the_range_is_a_tenth_to_ten_times_the_recipe_s_strength(tmp_path):
    sweep = _sweep(tmp_path, recipe(model="lenet300", strength=0.02), lowest=None, highest=None)
    assert (sweep.range.lowest, sweep.range.highest) == (pytest.approx(0.002), pytest.approx(0.2))
