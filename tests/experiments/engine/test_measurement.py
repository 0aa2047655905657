"""Metrics and results say what the regularizers recorded and what the weights are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from strongreg import L1, AlwaysOpen, Delay, Refit, Regularizer
from strongreg.experiments.data import ImageData, Split
from strongreg.experiments.engine.measurement import Score, count_weights, epoch_metrics, evaluate, finite, run_result

NAMES = {"data": "numbers", "model": "two_layers", "penalty": "l1"}


@pytest.fixture
def data() -> ImageData:
    labels = torch.arange(10) % 4
    split = Split(torch.zeros(10, 1, 1, 6, dtype=torch.uint8), labels)
    return ImageData("numbers", split, Split(split.images[:0], labels[:0]), split, 4, tuple("abcd"), 1.0, None, None)


@pytest.fixture
def trained() -> tuple[nn.Module, list[Regularizer]]:
    """Two layers of 30 and 20 weights, each with its own optimizer; the first is penalized at steps 3 and 4."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    first, second = (torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2))
    regularizers = [
        Regularizer(model, {"0.weight": L1(0.01)}, gate=Delay(3), schedule=Refit(5)).attach(first),
        Regularizer(model, {"2.weight": L1(0.01)}, gate=AlwaysOpen()).attach(second),
    ]
    for _ in range(8):
        for optimizer in (first, second):
            optimizer.zero_grad()
        functional.cross_entropy(model(torch.rand(10, 6)), torch.arange(10) % 4).backward()
        for optimizer in (first, second):
            optimizer.step()
    return model, regularizers


def _result(model, regularizers, data, accuracy=0.9, method="always"):
    return run_result(
        method,
        3,
        model,
        regularizers,
        data,
        NAMES,
        0.01,
        score=Score(accuracy, 0.25),
        validation_score=None,
        seconds=1.5,
        epochs=2,
        steps_per_epoch=4,
        file_bytes=100,
        dense_bytes=236,
    )


def test_an_epoch_is_the_mean_over_its_own_steps(trained):
    _, regularizers = trained
    history = regularizers[0].history
    metrics = epoch_metrics(2, 4, 0.1, 1.25, Score(0.5, 0.75), regularizers)
    assert (metrics.epoch, metrics.lr, metrics.train_loss) == (2, 0.1, 1.25)
    assert (metrics.accuracy, metrics.loss) == (0.5, 0.75)
    assert metrics.open_fraction == 0.25  # step 4 of 4 to 7
    for name in ("coherence", "gradient_norm", "penalty_norm", "weight_norm"):
        assert getattr(metrics, name) == pytest.approx(float(history[name][4:].mean()))


def test_an_epoch_without_recorded_steps_has_no_means(trained):
    metrics = epoch_metrics(3, 8, 0.1, math.nan, Score(0.5, math.inf), trained[1])
    assert metrics.train_loss is metrics.loss is None
    assert (metrics.coherence, metrics.gradient_norm, metrics.open_fraction) == (None, None, None)


def test_weights_are_counted_over_all_regularizers(trained):
    model, regularizers = trained
    with torch.no_grad():
        model[0].weight[:2] = 0.0
        model[2].weight[0, 0] = 0.0
        model[2].bias[0] = 0.0  # no weight, but a parameter
    zeros = sum(int((model[i].weight == 0).sum()) for i in (0, 2))
    assert zeros >= 13
    assert count_weights(regularizers) == (50, 50 - zeros)
    metrics = epoch_metrics(1, 0, 0.1, 1.0, Score(0.5, 1.0), regularizers)
    assert (metrics.num_nonzero, metrics.compression) == (50 - zeros, 50 / (50 - zeros))


def test_the_result_of_several_regularizers(trained, data):
    model, regularizers = trained
    result = _result(model, regularizers, data)
    # the first was open at 2 of 8 steps, the second at all; 30 and 20 weights
    assert result.open_fraction == pytest.approx((30 * 2 / 8 + 20) / 50)
    assert (result.refit_start, result.gate) == (5, "Delay(steps=3)")
    assert (result.num_weights, result.num_parameters) == (50, 59)
    assert (result.chance, result.epochs, result.steps_per_epoch, result.seed) == (pytest.approx(0.3), 2, 4, 3)
    assert (result.data, result.model, result.penalty) == ("numbers", "two_layers", "l1")
    assert (result.file_bytes, result.dense_bytes, result.byte_ratio) == (100, 236, 2.36)


def test_nothing_left_has_no_compression(trained, data):
    model, regularizers = trained
    with torch.no_grad():
        for i in (0, 2):
            model[i].weight.zero_()
    result = _result(model, regularizers, data)
    assert (result.num_nonzero, result.compression) == (0, None)
    assert result.num_nonzero_parameters == sum(int((model[i].bias != 0).sum()) for i in (0, 2))


@pytest.mark.parametrize(("accuracy", "alive"), [(0.3, False), (0.334, False), (0.336, True), (1.0, True)])
def test_alive_is_above_the_largest_class_by_a_twentieth_of_the_rest(trained, data, accuracy, alive):
    assert _result(*trained, data, accuracy=accuracy).alive is alive


@pytest.mark.parametrize("method", ["dense", "magnitude", "oneshot", "slimming"])
def test_methods_without_a_gate_say_so(trained, data, method):
    assert _result(*trained, data, method=method).gate == "none"


def test_never_is_no_step(data):
    model = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regularizer = Regularizer(model, L1(0.1), gate=AlwaysOpen()).attach(optimizer)
    model(torch.rand(2, 6)).sum().backward()
    optimizer.step()
    assert _result(model, [regularizer], data).refit_start is None


@pytest.mark.parametrize(("number", "expected"), [(1.5, 1.5), (math.nan, None), (math.inf, None), (-math.inf, None)])
def test_json_holds_finite_numbers(number, expected):
    assert finite(number) == expected


def test_evaluation_is_within_the_given_context_and_without_gradients(data):
    seen = []

    def look(images: torch.Tensor) -> torch.Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return images.flatten(1).float()

    evaluate(nn.Linear(6, 4), data.test, look, lambda: torch.autocast("cpu", torch.bfloat16))
    assert seen == [(True, False)]
