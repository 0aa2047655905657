"""A comparison: the same numbers whoever trains them, and a directory that goes on where it stopped."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file

from experiments.finished import RUN_FILES
from experiments.recipes import recipe
from strongreg.compression import save_packed
from strongreg.experiments import pool
from strongreg.experiments.compare import Comparison, Job
from strongreg.experiments.data import load_data
from strongreg.experiments.engine import EpochMetrics, train
from strongreg.experiments.errors import UserError
from strongreg.experiments.files import read_json
from strongreg.experiments.recipe import COMPARED, Recipe, build_recipe, read_recipe

RECIPE = recipe(model="lenet300", epochs=2, gate_threshold=0.75)


def _changed(**changes) -> Recipe:
    return recipe(**{"model": "lenet300", "epochs": 2, "gate_threshold": 0.75, **changes})


def _listener() -> Mock:
    return Mock(spec=["on_epoch", "on_result", "on_stop"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The four methods, trained by one worker process."""
    comparison = Comparison(RECIPE, COMPARED, [0], tmp_path_factory.mktemp("runs") / "new" / "comparison")
    listener = _listener()
    comparison.run(1, 1, listener)
    return comparison, listener


@pytest.fixture
def directory(finished, tmp_path) -> Path:
    """A copy of the finished comparison's directory."""
    return shutil.copytree(finished[0].directory, tmp_path / "copy")


def _run_directory(directory: Path, job: Job) -> Path:
    return directory / "runs" / job.directory_name


def _numbers(result) -> dict:
    return {**asdict(result), "train_seconds": 0}


def _assert_same_runs(one: Path, other: Path, jobs: list[Job]) -> None:
    for job in jobs:
        for name in ("metrics.jsonl", "weights.safetensors", "model.packed"):
            assert (_run_directory(one, job) / name).read_bytes() == (_run_directory(other, job) / name).read_bytes()


def _written(directory: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in directory.glob("runs/*/*")}


# ---------------------------------------------------------------------- what is written


def test_a_comparison_writes_the_documented_files(finished):
    directory = finished[0].directory
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "recipe.toml", "results.json", "runs"]
    folders = ["always-seed0", "coherent-seed0", "delayed-seed0", "dense-seed0"]
    assert sorted(path.name for path in (directory / "runs").iterdir()) == folders
    for folder in folders:
        assert sorted(path.name for path in (directory / "runs" / folder).iterdir()) == RUN_FILES
    config = read_json(directory / "config.json")
    assert Recipe(**config["config"]) == RECIPE
    assert build_recipe({}, read_recipe(directory / "recipe.toml")) == RECIPE
    assert config["versions"]["torch"] == torch.__version__


def test_results_hold_one_entry_per_run_with_the_documented_fields(finished):
    runs = read_json(finished[0].directory / "results.json")["runs"]
    assert [(run["method"], run["seed"]) for run in runs] == [(method, 0) for method in COMPARED]
    for run in runs:
        assert (run["data"], run["model"], run["penalty"]) == ("digits", "lenet300", "l1")
        assert run["strength"] == (0.0 if run["method"] == "dense" else RECIPE.penalty.strength)
        assert 0 <= run["accuracy"] <= 1
        assert run["accuracy"] * 360 == pytest.approx(round(run["accuracy"] * 360))  # of the 360 test images
        assert 0 <= run["open_fraction"] <= 1
        assert run["compression"] == run["num_weights"] / run["num_nonzero"]
        assert run["train_seconds"] > 0
        packed = finished[0].directory / "runs" / f"{run['method']}-seed0" / "model.packed"
        assert run["file_bytes"] == packed.stat().st_size
        assert run["dense_bytes"] == 4 * run["num_parameters"] == 4 * (64 * 300 + 300 * 100 + 100 * 10 + 410)
    assert len({run["gate"] for run in runs}) == 4
    assert runs == [asdict(result) for result in finished[0].finished_results]


def test_the_number_of_weights_agrees_with_the_saved_ones(finished):
    for job, result in finished[0].results.items():
        saved = load_file(_run_directory(finished[0].directory, job) / "weights.safetensors")
        weights = [tensor for tensor in saved.values() if tensor.dim() > 1]
        assert result.num_weights == sum(weight.numel() for weight in weights)
        assert result.num_nonzero == sum(int((weight != 0).sum()) for weight in weights)


def test_metrics_are_read_back_one_entry_per_epoch(finished):
    for job in finished[0].jobs:
        metrics = finished[0].metrics(job)
        assert [type(m) for m in metrics] == [EpochMetrics] * 2
        assert [m.epoch for m in metrics] == [1, 2]
        assert metrics[-1].num_nonzero == finished[0].results[job].num_nonzero


