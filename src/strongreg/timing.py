"""How long things take, compared fairly: interleaved rounds and medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

_SHORTEST_SAMPLE = 5e-4  # seconds; a shorter one is more of the clock and of the scheduler than of the function
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 25


def interleaved_medians(functions: Sequence[Callable[[], object]], *, seconds: float) -> list[float]:
    """The median time of a call of each function, on the machine as it is now.

    The functions take turns, so that a machine that becomes slower does so for all of them.

    Args:
        functions: what to call, without arguments; each is called a few times first, untimed.
        seconds: about how long all of it may take, > 0; there are three rounds even if these take longer.

    Returns:
        Seconds per call, one number per function.
    """
    repeats = [_repeats(function) for function in functions]
    end = time.perf_counter() + seconds
    rounds: list[list[float]] = []
    while len(rounds) < _FEWEST_ROUNDS or (len(rounds) < _MOST_ROUNDS and time.perf_counter() < end):
        rounds.append([_sample(function, number) for function, number in zip(functions, repeats, strict=True)])
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def _repeats(function: Callable[[], object]) -> int:
    """How many calls make a sample long enough to be timed."""
    function()  # warms up
    return max(1, round(_SHORTEST_SAMPLE / max(_sample(function, 2), 1e-7)))


def _sample(function: Callable[[], object], number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
        function()
    return (time.perf_counter() - start) / number
