"""One training run: plain torch, bit for bit, and files that tell the truth about it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from experiments.finished import RUN_FILES
from experiments.recipes import recipe
from strongreg import L1, AlwaysOpen, CoherenceGate, Constant, CosineRamp, Delay, Refit
from strongreg.compression import load_packed
from strongreg.experiments.data import ImageData, Split
from strongreg.experiments.engine import EpochMetrics, RunResult, build_regularizers, evaluate, loop, train
from strongreg.experiments.engine.measurement import Score
from strongreg.experiments.engine.optimizers import build_optimizers
from strongreg.experiments.files import read_json
from strongreg.experiments.models import build_model
from strongreg.experiments.recipe import COMPARED, Recipe

NUM_BATCHES = 4  # the 50 training images below in batches of 16, the last of 2


def _recipe(**changes) -> Recipe:
    return recipe(**({"model": "lenet300", "epochs": 4, "batch_size": 16, "strength": 0.02} | changes))


@pytest.fixture(scope="module")
def data() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(70) % 3
    images = torch.rand(70, 1, 4, 4, generator=generator) / 2 + labels.view(-1, 1, 1, 1) / 4
    images = (255 * images).to(torch.uint8)
    nothing = Split(images[:0], labels[:0])
    train, test = Split(images[:50], labels[:50]), Split(images[50:], labels[50:])
    return ImageData("stripes", train, nothing, test, 3, ("a", "b", "c"), 255.0, None, None)


def _train(directory, data, method="coherent", seed=0, on_epoch=lambda metrics: None, **changes) -> RunResult:
    directory.mkdir(parents=True, exist_ok=True)
    return train(_recipe(**changes), method, seed, data, directory, on_epoch)


def _lines(directory) -> list[dict]:
    def reject(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=reject) for line in lines]


def _bare_training(data, seed, config) -> tuple[nn.Module, list[float]]:
    """What a user would write without any regularizer."""
    torch.manual_seed(seed)
    model = build_model(config.model.name, data.image_shape, data.num_classes)
    sgd, training = config.optimizer, config.training
    optimizer = torch.optim.SGD(model.parameters(), lr=sgd.lr, momentum=sgd.momentum, weight_decay=sgd.weight_decay)
    order = torch.Generator().manual_seed(seed)
    num_steps, step, losses = training.epochs * NUM_BATCHES, 0, []
    for _ in range(training.epochs):
        indices, in_epoch = torch.randperm(50, generator=order), []
        for first in range(0, 50, training.batch_size):
            batch = indices[first : first + training.batch_size]
            decay = max(0.0, step - num_steps / 2) / (num_steps / 2)
            optimizer.param_groups[0]["lr"] = sgd.lr * (1 + math.cos(math.pi * decay)) / 2
            optimizer.zero_grad()
            images = data.train.images[batch].float() / 255
            loss = functional.cross_entropy(model(images), data.train.labels[batch])
            loss.backward()
            optimizer.step()
            in_epoch.append(loss.item())
            step += 1
        losses.append(sum(in_epoch) / len(in_epoch))
    return model, losses


# ---------------------------------------------------------------------- the training itself


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(
    "changes", [{}, {"model": "plain_cnn", "weight_decay": 1e-3}, {"momentum": 0.0, "strength": 9.0}]
)
def test_a_dense_run_is_a_bare_training_loop_bit_for_bit(tmp_path, data, seed, changes):
    result = _train(tmp_path, data, "dense", seed, **changes)
    model, losses = _bare_training(data, seed, _recipe(**changes))
    saved = load_file(tmp_path / "weights.safetensors")
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())
    assert [line["train_loss"] for line in _lines(tmp_path)] == pytest.approx(losses, rel=1e-6)
    assert result.accuracy == evaluate(model, data.test, data.normalize).accuracy


@pytest.mark.parametrize("method", COMPARED)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, data, method):
    results = [_train(tmp_path / name, data, method, seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))]
    same, again, other = ({**asdict(result), "train_seconds": 0} for result in results)
    assert same == again
    assert other["seed"] == 4
    for name in ("metrics.jsonl", "weights.safetensors", "model.packed"):
        a, b, c = ((tmp_path / run / name).read_bytes() for run in "abc")
        assert a == b
        assert a != c


def test_a_run_does_not_depend_on_random_numbers_drawn_before_it(tmp_path, data):
    _train(tmp_path / "a", data)
    torch.rand(100)
    _train(tmp_path / "b", data)
    a, b = ((tmp_path / run / "weights.safetensors").read_bytes() for run in "ab")
    assert a == b


@pytest.mark.parametrize("hold", [0.0, 0.25, 0.5, 1.0])
def test_the_learning_rate_is_held_and_then_follows_half_a_cosine(tmp_path, data, hold):
    _train(tmp_path, data, "dense", epochs=4, lr=0.02, lr_hold_share=hold)
    num_steps, num_held = 4 * NUM_BATCHES, round(4 * hold) * NUM_BATCHES
    last_steps = [epoch * NUM_BATCHES - 1 for epoch in (1, 2, 3, 4)]
    expected = [
        0.02 if step < num_held else 0.01 * (1 + math.cos(math.pi * (step - num_held) / (num_steps - num_held)))
        for step in last_steps
    ]
    rates = [line["lr"] for line in _lines(tmp_path)]
    assert rates == pytest.approx(expected)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0


@pytest.mark.parametrize("method", ["always", "delayed", "coherent"])
def test_zeros_stay_zero_during_the_refit_and_the_kept_weights_move(tmp_path, data, monkeypatch, method):
    models, epochs = [], []

    def build(*args, **options):
        models.append(build_model(*args, **options))
        return models[0]

    def on_epoch(_):
        epochs.append([p.detach().clone() for p in models[0].parameters() if p.dim() > 1])

    monkeypatch.setattr(loop, "build_model", build)
    _train(tmp_path, data, method, on_epoch=on_epoch, epochs=6, gate_threshold=0.1)
    _, _, at_start, *refit = epochs
    assert sum(int((weight == 0).sum()) for weight in at_start) > 100
    for weights in refit:
        for before, after in zip(at_start, weights, strict=True):
            assert torch.equal(before == 0, after == 0)
            assert not torch.equal(before, after)
    lines = _lines(tmp_path)
    assert len({line["num_nonzero"] for line in lines[2:]}) == 1
    assert [line["open_fraction"] for line in lines[3:]] == [0.0, 0.0, 0.0]
    assert [line["penalty_norm"] for line in lines[3:]] == [0.0, 0.0, 0.0]


# ---------------------------------------------------------------------- the regularizer of each method


def _regularizer(method, **changes):
    model, built = build_model("lenet300", (1, 4, 4), 3), _recipe(**changes)
    optimizers = build_optimizers(model, built.optimizer)
    (regularizer,) = build_regularizers(model, built, method, optimizers, 12 * NUM_BATCHES)
    return regularizer


@pytest.mark.parametrize(
    ("method", "gate"),
    [("always", AlwaysOpen()), ("delayed", Delay(2 * NUM_BATCHES)), ("coherent", CoherenceGate(0.3))],
)
def test_methods_differ_in_nothing_but_the_gate(method, gate):
    regularizer = _regularizer(method, epochs=12, gate_threshold=0.3)
    assert regularizer.gate == gate
    delay = gate.steps if method == "delayed" else 0
    ramp = CosineRamp(10, initial=1.0, final=0.2, start=delay)  # a fifth of the 48 steps, from where the penalty begins
    assert regularizer.schedule == Refit(6 * NUM_BATCHES, before=ramp)
    assert {target.name for target in regularizer.targets} == {"1.weight", "3.weight", "5.weight"}
    assert all(target.penalty == L1(0.02) for target in regularizer.targets)


def test_the_dense_method_carries_a_penalty_of_strength_0():
    regularizer = _regularizer("dense")
    assert all(target.penalty == L1(0.0) for target in regularizer.targets)
    assert regularizer.schedule == Constant()


def test_without_refit_the_penalty_acts_to_the_end(tmp_path, data):
    assert _regularizer("always", refit_share=0.0).schedule == CosineRamp(10, initial=1.0, final=0.2)
    assert _regularizer("always", refit_share=0.0, strength_ramp_share=0.0).schedule == Constant()
    result = _train(tmp_path, data, "always", refit_share=0.0)
    assert [line["open_fraction"] for line in _lines(tmp_path)] == [1.0] * 4
    assert result.open_fraction == 1.0


def test_the_penalty_acts_also_in_a_run_of_one_epoch(tmp_path, data):
    assert _train(tmp_path, data, "always", epochs=1).open_fraction > 0


# ---------------------------------------------------------------------- what is written


@pytest.mark.parametrize("method", COMPARED)
def test_every_epoch_is_one_line_of_finite_json_and_is_announced(tmp_path, data, method):
    heard: list[EpochMetrics] = []
    result = _train(tmp_path, data, method, on_epoch=heard.append)
    lines = _lines(tmp_path)
    assert lines == [asdict(metrics) for metrics in heard]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert all(line.keys() == {field.name for field in fields(EpochMetrics)} for line in lines)
    assert all(0 <= line[share] <= 1 for line in lines for share in ("accuracy", "open_fraction"))
    assert all(-1 <= line["coherence"] <= 1.000001 for line in lines)
    assert all(line["gradient_norm"] > 0 and line["weight_norm"] > 0 for line in lines)
    assert (lines[-1]["accuracy"], lines[-1]["num_nonzero"]) == (result.accuracy, result.num_nonzero)
    assert sum(line["open_fraction"] for line in lines) / 4 == pytest.approx(result.open_fraction, abs=1e-6)


def test_an_epoch_is_measured_by_its_own_steps(tmp_path, data):
    _train(tmp_path, data, "delayed", epochs=4, delay_share=0.25, refit_share=0.25)
    assert [line["open_fraction"] for line in _lines(tmp_path)] == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("method", COMPARED)
def test_the_result_agrees_with_the_saved_weights(tmp_path, data, method):
    result = _train(tmp_path, data, method, seed=2)
    saved = load_file(tmp_path / "weights.safetensors")
    weights = [tensor for tensor in saved.values() if tensor.dim() > 1]
    assert result.num_weights == sum(w.numel() for w in weights) == 16 * 300 + 300 * 100 + 100 * 3
    assert result.num_nonzero == sum(int((w != 0).sum()) for w in weights)
    assert result.compression == result.num_weights / result.num_nonzero
    assert result.num_parameters == result.num_weights + 300 + 100 + 3
    assert result.num_nonzero_parameters == sum(int((tensor != 0).sum()) for tensor in saved.values())
    model = build_model("lenet300", (1, 4, 4), 3)
    model.load_state_dict(saved)
    assert result.accuracy == evaluate(model, data.test, data.normalize).accuracy
    assert result.alive == (result.accuracy > 0.3825)
    assert (result.method, result.seed, result.strength) == (method, 2, 0.0 if method == "dense" else 0.02)
    assert result.train_seconds > 0
    assert read_json(tmp_path / "result.json") == asdict(result)


def _bits(state) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous().view(torch.uint8) for name, tensor in state.items()}


def _assert_packed_is_saved(directory) -> None:
    saved, packed = _bits(load_file(directory / "weights.safetensors")), _bits(load_packed(directory / "model.packed"))
    assert packed.keys() == saved.keys()
    assert all(torch.equal(packed[name], tensor) for name, tensor in saved.items())


@pytest.mark.parametrize("method", [*COMPARED, "magnitude", "oneshot"])
def test_the_packed_file_holds_the_weights_bit_for_bit_and_the_result_its_size(tmp_path, data, method):
    result = _train(tmp_path, data, method, pruning__compression=20.0)
    _assert_packed_is_saved(tmp_path)
    assert result.file_bytes == (tmp_path / "model.packed").stat().st_size
    assert result.dense_bytes == 4 * (16 * 300 + 300 * 100 + 100 * 3 + 300 + 100 + 3) == 142012
    assert result.byte_ratio == 142012 / result.file_bytes
    assert (result.byte_ratio > 10) == (result.compression > 15) == (method in ("magnitude", "oneshot"))


@pytest.mark.parametrize("name", ["weights.safetensors", "model.packed"])
def test_a_run_whose_weights_cannot_be_written_is_not_finished_and_goes_on(tmp_path, data, name):
    (tmp_path / name).mkdir()
    with pytest.raises(OSError, match="directory"):
        _train(tmp_path, data)
    assert not (tmp_path / "result.json").exists()
    (tmp_path / name).rmdir()
    _train(tmp_path, data)
    assert sorted(file.name for file in tmp_path.iterdir()) == RUN_FILES


@pytest.mark.parametrize(
    ("method", "gate", "open_fraction"),
    [("dense", "none", 0.0), ("always", "AlwaysOpen()", 0.5), ("delayed", "Delay(steps=4)", 0.25)],
)
def test_the_result_says_how_the_gate_was_set_and_how_often_it_was_open(tmp_path, data, method, gate, open_fraction):
    result = _train(tmp_path, data, method, delay_share=0.25)
    assert (result.gate, result.open_fraction) == (gate, open_fraction)


def test_a_gate_that_lets_nothing_through_counts_as_closed(tmp_path, data):
    assert _train(tmp_path, data, "always", strength=0.0).open_fraction == 0.0


def test_a_network_without_weights_is_dead_and_its_compression_is_null(tmp_path, data):
    result = _train(tmp_path, data, "always", strength=100.0)
    assert result.num_nonzero == 0
    assert result.compression is None
    assert not result.alive
    assert read_json(tmp_path / "result.json")["compression"] is None
    assert _lines(tmp_path)[-1]["compression"] is None


@pytest.mark.parametrize("method", COMPARED)
def test_a_run_that_diverges_ends_with_null_instead_of_nan(tmp_path, data, method):
    with pytest.warns(RuntimeWarning, match="NaN or infinity"):
        result = _train(tmp_path, data, method, lr=1e30, strength=1e-40)
    assert _lines(tmp_path)[-1]["train_loss"] is None
    assert 0 <= result.accuracy <= 1
    assert read_json(tmp_path / "result.json") == asdict(result)
    _assert_packed_is_saved(tmp_path)


@pytest.mark.parametrize(("limit", "epochs"), [(0, 9), (1, 1), (3, 3), (9, 9), (20, 9)])
def test_a_dead_run_is_ended_after_so_many_epochs_at_chance(tmp_path, data, limit, epochs):
    result = _train(tmp_path, data, "always", strength=100.0, epochs=9, training__stop_when_dead=limit)
    assert not result.alive
    assert result.epochs == len(_lines(tmp_path)) == epochs
    assert read_json(tmp_path / "result.json")["epochs"] == epochs
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_network_that_always_answers_with_the_largest_class_is_dead(tmp_path):
    """Biases are not penalized: without any weight left they say how often each class comes."""
    labels = (torch.rand(200) < 0.3).long()  # about 70 % are of one of two classes
    split = Split(torch.randint(0, 256, (200, 1, 4, 4), dtype=torch.uint8), labels)
    data = ImageData("unbalanced", split, Split(split.images[:0], labels[:0]), split, 2, ("a", "b"), 255.0, None, None)
    result = _train(tmp_path, data, "always", strength=100.0, epochs=9, training__stop_when_dead=2)
    assert (result.num_nonzero, result.alive, result.epochs) == (0, False, 2)
    assert result.accuracy == result.chance == int((labels == 0).sum()) / 200


def test_only_epochs_at_chance_in_a_row_end_a_run(tmp_path, data, monkeypatch):
    # of the training images, since none are held out; a class has 7 of 20 images: 0.3825 is alive
    accuracies = iter([0.3, 0.3, 0.39, 0.3, 0.38, 0.9, *[0.38] * 3])

    def is_test(split):
        return torch.equal(split.images, data.test.images)

    monkeypatch.setattr(loop, "evaluate", lambda _, split, *__: Score(0.1 if is_test(split) else next(accuracies), 1.0))
    assert _train(tmp_path, data, "dense", epochs=20, training__stop_when_dead=3).epochs == 9


def test_a_dead_run_that_is_stopped_remembers_how_long_it_was_dead(tmp_path, data):
    changes = {"strength": 100.0, "epochs": 9, "training__stop_when_dead": 4}
    _train(tmp_path / "whole", data, "always", **changes)
    directory = tmp_path / "parts"
    directory.mkdir()
    calls = iter([False] * (2 * NUM_BATCHES) + [True])
    with pytest.raises(loop.RunStoppedError):
        train(_recipe(**changes), "always", 0, data, directory, should_stop=lambda: next(calls))
    assert train(_recipe(**changes), "always", 0, data, directory).epochs == 4
    for name in ("metrics.jsonl", "weights.safetensors", "model.packed", "history.safetensors"):
        assert (directory / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_that_is_stopped_is_not_marked_as_finished(tmp_path, data):
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path, data, on_epoch=Mock(side_effect=[None, KeyboardInterrupt]))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.jsonl", "recipe.toml"]
    assert len(_lines(tmp_path)) == 2
    assert _train(tmp_path, data) == RunResult(**read_json(tmp_path / "result.json"))
    assert len(_lines(tmp_path)) == 4


def test_a_missing_directory_is_an_error(tmp_path, data):
    with pytest.raises(FileNotFoundError):
        train(_recipe(), "dense", 0, data, tmp_path / "missing", lambda metrics: None)


# ---------------------------------------------------------------------- evaluation


def _classes(num_images: int) -> Split:
    labels = torch.arange(num_images) % 5
    return Split(functional.one_hot(labels, 5).to(torch.uint8).view(-1, 1, 1, 5), labels)


@pytest.mark.parametrize("num_images", [1, 1023, 1024, 1025, 2050])
def test_every_image_is_evaluated_once(num_images):
    split = _classes(num_images)
    assert evaluate(nn.Flatten(), split, torch.Tensor.float).accuracy == 1.0
    wrong = split.labels.clone()
    wrong[-1] = (wrong[-1] + 1) % 5
    score = evaluate(nn.Flatten(), Split(split.images, wrong), torch.Tensor.float)
    assert score.accuracy == (num_images - 1) / num_images
    right = math.log(4 + math.e) - 1  # outputs are 1 for the class and 0 for the four others
    assert score.loss == pytest.approx(right + 1 / num_images, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_turns_dropout_off_and_restores_the_mode(training):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9)).train(training)
    assert evaluate(model, _classes(200), torch.Tensor.float).accuracy == 1.0
    assert model.training is training
    assert model[1].training is training


# ---------------------------------------------------------------------- networks of the user's own


class Own(nn.Module):
    """Two of its layers share a weight, and it comes in evaluation mode."""

    def __init__(self, num_inputs: int, num_classes: int) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(num_inputs, num_inputs), nn.Linear(num_inputs, num_inputs)
        self.again.weight = self.first.weight
        self.last = nn.Linear(num_inputs, num_classes)
        self.modes: list[bool] = []
        self.eval()

    def forward(self, images):
        self.modes.append(self.training)
        hidden = images.flatten(1)
        for layer in (self.first, self.again):
            hidden = torch.relu(layer(hidden))
        return self.last(hidden)


BUILT: list[Own] = []


def own(image_shape, num_classes):
    """Builds it."""
    BUILT.append(Own(math.prod(image_shape), num_classes))
    return BUILT[-1]


@pytest.mark.parametrize("method", ["coherent", "magnitude"])
def test_tied_weights_are_counted_once_and_saved_under_both_names(tmp_path, data, method):
    name = f"{__name__}:own"
    result = _train(tmp_path, data, method, model=name, pruning__compression=4.0)
    saved = load_file(tmp_path / "weights.safetensors")
    assert torch.equal(saved["first.weight"], saved["again.weight"])
    assert result.num_weights == 16 * 16 + 16 * 3
    expected = sum(int((saved[key] != 0).sum()) for key in ("first.weight", "last.weight"))
    assert result.num_nonzero == expected
    assert (method != "magnitude") or expected == result.num_weights / 4
    packed = load_packed(tmp_path / "model.packed")
    assert packed["again.weight"] is packed["first.weight"]
    assert result.dense_bytes == 4 * (16 * 16 + 16 + 16 + 16 * 3 + 3)
    _assert_packed_is_saved(tmp_path)


def test_a_network_that_comes_in_evaluation_mode_is_trained_in_training_mode(tmp_path, data):
    _train(tmp_path, data, "dense", model=f"{__name__}:own")
    assert True in BUILT[-1].modes
    assert False in BUILT[-1].modes


@pytest.mark.parametrize(("model", "same"), [("lenet300", True), ("resnet20", False)])
def test_parts_add_up_to_the_batch_unless_batch_normalization_sees_them(tmp_path, data, model, same):
    losses = []
    for parts in (1, 2):
        changes = {"model": model, "batch_size": 50, "epochs": 1, "training__accumulate": parts}
        _train(tmp_path / str(parts), data, **changes)
        losses.append(_lines(tmp_path / str(parts))[0]["train_loss"])
    assert (losses[0] == pytest.approx(losses[1], rel=1e-5)) is same
