"""TensorBoard gets the epochs' numbers where it is wanted, and changes nothing else."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest

from experiments.finished import RUN_FILES
from experiments.recipes import recipe
from strongreg.experiments.compare import Comparison
from strongreg.experiments.data import load_data
from strongreg.experiments.engine import RunStoppedError, train
from strongreg.experiments.errors import UserError


def _recipe(*, wanted: bool = True, **changes):
    return recipe(**{"model": "lenet300", "epochs": 3, "training__tensorboard": wanted, **changes})


class _Writer:
    """What torch's writer is asked to do."""

    opened: list[_Writer]

    def __init__(self, log_dir: str, purge_step: int) -> None:
        self.log_dir, self.purge_step = log_dir, purge_step
        self.scalars: list[tuple[str, float, int]] = []
        self.flushed, self.closed = 0, False
        self.opened.append(self)

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars.append((tag, scalar_value, global_step))

    def flush(self) -> None:
        self.flushed = len(self.scalars)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def opened(monkeypatch) -> list[_Writer]:
    """The writers of a TensorBoard that is installed."""
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = _Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(_Writer, "opened", [], raising=False)
    return _Writer.opened


@pytest.fixture
def missing(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", num_train=200)


def test_every_number_of_every_epoch_is_written(tmp_path, digits, opened):
    train(_recipe(), "coherent", 0, digits, tmp_path)
    (writer,) = opened
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = [(name, value, line["epoch"]) for line in lines for name, value in line.items() if name != "epoch"]
    assert writer.scalars == expected
    assert {"train_loss", "accuracy", "compression", "open_fraction"} <= {name for name, *_ in expected}
    assert (writer.log_dir, writer.purge_step) == (str(tmp_path), 1)
    assert (writer.flushed, writer.closed) == (len(expected), True)


def test_numbers_that_there_are_not_are_left_out(tmp_path, digits, opened):
    train(_recipe(strength=1000.0, strength_ramp_share=0.0), "always", 0, digits, tmp_path)
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["compression"] is None
    assert "compression" not in {name for name, *_ in opened[0].scalars}


def test_a_run_that_goes_on_takes_back_what_comes_after_its_checkpoint(tmp_path, digits, opened):
    calls = iter([False] * 6 + [True])  # 4 steps an epoch
    with pytest.raises(RunStoppedError):
        train(_recipe(), "coherent", 0, digits, tmp_path, should_stop=lambda: next(calls))
    train(_recipe(), "coherent", 0, digits, tmp_path)
    first, second = opened
    assert first.closed
    assert (first.purge_step, {epoch for *_, epoch in first.scalars}) == (1, {1})
    assert (second.purge_step, {epoch for *_, epoch in second.scalars}) == (2, {2, 3})


@pytest.mark.usefixtures("opened")
def test_it_changes_no_number_and_no_file(tmp_path, digits):
    for name, wanted in (("with", True), ("without", False)):
        (tmp_path / name).mkdir()
        train(_recipe(wanted=wanted), "coherent", 0, digits, tmp_path / name)
        assert sorted(file.name for file in (tmp_path / name).iterdir()) == RUN_FILES
    for file in ("metrics.jsonl", "weights.safetensors", "model.packed"):
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()


def test_by_default_it_is_not_touched(tmp_path, digits, opened):
    train(recipe(model="lenet300", epochs=1), "dense", 0, digits, tmp_path)
    assert opened == []


@pytest.mark.usefixtures("opened")
def test_runs_go_on_in_the_same_directory_with_it_and_without(tmp_path, digits):
    Comparison(_recipe(), ["dense"], [0], tmp_path)
    folder = tmp_path / "runs/dense-seed0"
    calls = iter([False] * 2 + [True])
    with pytest.raises(RunStoppedError):
        train(_recipe(), "dense", 0, digits, folder, should_stop=lambda: next(calls))
    assert Comparison(_recipe(wanted=False), ["dense"], [0], tmp_path).num_started == 1
    assert train(_recipe(wanted=False), "dense", 0, digits, folder).epochs == 3


@pytest.mark.usefixtures("missing")
def test_a_missing_package_is_one_error_before_anything_is_trained_or_written(tmp_path, digits):
    with pytest.raises(UserError, match="pip install tensorboard"):
        Comparison(_recipe(), ["dense"], [0], tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="pip install tensorboard"):
        train(_recipe(), "dense", 0, digits, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
    Comparison(_recipe(wanted=False), ["dense"], [0], tmp_path / "new")