def test_the_listener_hears_of_every_run(finished):
    comparison, listener = finished
    assert [call.args for call in listener.on_result.call_args_list] == list(comparison.results.items())
    epochs = [(job, metrics.epoch) for job, metrics in (call.args for call in listener.on_epoch.call_args_list)]
    assert set(epochs) <= {(job, epoch) for job in comparison.jobs for epoch in (1, 2)}
    assert len(set(epochs)) == len(epochs) >= 4


# ---------------------------------------------------------------------- the same numbers whoever trains them


@pytest.mark.parametrize("method", COMPARED)
def test_a_run_on_its_own_gives_the_numbers_of_the_comparison(finished, tmp_path, method):
    job, comparison = Job(method, 0), finished[0]
    alone = _run_directory(tmp_path, job)
    alone.mkdir(parents=True)
    result = train(RECIPE, method, 0, load_data("digits"), alone)
    assert _numbers(result) == _numbers(comparison.results[job])
    _assert_same_runs(comparison.directory, tmp_path, [job])


def test_missing_runs_go_on_with_any_number_of_workers_and_finished_ones_kept(finished, directory):
    lost = [Job("dense", 0), Job("coherent", 0)]
    for job in lost:
        (_run_directory(directory, job) / "result.json").unlink()
    (directory / "results.json").unlink()
    comparison, listener = Comparison(RECIPE, COMPARED, [0], directory), _listener()
    before = _written(directory)
    assert {job.method for job in comparison.results} == {"always", "delayed"}
    comparison.run(2, 1, listener)
    assert {call.args[0] for call in listener.on_result.call_args_list} == set(lost)
    changed = {file.parent.name for file, time in _written(directory).items() if before.get(file) != time}
    assert changed == {"dense-seed0", "coherent-seed0"}
    _assert_same_runs(finished[0].directory, directory, comparison.jobs)
    assert list(map(_numbers, comparison.finished_results)) == list(map(_numbers, finished[0].finished_results))
    assert read_json(directory / "results.json")["runs"] == [asdict(r) for r in comparison.finished_results]


def test_a_finished_comparison_trains_nothing(finished, directory):
    before = _written(directory)
    (directory / "results.json").unlink()
    comparison, listener = Comparison(RECIPE, COMPARED, [0], directory), _listener()
    assert comparison.results == finished[0].results
    comparison.run(1, 1, listener)
    assert listener.mock_calls == []
    assert _written(directory) == before
    assert len(read_json(directory / "results.json")["runs"]) == 4


def test_more_seeds_keep_the_finished_ones_and_come_in_the_order_of_the_seeds(finished, directory):
    comparison = Comparison(RECIPE, COMPARED, [1, 0], directory)
    assert [job.seed for job in comparison.jobs] == [1] * 4 + [0] * 4
    assert [job.method for job in comparison.jobs] == [*COMPARED, *COMPARED]
    assert set(comparison.results) == set(finished[0].results)
    assert comparison.finished_results == finished[0].finished_results


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"strength": 0.006}, rf"(penalty.strength={RECIPE.penalty.strength} there, 0.006 now)"),
        ({"epochs": 3, "penalty": "l2"}, r"(penalty.name='l1' there, 'l2' now, training.epochs=2 there, 3 now)"),
        ({"gate_threshold": 0.5}, r"(gate.threshold=0.75 there, 0.5 now)"),
    ],
)
def test_another_configuration_in_the_same_directory_is_an_error_that_names_the_difference(
    directory, changes, difference
):
    before = _written(directory)
    with pytest.raises(UserError, match="holds runs of another recipe") as caught:
        Comparison(_changed(**changes), COMPARED, [0], directory)
    assert difference in str(caught.value)
    assert str(directory) in str(caught.value)
    assert _written(directory) == before
    assert Recipe(**read_json(directory / "config.json")["config"]) == RECIPE


def test_a_field_that_only_the_other_configuration_has_is_named_too(directory):
    content = read_json(directory / "config.json")
    content["config"]["model"]["width"] = 0.5
    (directory / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="width"):
        Comparison(RECIPE, COMPARED, [0], directory)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"method": "dense", "accu', '{"config": 3}'])
@pytest.mark.parametrize("name", ["config.json", "runs/always-seed0/result.json"])
def test_a_damaged_file_is_an_error_that_names_it_or_its_directory(directory, name, content):
    (directory / name).write_text(content)
    with pytest.raises(UserError, match=r"is damaged|another recipe") as caught:
        Comparison(RECIPE, COMPARED, [0], directory)
    assert str(directory / name if name.startswith("runs") else directory) in str(caught.value)


