"""When each gate opens."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from contract.gates import GATES
from strongreg import AlwaysOpen, CoherenceGate, Delay, Gate

every_gate = pytest.mark.parametrize("gate", GATES, ids=repr)
LATE = torch.tensor(1000)


def _opened(gate: Gate, coherences: list[float], step: int = 1000) -> list[bool]:
    return gate.is_open(torch.tensor(coherences, dtype=torch.float64), torch.tensor(step)).tolist()


@every_gate
@pytest.mark.parametrize("shape", [(), (1,), (5,), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_decision_is_boolean_and_has_the_shape_of_the_coherence(gate, shape, dtype):
    decision = gate.is_open(torch.ones(shape, dtype=dtype), LATE)
    assert decision.dtype == torch.bool
    assert decision.shape == shape
    assert decision.all()


@every_gate
def test_the_decision_stays_on_the_device(gate):
    """Meta tensors have no values: a gate that looks at one fails."""
    decision = gate.is_open(torch.empty(3, device="meta"), torch.empty((), dtype=torch.int64, device="meta"))
    assert decision.device.type == "meta"


def test_the_coherence_gate_does_not_open_for_nan():
    assert _opened(CoherenceGate(-1.0, scope="layer"), [math.nan, 0.0]) == [False, True]


@every_gate
def test_a_gate_is_an_immutable_value(gate):
    assert dataclasses.replace(gate) == gate
    assert hash(dataclasses.replace(gate)) == hash(gate)
    with pytest.raises(dataclasses.FrozenInstanceError):
        gate.threshold = 0.1


def test_only_a_coherence_gate_for_layers_decides_by_layer():
    assert CoherenceGate(0.5, scope="layer").decision_scope == "layer"
    assert {gate.decision_scope for gate in (AlwaysOpen(), Delay(steps=3), CoherenceGate())} == {"global"}


def test_always_open_ignores_coherence_and_step():
    assert _opened(AlwaysOpen(), [-1.0, 0.0, 1.0], step=0) == [True, True, True]


@pytest.mark.parametrize(
    ("steps", "step", "opened"), [(3, 0, False), (3, 2, False), (3, 3, True), (3, 4, True), (0, 0, True)]
)
def test_delay_opens_at_its_step(steps, step, opened):
    assert _opened(Delay(steps), [-1.0, 1.0], step) == [opened, opened]


def test_coherence_gate_opens_from_the_threshold_on():
    just_below, just_above = math.nextafter(0.7, 0.0), math.nextafter(0.7, 1.0)
    assert _opened(CoherenceGate(0.7), [-1.0, 0.0, just_below, 0.7, just_above, 1.0]) == [False] * 3 + [True] * 3
    assert CoherenceGate(0.7).is_open(torch.tensor(0.7), LATE)


@pytest.mark.parametrize(
    ("threshold", "expected"), [(-1.0, [True] * 3), (0, [False, True, True]), (1, [False, False, True])]
)
def test_coherence_gate_at_the_ends_of_the_range(threshold, expected):
    assert _opened(CoherenceGate(threshold), [-1.0, 0.0, 1.0]) == expected


def test_coherence_gate_has_no_memory():
    gate = CoherenceGate()
    assert [_opened(gate, [c], step) for step, c in enumerate([0.9, 0.1, 0.9])] == [[True], [False], [True]]


def test_defaults():
    assert CoherenceGate() == CoherenceGate(threshold=0.7, scope="global")


@pytest.mark.parametrize("threshold", [1.1, -1.01, math.nan, math.inf])
def test_a_threshold_out_of_range_is_an_error(threshold):
    message = rf"CoherenceGate\(threshold={threshold!r}\): threshold must be finite and between -1 and 1"
    with pytest.raises(ValueError, match=message):
        CoherenceGate(threshold)


@pytest.mark.parametrize("threshold", ["0.7", None, True])
def test_a_threshold_that_is_no_number_is_an_error(threshold):
    with pytest.raises(TypeError, match=rf"CoherenceGate\(threshold={threshold!r}\): threshold must be a number"):
        CoherenceGate(threshold)


@pytest.mark.parametrize("scope", ["layers", "", None, ["layer"]])
def test_an_unknown_scope_is_an_error_that_lists_the_known_ones(scope):
    with pytest.raises(ValueError, match=r"scope must be one of 'global', 'layer'") as caught:
        CoherenceGate(scope=scope)
    assert f"CoherenceGate(scope={scope!r})" in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "error", "rule"),
    [(-1, ValueError, ">= 0"), (1.0, TypeError, "an int"), (True, TypeError, "an int"), ("3", TypeError, "an int")],
)
def test_bad_delay_steps_are_an_error(steps, error, rule):
    with pytest.raises(error, match=rf"Delay\(steps={steps!r}\): steps must be {rule}"):
        Delay(steps)


def test_a_gate_needs_a_decision():
    with pytest.raises(TypeError, match="abstract"):
        Gate()
