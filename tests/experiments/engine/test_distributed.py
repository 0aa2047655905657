"""One run in several processes of torchrun: the same as in one, bit for bit the same after a stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from experiments.engine.together import data, small
from strongreg import cli
from strongreg.experiments.data import Augmentation
from strongreg.experiments.engine import distributed, load_history, train
from strongreg.experiments.engine.batches import Batches
from strongreg.experiments.engine.checkpoint import load_checkpoint, save_checkpoint
from strongreg.experiments.engine.distributed import ALONE, Launch, ProcessGroup, end_process, joined
from strongreg.experiments.errors import UserError

TESTS = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "OMP_NUM_THREADS": "1",
}
FILES = ("metrics.jsonl", "weights.safetensors", "model.packed", "history.safetensors", "recipe.toml")


def _case(method: str, stop_after: tuple[int, ...] = (), leave: bool = False, **changes: Any) -> dict[str, Any]:
    return {"method": method, "changes": changes, "stop_after": stop_after, "leave": leave}


# of 257 images the last batch of 64 holds one, of which the second process has none; batches of 50 leave 7: 4 and 3
EXACT = {
    "dense": _case("dense"),
    "coherent": _case("coherent"),
    "magnitude": _case("magnitude", pruning__compression=5.0),
    "clipped": _case("dense", batch_size=50, optimizer__clip_norm=0.5),
    "accumulated": _case("coherent", batch_size=50, training__accumulate=3),
    "adamw": _case("coherent", optimizer__name="adamw", lr=1e-3, strength=1.0),
}
RESTLESS = {"model": "experiments.engine.together:restless", "batch_size": 63, "data__crop_padding": 1}
CASES = {
    **EXACT,
    "whole": _case("coherent", **RESTLESS),
    "parts": _case("coherent", (2, 5, 3), **RESTLESS),
    "whole_magnitude": _case("magnitude", training__accumulate=2, training__checkpoint_every=1),
    "parts_magnitude": _case("magnitude", (5, 6), training__accumulate=2, training__checkpoint_every=1),
    "left": _case("dense", (3,), leave=True),
    "dead": _case("always", strength=100.0, training__stop_when_dead=2, epochs=5),
}


@dataclass
class Outcome:
    directory: Path
    found: list[dict[str, Any]]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Outcome:
    """Every case, trained by two processes."""
    directory = tmp_path_factory.mktemp("two")
    command = [*TORCHRUN, "-m", "experiments.engine.together", str(directory), json.dumps(CASES)]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return Outcome(directory, [json.loads((directory / f"process{rank}.json").read_text()) for rank in range(2)])


def _lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------- two processes


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_two_processes_train_what_one_trains(two, tmp_path, name):
    """In float64, where sums in another order differ by about 1e-16: after 30 to 36 steps by less than 1e-10."""
    case = EXACT[name]
    alone = train(small(**case["changes"]), case["method"], 0, data(), tmp_path)
    result = json.loads((two.directory / name / "result.json").read_text())
    same = {"train_seconds": 0, "open_fraction": pytest.approx(alone.open_fraction, abs=1e-12)}
    same["file_bytes"] = pytest.approx(alone.file_bytes, rel=0.01)  # the last digits are coded a little better or worse
    assert {**result, **same} == {**vars(alone), **same}
    assert alone.alive
    assert (alone.num_nonzero < alone.num_weights) == (case["method"] != "dense")
    ours, theirs = (load_file(folder / "weights.safetensors") for folder in (tmp_path, two.directory / name))
    assert list(ours) == list(theirs)  # without the "module." of DistributedDataParallel
    for key in ours:
        assert torch.equal(ours[key] == 0, theirs[key] == 0)
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-10, atol=1e-12)
    before, after = (load_history(folder / "history.safetensors") for folder in (tmp_path, two.directory / name))
    np.testing.assert_array_equal(before["open"], after["open"])
    np.testing.assert_allclose(before["coherence"], after["coherence"], rtol=1e-5)
    for line, other in zip(_lines(tmp_path), _lines(two.directory / name), strict=True):
        assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-6)
        assert line["accuracy"] == other["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_processes_hold_the_same_weights_bit_for_bit(two, name):
    first, second = (found[name] for found in two.found)
    assert first["params"] == second["params"]
    assert first["epochs"] == second["epochs"]
    assert first["draw"] != second["draw"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "_magnitude"])
def test_a_stop_that_one_process_hears_stops_all_and_the_run_goes_on_bit_for_bit(two, name):
    assert [found[f"parts{name}"]["num_stops"] for found in two.found] == [len(CASES[f"parts{name}"]["stop_after"])] * 2
    for file in FILES:
        parts, whole = (two.directory / f"{kind}{name}" / file for kind in ("parts", "whole"))
        assert parts.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_is_refused_by_one(two):
    assert (two.directory / "left" / "checkpoint.pt").exists()
    with pytest.raises(UserError, match=r"checkpoint.pt is of a run in 2 processes, this is one in 1: start as many"):
        train(small(), "dense", 0, data(), two.directory / "left")


@pytest.mark.slow
def test_a_dead_run_ends_in_all_processes(two):
    assert [found["dead"]["epochs"] for found in two.found] == [2, 2]
    assert len(_lines(two.directory / "dead")) == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="schedules single threads, as Linux lets it")
def test_the_threads_of_gloo_do_not_abort_a_process_that_ends_well():
    command = [*TORCHRUN, "-m", "experiments.engine.together"]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert "terminate called" not in ended.stderr


def test_a_process_that_never_joined_others_ends_as_ever(monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail(f"_exit({code})"))
    with pytest.raises(SystemExit) as ended:
        end_process(3)
    assert ended.value.code == 3


# ---------------------------------------------------------------------- the command

COMMAND = [*TORCHRUN, "-m", "strongreg", "train", "--model", "lenet300", "--epochs", "20", "--out", "out"]


def _ended(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(COMMAND, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Where a run of the command has ended that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    done = _ended(folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("lenet300 on digits") == done.stderr.count("wrote out/results.json") == 1
    return folder


RUN = Path("out") / "runs" / "coherent-seed0"


def _begun(command: list[str], folder: Path, num_epochs: int) -> subprocess.Popen[str]:
    """The command after so many epochs."""
    process = subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = folder / RUN / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < num_epochs):
        time.sleep(0.01)
    return process


@pytest.mark.slow
def test_the_command_stops_with_torchrun_and_goes_on_bit_for_bit(tmp_path, whole):
    process = _begun(COMMAND, tmp_path, num_epochs=2)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=60)
    assert process.returncode != 0
    assert messages.count("strongreg: error: interrupted: 0 of 1 runs are finished and kept in out") == 1, messages
    assert (tmp_path / RUN / "checkpoint.pt").exists()

    on = _ended(tmp_path)
    assert on.returncode == 0, on.stderr
    assert "0 finished runs found in out, 1 to train, 1 of them from a checkpoint" in on.stderr
    for file in FILES:
        assert (whole / RUN / file).read_bytes() == (tmp_path / RUN / file).read_bytes()
    assert sorted(p.name for p in (tmp_path / RUN).iterdir()) == sorted([*FILES, "result.json"])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of child processes")
@pytest.mark.parametrize("killed", [0, 1])
def test_torchrun_restarts_the_command_after_a_killed_process_and_it_goes_on_bit_for_bit(tmp_path, whole, killed):
    process = _begun([*TORCHRUN, "--max-restarts", "1", *COMMAND[len(TORCHRUN) :]], tmp_path, num_epochs=12)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[killed]), signal.SIGKILL)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 0, messages
    assert "1 of them from a checkpoint" in messages
    assert "Traceback" not in messages
    for file in FILES:
        assert (whole / RUN / file).read_bytes() == (tmp_path / RUN / file).read_bytes()


def _launched(monkeypatch, rank: int, size: int = 2) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("command", [["compare"], ["tolerance"], ["diagnose", "x"], ["report", "x"]])
def test_the_other_commands_say_once_that_only_train_runs_under_torchrun(monkeypatch, capsys, command):
    outcomes = []
    for rank in (0, 1):
        _launched(monkeypatch, rank)
        with pytest.raises(SystemExit) as ended:
            cli.main(command)
        outcomes.append((ended.value.code, capsys.readouterr().err))
    text = f"strongreg: error: {command[0]} starts its own processes: under torchrun only train runs\n"
    # a second process that failed too would make torchrun end the first before it has said why
    assert outcomes == [(2, text), (0, "")]


# ---------------------------------------------------------------------- without other processes


@pytest.mark.parametrize(
    ("environment", "launch"),
    [
        ({}, Launch()),
        ({"WORLD_SIZE": "4"}, Launch()),
        ({"RANK": "1", "WORLD_SIZE": "x", "LOCAL_RANK": "1"}, Launch()),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Launch(5, 8, 1)),
    ],
    ids=str,
)
def test_only_all_of_torchruns_variables_make_several_processes(environment, launch):
    assert Launch.read(environment) == launch


def test_one_process_of_torchrun_is_alone(monkeypatch):
    _launched(monkeypatch, 0, size=1)
    with joined() as world:
        assert world is ALONE


def test_one_process_draws_what_it_drew_and_adds_no_layer():
    model, state = torch.nn.Linear(1, 1), torch.get_rng_state()
    ALONE.seed_draws(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert ALONE.parallel(model) is model
    assert ALONE.is_main
    assert ALONE.steps_between_questions(torch.device("cuda")) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mps", r"device 'mps': the processes of torchrun train on cpu, or on cuda, one GPU each"),
        ("cuda:1", r"device 'cuda:1': the processes of torchrun"),
        ("cuda", r"2 GPUs here: give torchrun --nproc-per-node 2, or --device cpu"),
    ],
)
def test_a_process_without_a_device_of_its_own_is_an_error(monkeypatch, name, message):
    monkeypatch.setattr(distributed.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=message):
        ProcessGroup(2, 3, 2).device(name)
    assert ProcessGroup(2, 3, 2).device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("batch_size", [64, 50, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_shares_of_a_batch_weigh_as_its_images_do(batch_size, world_size):
    images = data()
    shares = [
        Batches(images, batch_size, Augmentation(), 0, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for whole, *parts in zip(
        Batches(images, batch_size, Augmentation(), 0).epoch(), *(share.epoch() for share in shares), strict=True
    ):
        assert whole[2] == 1.0
        assert sum(factor for _, _, factor in parts) / world_size == pytest.approx(1.0)
        for pixels, labels, factor in parts:
            assert len(pixels) == len(labels) >= 1
            assert factor in (0.0, len(pixels) * world_size / len(whole[0]))
        taken = torch.cat([pixels for pixels, _, factor in parts if factor > 0]).flatten(1)
        assert sorted(taken.tolist()) == sorted(whole[0].flatten(1).tolist())


def test_a_checkpoint_must_be_of_as_many_processes(tmp_path):
    save_checkpoint(tmp_path, {"fingerprint": "x", "world_size": 1})
    assert load_checkpoint(tmp_path, "x") is not None
    with pytest.raises(UserError, match=r"of a run in 1 processes, this is one in 2"):
        load_checkpoint(tmp_path, "x", world_size=2)
