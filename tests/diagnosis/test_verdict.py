"""Verdicts on histories made by hand, each of one fate."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from strongreg import History
from strongreg.diagnosis import RunRecord, diagnose

STEPS = 200
LAYERS = ["first.weight", "second.weight"]


def _record(*, gradient, penalty, weight, opened, accuracy, loss=None, second=None, **options) -> RunRecord:
    """A run of 10 epochs of 20 steps; quantities are functions of the step."""
    history = History(LAYERS)
    for step in range(STEPS):
        values = [0.9, opened(step), gradient(step), penalty(step), weight(step)]
        other = [*values[:4], (second or weight)(step)]
        history.append(torch.tensor([values, other, values]), torch.tensor(step))
    accuracies = np.array([accuracy(epoch) for epoch in range(10)])
    losses = np.full(10, 1.0) if loss is None else np.array([loss(epoch) for epoch in range(10)])
    return RunRecord(history, 0.1, accuracies, losses, 20, **{"strength": 0.1, "lr": 0.05, **options})


def _constant(value):
    return lambda _: value


HEALTHY = {
    "gradient": lambda step: 1.0 / (1 + step / 20),
    "penalty": _constant(0.2),
    "weight": lambda step: 10 - step / 50,
    "opened": _constant(1.0),
    "accuracy": lambda epoch: 0.5 + epoch / 20,
}


def test_a_healthy_run_learned():
    diagnosis = diagnose(_record(**HEALTHY))
    assert diagnosis.verdict == "learned"
    assert diagnosis.learned
    assert "95.0% at the end" in str(diagnosis)
    assert diagnosis.advice == ()


def test_a_penalty_that_made_no_zeros_is_told_so():
    diagnosis = diagnose(_record(**HEALTHY, kept=1.0))
    assert diagnosis.verdict == "nothing_removed"
    assert diagnosis.learned
    assert "It learned, but the penalty removed nothing" in str(diagnosis)
    assert "0.00% of the penalized weights are 0" in diagnosis.evidence
    assert diagnosis.advice[0].startswith("raise the strength (it was 0.1)")


def test_where_the_gate_was_mostly_shut_nothing_was_removed_for_that():
    mostly_shut = {**HEALTHY, "opened": lambda step: float(step < 20)}
    diagnosis = diagnose(_record(**mostly_shut, kept=0.999))
    assert diagnosis.verdict == "nothing_removed"
    assert "the gate was open at 10.0% of the steps" in diagnosis.evidence[2]
    assert diagnosis.advice[0].startswith("lower the strength (it was 0.1) or the gate's threshold")
    assert "raise the learning rate (it was 0.05)" in diagnosis.advice[1]
    shut = {**HEALTHY, "opened": _constant(0.0)}
    assert diagnose(_record(**shut, kept=1.0)).verdict == "penalty_never_acted"


@pytest.mark.parametrize("options", [{"kept": 0.98}, {"kept": math.nan}, {"kept": 1.0, "strength": 0.0}])
def test_zeros_and_penalties_that_make_none_are_nothing_to_complain_of(options):
    assert diagnose(_record(**HEALTHY, **options)).verdict == "learned"


def test_a_penalty_that_takes_over_is_a_collapse_with_step_and_layer():
    diagnosis = diagnose(
        _record(
            gradient=lambda step: math.exp(-step / 20),
            penalty=_constant(0.5),
            weight=lambda step: 10 * math.exp(-step / 60),
            second=lambda step: 10 * math.exp(-step / 20),
            opened=_constant(1.0),
            accuracy=_constant(0.1),
        )
    )
    assert diagnosis.verdict == "collapsed"
    assert not diagnosis.learned
    # exp(-step / 20) falls below 0.5 after 14 steps; seen a little later, for norms are smoothed over 16
    assert 13 <= diagnosis.step <= 30
    assert diagnosis.layer == "second.weight"
    assert any("CoherenceGate" in sentence for sentence in diagnosis.advice)


def test_weights_that_fall_while_the_gate_is_closed_are_not_the_penaltys_doing():
    record = _record(**{**HEALTHY, "weight": lambda step: 10 * math.exp(-step / 20), "opened": _constant(0.0)})
    assert diagnose(record).verdict == "penalty_never_acted"
    dead = _record(
        **{**HEALTHY, "weight": lambda step: 10 * math.exp(-step / 20), "opened": _constant(0.0)}
        | {"accuracy": _constant(0.1), "gradient": lambda step: math.exp(-step)}
    )
    assert diagnose(dead).verdict == "dead_gradients"


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient": lambda step: math.nan if step > 40 else 1.0},
        {"gradient": lambda step: math.inf if step > 40 else 1.0},
        {"weight": lambda step: math.inf if step > 40 else 10.0},
        {"weight": lambda step: 10.0 if step < 41 else 1e5, "accuracy": _constant(0.1)},
    ],
    ids=["nan", "infinite gradient", "infinite", "grown"],
)
def test_numbers_that_explode_are_a_divergence(changes):
    diagnosis = diagnose(_record(**{**HEALTHY, **changes}, lr=3.0))
    assert diagnosis.verdict == "diverged"
    assert diagnosis.step == 41
    assert "it was 3" in diagnosis.advice[0]


def test_an_exploding_loss_is_a_divergence_in_its_epoch():
    diagnosis = diagnose(
        _record(**{**HEALTHY, "accuracy": _constant(0.1)}, loss=lambda epoch: 1e4 if epoch == 3 else 2.3)
    )
    assert (diagnosis.verdict, diagnosis.step) == ("diverged", 60)


def test_no_gradient_without_penalty_is_dead_units():
    diagnosis = diagnose(
        _record(
            gradient=lambda step: 0.0 if step >= 100 else 1.0,
            penalty=_constant(0.0),
            weight=_constant(10.0),
            opened=_constant(0.0),
            accuracy=_constant(0.1),
            strength=0.0,
        )
    )
    assert diagnosis.verdict == "dead_gradients"
    assert 100 <= diagnosis.step <= 116


def test_gradients_that_teach_nothing_are_a_stall():
    record = _record(
        **{**HEALTHY, "gradient": _constant(1.0), "penalty": _constant(0.0)} | {"accuracy": _constant(0.1)}
    )
    assert diagnose(record).verdict == "stalled"


def test_a_first_layer_without_gradient_is_told_of_a_stall():
    record = _record(**{**HEALTHY, "gradient": _constant(1.0), "accuracy": _constant(0.1), "penalty": _constant(0.0)})
    state = record.history.state_dict()
    state["records"][:, 0, 2] = 0.0
    record.history.load_state_dict(state)
    diagnosis = diagnose(record)
    assert diagnosis.verdict == "stalled"
    assert "the gradient of first.weight is exactly 0 at every step" in str(diagnosis)


@pytest.mark.parametrize("first", [0.0, 1e-4])
def test_small_weights_that_grow_to_an_ordinary_size_have_not_exploded(first):
    weight = lambda step: first + step / 1000  # noqa: E731
    record = _record(**{**HEALTHY, "weight": weight, "gradient": _constant(1.0), "accuracy": _constant(0.1)})
    assert diagnose(record).verdict == "stalled"


DYING = {
    "gradient": lambda step: math.exp(-step),
    "penalty": _constant(0.0),
    "opened": _constant(0.0),
    "accuracy": _constant(0.1),
    "strength": 0.0,
}


def test_weights_that_fall_are_the_weight_decays_doing_where_there_is_one():
    falling = {**DYING, "weight": lambda step: 10 * math.exp(-step / 20)}
    decayed = diagnose(_record(**falling, weight_decay=0.3))
    assert (decayed.verdict, decayed.step) == ("decayed", 14)
    assert "it was 0.3" in decayed.advice[0]
    assert diagnose(_record(**falling, weight_decay=0.0)).verdict == "dead_gradients"
    unknown = diagnose(_record(**falling))
    assert unknown.verdict == "dead_gradients"
    assert "the weights fell from norm 10 to" in str(unknown)
    assert unknown.advice[-1] == "or lower the weight decay, if there is any"


def test_weights_that_jump_before_they_decay_were_not_taken_by_the_decay():
    jumping = {**DYING, "weight": lambda step: 10.0 if step < 2 else 15 * math.exp(-step / 20)}
    assert diagnose(_record(**jumping, weight_decay=0.3)).verdict == "dead_gradients"


def test_a_penalty_that_takes_over_after_the_network_lived_at_half_its_weights_is_a_collapse():
    late = {
        "gradient": lambda step: 1.0 if step < 120 else math.exp(-(step - 120) / 5),
        "penalty": _constant(0.5),
        "weight": lambda step: max(10 - step / 10, 4.0) if step < 100 else 4 * math.exp(-(step - 100) / 20),
        "opened": _constant(1.0),
        "accuracy": lambda epoch: 0.5 if epoch < 6 else 0.1,
    }
    diagnosis = diagnose(_record(**late))
    assert diagnosis.verdict == "collapsed"
    assert 123 <= diagnosis.step <= 140
    jumped = {**late, "weight": lambda step: late["weight"](step) * (2.5 if step >= 110 else 1.0)}
    assert diagnose(_record(**jumped)).verdict == "dead_gradients"


def test_a_penalty_that_shrinks_what_a_large_step_has_killed_is_not_the_cause():
    killed = {
        "gradient": lambda step: 1.0 if step < 5 else 1e-5,
        "penalty": _constant(0.1),
        "weight": lambda step: 10.0 if step < 3 else 13 * math.exp(-step / 30),
        "opened": _constant(1.0),
        "accuracy": _constant(0.1),
    }
    assert diagnose(_record(**killed)).verdict == "dead_gradients"


SWITCHED_OFF = {
    "gradient": lambda step: 1.0 if step < 110 else 1e-5,
    "penalty": lambda step: 0.5 if step < 100 else 0.0,
    "opened": lambda step: float(step < 100),
    "weight": lambda step: 2.0 if 20 <= step < 100 else 10.0,
    "accuracy": lambda epoch: 0.5 if epoch < 5 else 0.1,
    "refit_start": 100,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "switched_off"),
        ({"gradient": lambda step: 1.0}, "switched_off"),
        ({"weight": lambda step: 2.0 if 20 <= step < 100 else 10.0 if step < 130 else math.nan}, "switched_off"),
        ({"accuracy": _constant(0.1)}, "dead_gradients"),  # it did not live under it
        ({"accuracy": lambda epoch: 0.5 if epoch < 3 else 0.1}, "dead_gradients"),  # dead before the end
        ({"accuracy": lambda epoch: 0.5 if epoch < 9 else 0.1}, "dead_gradients"),  # long after
        ({"accuracy": _constant(0.5)}, "learned"),
        ({"weight": _constant(10.0)}, "dead_gradients"),  # it had held nothing
        ({"refit_start": math.inf}, "dead_gradients"),
        ({"penalty": lambda step: max(0.5 - step / 200, 0.0) ** 4}, "dead_gradients"),  # it had relaxed
    ],
)
def test_a_death_is_the_switching_offs_doing_only_soon_after_it(changes, expected):
    assert diagnose(_record(**{**SWITCHED_OFF, **changes})).verdict == expected


def test_a_loss_that_fell_though_the_accuracy_did_not_is_no_death():
    memorized = {**HEALTHY, "accuracy": _constant(0.1), "gradient": lambda step: math.exp(-step / 10)}
    diagnosis = diagnose(_record(**memorized, loss=lambda epoch: 2.3 / (1 + epoch) ** 2))
    assert diagnosis.verdict == "memorized"
    assert "the loss on the training images is 0.023, 2.3 by chance" in diagnosis.evidence


def test_a_run_without_a_penalty_that_lost_its_accuracy_is_not_told_to_lower_the_strength():
    record = _record(**{**HEALTHY, "accuracy": lambda epoch: 0.95 if epoch == 4 else 0.6, "strength": 0.0})
    assert diagnose(record).advice == ("lower the learning rate (it was 0.05), or let it decay",)


def test_a_gate_that_stays_closed_is_told_though_it_learned():
    diagnosis = diagnose(_record(**{**HEALTHY, "opened": _constant(0.0)}, strength=7.0))
    assert diagnosis.verdict == "penalty_never_acted"
    assert diagnosis.learned
    assert "it was 7" in diagnosis.advice[0]


def test_a_gate_that_opened_between_the_recorded_steps_is_not_called_closed():
    record = _record(**{**HEALTHY, "opened": _constant(0.0)}, open_fraction=0.39)
    assert diagnose(record).verdict == "learned"


def test_a_gate_that_was_open_at_the_few_recorded_steps_only_is_called_closed():
    diagnosis = diagnose(_record(**HEALTHY, open_fraction=0.004, refit_start=100))
    assert diagnosis.verdict == "penalty_never_acted"
    assert any("open at 0.8% of the steps at which the penalty may act" in told for told in diagnosis.evidence)


def test_too_few_records_are_told():
    record = _record(**HEALTHY)
    few = History(LAYERS, every=50)
    for step in range(0, STEPS, 50):
        few.append(torch.full((3, 5), 1.0), torch.tensor(step))
    told = "recorded steps: 4 of 200, too few to see when"
    assert any(told in sentence for sentence in diagnose(replace(record, history=few)).evidence)
    assert "recorded steps" not in str(diagnose(record))


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (lambda step: 28.7 if step < 10 else math.nan, "began with norm 28.7 and were not finite at step 10"),
        (lambda step: 1.0 + step if step < 10 else math.inf, "grew from norm 1 to 10 and were not finite at step 10"),
        (lambda step: 1.0 + step, "grew from norm 1 to 200"),
        (_constant(28.7), "kept the norm 28.7"),
        (_constant(math.nan), "were not finite at step 0"),
    ],
)
def test_what_is_said_of_diverged_weights_is_true(weight, expected):
    record = _record(**{**HEALTHY, "weight": weight, "accuracy": _constant(0.1)}, loss=_constant(math.nan))
    diagnosis = diagnose(record)
    assert diagnosis.verdict == "diverged"
    assert f"the weights {expected}" in diagnosis.evidence


def test_the_steps_of_a_refit_do_not_count_as_closed():
    opened = _record(**{**HEALTHY, "opened": lambda step: float(step < 2)}, refit_start=2)
    assert diagnose(opened).verdict == "learned"


def test_accuracy_that_was_lost_is_damage():
    diagnosis = diagnose(_record(**{**HEALTHY, "accuracy": lambda epoch: 0.95 if epoch == 4 else 0.6}))
    assert (diagnosis.verdict, diagnosis.step) == ("damaged", 100)


def test_an_empty_record_is_an_error():
    record = _record(**HEALTHY)
    for empty in ({"history": History(LAYERS)}, {"accuracy": np.array([])}):
        with pytest.raises(ValueError, match="cannot be diagnosed"):
            diagnose(RunRecord(**{**vars(record), **empty}))
