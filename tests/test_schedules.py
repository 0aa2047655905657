"""The factor on the strength at each step."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strongreg import Constant, CosineRamp, LinearRamp, Refit, Schedule

SCHEDULES = [
    Constant(),
    LinearRamp(steps=10),
    LinearRamp(steps=4, initial=0.5, final=2.0, start=3),
    LinearRamp(steps=4, initial=1.0, final=0.0),
    CosineRamp(steps=10),
    CosineRamp(steps=4, initial=0.3, final=0.0, start=3),
    Refit(start=5),
    Refit(start=8, before=CosineRamp(steps=4)),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
RAMPS = [LinearRamp, CosineRamp]
every_ramp = pytest.mark.parametrize("make", RAMPS)


def _factor(schedule: Schedule, step: int) -> float:
    return schedule.factor(torch.tensor(step)).item()


@every_schedule
def test_the_factor_is_a_scalar_on_the_device_of_the_step(schedule):
    """Meta tensors have no values: a schedule that looks at one fails."""
    assert schedule.factor(torch.tensor(3)).shape == ()
    assert schedule.factor(torch.tensor(3)).is_floating_point()
    assert schedule.factor(torch.empty((), dtype=torch.int64, device="meta")).device.type == "meta"


@every_schedule
def test_the_factor_is_finite_and_not_negative_and_leaves_the_step_alone(schedule):
    for number in (*range(20), 10**9, 2**62):
        step = torch.tensor(number)
        factor = schedule.factor(step)
        assert factor >= 0
        assert factor.isfinite()
        assert step == number


@every_schedule
def test_a_schedule_is_an_immutable_value(schedule):
    assert dataclasses.replace(schedule) == schedule
    assert hash(dataclasses.replace(schedule)) == hash(schedule)
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.steps = 7


def test_constant_is_1_for_ever():
    assert [_factor(Constant(), step) for step in (0, 1, 10**9)] == [1.0, 1.0, 1.0]


def test_linear_ramp_by_hand():
    ramp = LinearRamp(steps=4, initial=0.5, final=2.5, start=3)
    assert [_factor(ramp, step) for step in range(10)] == [0.5, 0.5, 0.5, 0.5, 1.0, 1.5, 2.0, 2.5, 2.5, 2.5]
    assert [_factor(LinearRamp(steps=2, initial=1, final=0), step) for step in range(4)] == [1.0, 0.5, 0.0, 0.0]


def test_cosine_ramp_by_hand():
    ramp = CosineRamp(steps=4, initial=1.0, final=3.0, start=2)
    expected = [1.0, 1.0, 1.0, 1 + (1 - math.sqrt(0.5)), 2.0, 2 + math.sqrt(0.5), 3.0, 3.0]
    assert [_factor(ramp, step) for step in range(8)] == pytest.approx(expected, rel=1e-6)


@every_ramp
@given(
    steps=st.integers(1, 10**6),
    start=st.integers(0, 10**6),
    ends=st.tuples(st.floats(0, 100, width=32), st.floats(0, 100, width=32)),
    share=st.floats(0, 1),
)
def test_a_ramp_begins_and_ends_at_its_ends_and_stays_between(make, steps, start, ends, share):
    initial, final = ends
    ramp = make(steps=steps, initial=initial, final=final, start=start)
    tolerance = 1e-6 * max(ends)
    assert _factor(ramp, start) == initial
    assert _factor(ramp, max(start - 1, 0)) == initial
    for late in (start + steps, start + steps + 1, start + 10 * steps):
        assert abs(_factor(ramp, late) - final) <= tolerance
    between = _factor(ramp, start + int(share * steps))
    assert min(ends) - tolerance <= between <= max(ends) + tolerance
    assert between >= 0


@every_ramp
def test_a_ramp_is_monotone(make):
    factors = [_factor(make(steps=50), step) for step in range(60)]
    assert factors == sorted(factors)


def test_refit_turns_the_penalty_off_from_its_start_on():
    refit = Refit(start=3, before=LinearRamp(steps=4))
    assert [_factor(refit, step) for step in range(6)] == [0.0, 0.25, 0.5, 0.0, 0.0, 0.0]
    assert _factor(Refit(start=0), 0) == 0
    assert Refit(start=3).before == Constant()


def test_only_refit_freezes_zeros():
    assert [schedule.refit_start for schedule in SCHEDULES] == [math.inf] * 6 + [5, 8]


@every_ramp
@pytest.mark.parametrize(
    ("options", "error", "rule"),
    [
        ({"steps": 0}, ValueError, "steps must be >= 1"),
        ({"steps": -1}, ValueError, "steps must be >= 1"),
        ({"steps": 2.0}, TypeError, "steps must be an int"),
        ({"steps": True}, TypeError, "steps must be an int"),
        ({"steps": 2, "start": -1}, ValueError, "start must be >= 0"),
        ({"steps": 2, "start": 0.5}, TypeError, "start must be an int"),
        ({"steps": 2, "initial": -0.5}, ValueError, "initial must be finite and >= 0"),
        ({"steps": 2, "initial": math.nan}, ValueError, "initial must be finite and >= 0"),
        ({"steps": 2, "final": math.inf}, ValueError, "final must be finite and >= 0"),
        ({"steps": 2, "final": "1"}, TypeError, "final must be a number"),
    ],
)
def test_a_bad_ramp_is_an_error_that_names_the_argument(make, options, error, rule):
    with pytest.raises(error, match=rule) as caught:
        make(**options)
    name = rule.split()[0]
    assert f"{make.__name__}({name}={options[name]!r})" in str(caught.value)


@pytest.mark.parametrize(("start", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError), (None, TypeError)])
def test_a_bad_refit_start_is_an_error(start, error):
    with pytest.raises(error, match=rf"Refit\(start={start!r}\): start must be"):
        Refit(start=start)


@pytest.mark.parametrize("before", [None, Constant, 1.0])
def test_a_refit_after_something_else_than_a_schedule_is_an_error(before):
    with pytest.raises(TypeError, match=r"before must be a strongreg schedule such as Constant\(\)"):
        Refit(start=3, before=before)


def test_a_refit_after_a_refit_is_an_error():
    with pytest.raises(ValueError, match="a run has one refit; give the earlier start"):
        Refit(start=5, before=Refit(start=3))


def test_a_schedule_needs_a_factor():
    with pytest.raises(TypeError, match="abstract"):
        Schedule()
