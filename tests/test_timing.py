"""Times are medians of rounds in turns; the clock here is one that only the functions move."""

from __future__ import annotations

import itertools

import pytest

from strongreg import timing


class Clock:
    """Seconds that pass when something says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def function(self, *seconds: float, calls: list[str] | None = None, name: str = ""):
        """A function that takes these times, one after the other, again and again."""
        turns = itertools.cycle(seconds)

        def run() -> None:
            self.now += next(turns)
            if calls is not None:
                calls.append(name)

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_the_time_of_each_function_is_that_of_a_call(clock):
    functions = [clock.function(1e-6), clock.function(3e-3), clock.function(1e-5)]
    assert timing.interleaved_medians(functions, seconds=0.1) == pytest.approx([1e-6, 3e-3, 1e-5])


def test_a_round_that_was_disturbed_does_not_count(clock):
    (median,) = timing.interleaved_medians([clock.function(*[0.01] * 9, 1.0)], seconds=2.0)
    assert median == pytest.approx(0.01)


def test_the_functions_take_turns(clock):
    calls: list[str] = []
    functions = [clock.function(0.1, calls=calls, name=name) for name in "ab"]
    timing.interleaved_medians(functions, seconds=1.0)
    measured = "".join(calls).removeprefix("aaabbb")  # what warms up, and what finds how often to call
    assert measured == "ab" * (len(measured) // 2)
    assert len(measured) >= 8


def test_slow_functions_get_three_rounds_and_fast_ones_no_more_than_the_time_allows(clock):
    calls: list[str] = []
    timing.interleaved_medians([clock.function(100.0, calls=calls, name="a")], seconds=0.1)
    assert len(calls) == 3 + 3
    start = clock.now
    timing.interleaved_medians([clock.function(1e-3)], seconds=0.01)
    assert clock.now - start <= 0.02


@pytest.mark.usefixtures("clock")
def test_a_function_that_takes_no_time_ends_too():
    assert timing.interleaved_medians([lambda: None], seconds=0.01) == [0.0]
