"""A run that was stopped or killed goes on bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from experiments.recipes import NEEDS_MUON, recipe
from strongreg.experiments.data import Split, load_data
from strongreg.experiments.engine import RunStoppedError, train
from strongreg.experiments.engine.checkpoint import save_checkpoint
from strongreg.experiments.errors import UserError

FILES = ("metrics.jsonl", "weights.safetensors", "model.packed", "history.safetensors")


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", num_train=300, validation_share=0.2)


def _recipe(**changes):
    small = {"model": "lenet300", "epochs": 4, "batch_size": 64, "strength": 0.02, "data__crop_padding": 1}
    return recipe(**(small | changes))


def _train(directory: Path, data, method="coherent", stop_after=(), **changes):
    """Train to the end, stopped each time after so many steps."""
    directory.mkdir()
    for steps in stop_after:
        calls = iter([False] * (steps - 1) + [True])
        with pytest.raises(RunStoppedError):
            train(_recipe(**changes), method, 0, data, directory, should_stop=lambda calls=calls: next(calls))
        assert (directory / "checkpoint.pt").exists()
    return train(_recipe(**changes), method, 0, data, directory)


@pytest.mark.parametrize("method", ["dense", "coherent", "magnitude", "oneshot"])
@pytest.mark.parametrize("stop_after", [(1,), (4, 1, 5), (5,), (7, 3), (10,)], ids=str)
def test_a_stopped_run_goes_on_bit_for_bit_in_the_middle_of_an_epoch_too(tmp_path, digits, method, stop_after):
    whole = _train(tmp_path / "whole", digits, method)
    parts = _train(tmp_path / "parts", digits, method, stop_after)
    for name in FILES:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert {**vars(whole), "train_seconds": 0} == {**vars(parts), "train_seconds": 0}
    assert not (tmp_path / "parts" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "vgg_narrow", "model__dropout": 0.5, "epochs": 2},
        {"optimizer__name": "adamw", "lr": 1e-3, "penalty": "l2"},
        pytest.param({"optimizer__name": "muon"}, marks=NEEDS_MUON),
        {"training__accumulate": 3, "optimizer__clip_norm": 1.0},
        {"training__precision": "bf16", "optimizer__schedule": "one_cycle", "optimizer__warmup_share": 0.3},
        {"training__history_every": 3, "training__checkpoint_every": 1},
    ],
    ids=str,
)
def test_every_kind_of_run_goes_on_bit_for_bit(tmp_path, changes):
    size = {"data__crop_padding": 0} if "model" in changes else {}
    data = _upscaled(load_data("digits", num_train=300)) if "model" in changes else load_data("digits", num_train=300)
    _train(tmp_path / "whole", data, **changes, **size)
    _train(tmp_path / "parts", data, stop_after=(3, 4), **changes, **size)
    for name in FILES:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def _upscaled(data):
    def larger(split):
        return type(split)(split.images.repeat_interleave(2, 2).repeat_interleave(2, 3), split.labels)

    return dataclasses.replace(
        data, train=larger(data.train), validation=larger(data.validation), test=larger(data.test)
    )


def test_a_damaged_checkpoint_is_named_and_one_of_another_run_is_refused(tmp_path, digits):
    _ = _stopped(tmp_path / "a", digits)
    file = tmp_path / "a" / "checkpoint.pt"
    content = file.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"nonsense" * 100):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"checkpoint.pt is damaged, or of another version of strongreg: delete it"):
            train(_recipe(), "coherent", 0, digits, tmp_path / "a")
    file.write_bytes(content)
    for other in ({"seed": 1}, {"method": "always"}, {"recipe": _recipe(lr=0.5)}):
        arguments = {"recipe": _recipe(), "method": "coherent", "seed": 0, **other}
        with pytest.raises(UserError, match=r"of another recipe, method, seed or data"):
            train(**arguments, data=digits, directory=tmp_path / "a")
    torch.save({"version": 0}, file)
    with pytest.raises(UserError, match=r"another version"):
        train(_recipe(), "coherent", 0, digits, tmp_path / "a")


def _stopped(directory: Path, data) -> Path:
    directory.mkdir()
    with pytest.raises(RunStoppedError):
        train(_recipe(), "coherent", 0, data, directory, should_stop=lambda: True)
    return directory


def wide(image_shape, num_classes):
    """A network of the width that the environment says."""
    width = int(os.environ["WIDTH"])
    num_inputs = image_shape[1] * image_shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(num_inputs, width), nn.ReLU(), nn.Linear(width, num_classes))


def test_a_network_of_another_width_than_when_it_was_stopped_is_an_error_that_says_so(tmp_path, digits, monkeypatch):
    arguments = (_recipe(model=f"{__name__}:wide"), "coherent", 0, digits, tmp_path)
    monkeypatch.setenv("WIDTH", "8")
    with pytest.raises(RunStoppedError):
        train(*arguments, should_stop=lambda: True)
    monkeypatch.setenv("WIDTH", "9")
    with pytest.raises(
        UserError, match=r"checkpoint\.pt does not fit .*size mismatch for 1\.weight.*delete the"
    ) as caught:
        train(*arguments)
    assert "\n" not in str(caught.value)


def test_a_run_does_not_go_on_with_other_images(tmp_path, digits):
    directory = _stopped(tmp_path / "a", digits)
    images, labels = digits.train.images, digits.train.labels
    for other in (Split(images, labels.flip(0)), Split(255 - images, labels), Split(images[:100], labels[:100])):
        with pytest.raises(UserError, match="of another recipe, method, seed or data"):
            train(_recipe(), "coherent", 0, dataclasses.replace(digits, train=other), directory)


_DAMAGES = {
    "no lines": lambda state: state.pop("lines"),
    "epoch of text": lambda state: state.update(epoch="x"),
    "epoch beyond": lambda state: state.update(epoch=99),
    "batch below": lambda state: state.update(batch=-1),
    "no time": lambda state: state.update(seconds=None),
    "lines of numbers": lambda state: state.update(lines=[1]),
    "no pruner": lambda state: state.update(pruner=None),
    "optimizers of text": lambda state: state.update(optimizers="x"),
    "pruner misshaped": lambda state: state["pruner"].update({"1.weight": torch.zeros(2, dtype=torch.bool)}),
    "momentum misshaped": lambda state: state["optimizers"][0]["state"][0].update(momentum_buffer=torch.zeros(3)),
    "no weight": lambda state: state["model"].pop("1.weight"),
}


@pytest.mark.parametrize("damage", _DAMAGES)
def test_a_checkpoint_with_entries_that_do_not_fit_is_named(tmp_path, digits, damage):
    arguments = (_recipe(pruning__every=1), "magnitude", 0, digits, tmp_path)
    calls = iter([False, False, True])
    with pytest.raises(RunStoppedError):
        train(*arguments, should_stop=lambda: next(calls))
    content = (tmp_path / "checkpoint.pt").read_bytes()[hashlib.sha256().digest_size :]
    state = torch.load(io.BytesIO(content), weights_only=True)
    _DAMAGES[damage](state)
    save_checkpoint(tmp_path, state)
    with pytest.raises(UserError, match=r"checkpoint\.pt does not fit the network .* delete the file"):
        train(*arguments)


def test_a_failed_write_of_a_checkpoint_leaves_the_one_before(tmp_path, digits, monkeypatch):
    directory = _stopped(tmp_path / "a", digits)
    before = (directory / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            train(_recipe(), "coherent", 0, digits, directory, should_stop=lambda: True)
    assert (directory / "checkpoint.pt").read_bytes() == before


# ---------------------------------------------------------------------- the command, killed

OPTIONS = ["--model", "lenet300", "--epochs", "24", "--set", "training.checkpoint_every=2", "--out", "out"]
COMMAND = [sys.executable, "-m", "strongreg", "train", *OPTIONS]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(COMMAND, cwd=directory, check=True, capture_output=True)
    return _outcome(directory)


def _outcome(directory: Path) -> dict[str, bytes]:
    run = directory / "out" / "runs" / "coherent-seed0"
    return {name: (run / name).read_bytes() for name in FILES}


def _disturb(directory: Path, number: int, delays: list[float]) -> int:
    """Start the command, send it a signal after each delay once it trains, and at last let it end."""
    hits = 0
    metrics = directory / "out" / "runs" / "coherent-seed0" / "metrics.jsonl"
    for delay in delays:
        process = subprocess.Popen(COMMAND, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        before = metrics.stat().st_mtime_ns if metrics.exists() else 0
        while process.poll() is None and (not metrics.exists() or metrics.stat().st_mtime_ns == before):
            time.sleep(0.01)
        time.sleep(delay)
        hits += process.poll() is None
        process.send_signal(number)
        process.communicate()
    subprocess.run(COMMAND, cwd=directory, check=True, capture_output=True)
    return hits


@pytest.mark.slow
def test_a_killed_command_goes_on_from_its_last_checkpoint(tmp_path, undisturbed):
    generator = random.Random(0)
    assert _disturb(tmp_path, signal.SIGKILL, [generator.uniform(0.0, 0.4) for _ in range(2)]) >= 1
    assert _outcome(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_terminated_command_saves_a_checkpoint_in_the_middle_and_goes_on(tmp_path, undisturbed):
    assert _disturb(tmp_path, signal.SIGTERM, [0.2]) == 1
    assert _outcome(tmp_path) == undisturbed


def test_weights_of_a_resumed_run_are_readable(undisturbed, tmp_path):
    (tmp_path / "w").write_bytes(undisturbed["weights.safetensors"])
    assert set(load_file(tmp_path / "w")) == {f"{i}.{kind}" for i in (1, 3, 5) for kind in ("weight", "bias")}