@pytest.mark.parametrize("content", [None, "", '{"epoch": 1', '{"epoch": 1}\n'])
def test_lost_or_damaged_metrics_of_a_finished_run_are_an_error_that_names_the_file(directory, content):
    file = directory / "runs" / "always-seed0" / "metrics.jsonl"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=r"always-seed0/metrics\.jsonl"):
        Comparison(RECIPE, COMPARED, [0], directory).metrics(Job("always", 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "digit"}, "unknown data set 'digit'"),
        ({"model": "lenet"}, "unknown model 'lenet'"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"device": "meta"}, "device 'meta' cannot be used"),
        ({"device": "privateuseone"}, "device 'privateuseone' cannot be used"),
        ({"device": ""}, "device '' cannot be used"),
    ],
)
def test_a_configuration_that_cannot_run_is_an_error_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        Comparison(_changed(**changes), COMPARED, [0], tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_the_place_of_the_directory_is_an_error(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"cannot write to .*; choose another --out") as caught:
        Comparison(RECIPE, COMPARED, [0], tmp_path / place)
    assert str(tmp_path / place) in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_that_may_not_be_written_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", Mock(side_effect=PermissionError(13, "Permission denied")))
    with pytest.raises(UserError, match=r"cannot write to .*: Permission denied; choose another --out"):
        Comparison(RECIPE, COMPARED, [0], tmp_path)


class _FailingPool:
    """The first run succeeds, the second fails; no process is started."""

    def __init__(self, outcomes):
        self._outcomes = iter(outcomes)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        assert len(args) == 3

    def shutdown(self, *, cancel_futures):
        assert cancel_futures

    def submit(self, *_):
        future, outcome = Future(), next(self._outcomes)
        future.set_exception(outcome) if isinstance(outcome, BaseException) else future.set_result(outcome)
        return future


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (BrokenProcessPool("died"), UserError, "a training process died .* fewer --workers; finished runs are kept"),
        (OSError(28, "No space left on device"), UserError, "cannot write to .*: No space left on device"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_a_run_that_fails_leaves_the_finished_ones(finished, tmp_path, monkeypatch, failure, kind, message):
    done = replace(finished[0].results[Job("dense", 0)], seed=5)
    monkeypatch.setattr(pool, "ProcessPoolExecutor", lambda *args, **kwargs: _FailingPool([done, failure]))
    # one after the other, so that the first is seen before the second
    monkeypatch.setattr(pool, "wait", lambda pending, **kwargs: ([next(iter(pending))], None))
    comparison = Comparison(RECIPE, ["dense", "always"], [5], tmp_path)
    with pytest.raises(kind, match=message):
        comparison.run(1, 1, _listener())
    assert comparison.finished_results == [done]
    assert read_json(tmp_path / "results.json")["runs"] == [asdict(done)]


@pytest.mark.parametrize("name", ["weights.safetensors", "model.packed"])
def test_weights_that_cannot_be_written_are_an_error_and_the_run_is_not_finished(tmp_path, name):
    comparison, folder = Comparison(RECIPE, ["dense"], [0], tmp_path), tmp_path / "runs" / "dense-seed0"
    (folder / name).mkdir()
    with pytest.raises(UserError, match=r"cannot write to .*; choose another --out"):
        comparison.run(1, 1, _listener())
    assert not (folder / "result.json").exists()
    assert list(folder.glob("*.part")) == []


def test_a_packed_file_of_another_size_than_its_run_wrote_is_an_error_that_says_both(directory):
    folder = directory / "runs" / "always-seed0"
    written = read_json(folder / "result.json")["file_bytes"]
    contents = save_packed(load_file(folder / "weights.safetensors"), folder / "model.packed", "bf16")
    with pytest.raises(UserError, match=r"always-seed0/model\.packed is of") as caught:
        Comparison(RECIPE, COMPARED, [0], directory)
    assert f"is of {contents.file_bytes:,} bytes, its run wrote {written:,}" in str(caught.value)


def test_runs_made_before_there_were_packed_files_are_kept_as_they_are(directory):
    for folder in (directory / "runs").iterdir():
        (folder / "model.packed").unlink()
        result = read_json(folder / "result.json")
        del result["file_bytes"], result["dense_bytes"]
        (folder / "result.json").write_text(json.dumps(result))
    comparison, listener = Comparison(RECIPE, COMPARED, [0], directory), _listener()
    comparison.run(1, 1, listener)
    assert listener.mock_calls == []
    assert {(r.file_bytes, r.dense_bytes, r.byte_ratio) for r in comparison.finished_results} == {(None, None, None)}
    assert {run["file_bytes"] for run in read_json(directory / "results.json")["runs"]} == {None}


def test_results_that_cannot_be_written_at_the_end_are_an_error(directory):
    (directory / "results.json").unlink()
    (directory / "results.json").mkdir()
    with pytest.raises(UserError, match="cannot write to"):
        Comparison(RECIPE, COMPARED, [0], directory).run(1, 1, _listener())
