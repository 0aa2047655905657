"""What the terminal shows: bars while runs work, then one table."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace

import pytest
from rich.console import Console

from experiments.recipes import recipe
from strongreg.experiments.compare import Job
from strongreg.experiments.console import ProgressBars, show_table, show_tolerances
from strongreg.experiments.engine import EpochMetrics, RunResult
from strongreg.experiments.table import HEADER, MethodSummary, cells
from strongreg.experiments.tolerance import Tolerance

JOB = Job("coherent", 12)
TITLE = "plain_cnn on digits, sparse_group of strength 0.00512, 100 epochs"


def _metrics(epoch: int, compression: float | None = 51.0) -> EpochMetrics:
    return EpochMetrics(epoch, 0.02, 0.3, 0.961, 1000, compression, 0.7, 0.48, 1.0, 1.0, 1.0)


def _result(compression: float | None = 51.0) -> RunResult:
    args = ("coherent", "digits", "plain_cnn", "l1", 0.005, "", 12, 0.961, None, 51000, 1000, compression, 0.48, 20.4)
    steps = {"epochs": 100, "steps_per_epoch": 23, "refit_start": 1150}
    return RunResult(*args, num_parameters=52000, num_nonzero_parameters=1500, alive=True, chance=0.1, **steps)


def _console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, width=80, force_terminal=terminal, color_system=None), output


def _watch(compression: float | None, *, terminal: bool) -> str:
    console, output = _console(terminal=terminal)
    with ProgressBars(console, 3, 100) as progress:
        for epoch in range(1, 13):
            progress.on_epoch(JOB, _metrics(epoch, compression))
    return output.getvalue()


def test_without_a_terminal_each_finished_run_is_a_plain_line():
    console, output = _console(terminal=False)
    with ProgressBars(console, 2, 100) as progress:
        progress.on_epoch(JOB, _metrics(1))
        assert output.getvalue() == ""
        progress.on_result(JOB, _result())
        progress.on_result(Job("always", 0), _result(None))
    lines = ["[1/2] coherent, seed 12: accuracy 96.1%, 51.0x smaller, 20 s"]
    lines += ["[2/2] always, seed 0: accuracy 96.1%, nothing left, 20 s"]
    assert output.getvalue().splitlines() == lines


def test_on_a_terminal_the_bar_of_a_run_shows_how_far_it_is():
    shown = _watch(51.0, terminal=True)
    assert "all epochs" in shown
    assert "coherent, seed 12" in shown
    assert "96.1%" in shown
    assert "51.0x" in shown


def test_the_bars_fit_into_80_columns():
    shown = _watch(51.0, terminal=True)
    assert "…" not in shown
    assert re.search(r"\b12/100\b", shown)


def test_a_run_without_weights_says_that_nothing_is_left():
    assert "nothing left" in _watch(None, terminal=True)


def test_the_bar_of_a_finished_run_gives_way_to_its_line():
    console, output = _console(terminal=True)
    with ProgressBars(console, 1, 100) as progress:
        progress.on_epoch(JOB, _metrics(100))
        progress.on_result(JOB, _result())
        output.truncate(0)
    last = output.getvalue()
    assert "all epochs" in last
    assert "coherent" not in last


def test_a_result_without_any_epoch_is_no_error():
    console, output = _console(terminal=True)
    with ProgressBars(console, 1, 100) as progress:
        progress.on_result(JOB, _result())
    assert "[1/1] coherent, seed 12" in output.getvalue()


def _summary(method, accuracy, error, kept, compression, alive=5) -> MethodSummary:
    return MethodSummary(method, 5, alive, accuracy, error, kept, compression, 0.48, 120.0)


ONE_SEED = [
    _summary("dense", 0.981, math.nan, 1.0, (1.0, 1.0)),
    _summary("always", 0.103, math.nan, 0.0, (math.inf, math.inf), alive=0),
    _summary("delayed", 0.972, math.nan, 0.0301, (33.2, 33.2)),
    _summary("coherent", 0.961, math.nan, 0.0196, (51.0, 51.0)),
]
FIVE_SEEDS = [
    _summary("dense", 0.981, 0.0035, 1.0, (1.0, 1.0)),
    _summary("always", 0.103, 0.0, 0.0, (math.inf, math.inf), alive=0),
    _summary("delayed", 0.972, 0.0125, 0.0301, (33.2, 41.7)),
    _summary("coherent", 0.961, 0.0049, 0.0196, (151.0, 155.2)),
]
PARTLY_DEAD = [*FIVE_SEEDS[:1], _summary("always", 0.303, 0.3124, 0.0002, (1255.0, math.inf), alive=2)]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("summaries", [ONE_SEED, FIVE_SEEDS, PARTLY_DEAD], ids=["one", "five", "partly_dead"])
def test_the_table_fits_into_80_columns_without_leaving_anything_out(summaries, terminal):
    console, output = _console(terminal=terminal)
    show_table(console, TITLE, summaries)
    lines = output.getvalue().splitlines()
    assert "…" not in output.getvalue()
    assert max(map(len, lines)) <= 80
    assert TITLE in " ".join(output.getvalue().split())
    (header,) = (line for line in lines if "method" in line)
    assert header.split() == " ".join(HEADER).split()
    for summary in summaries:
        (row,) = (line for line in lines if line.split()[:1] == [summary.method])
        assert row.split() == " ".join(cells(summary)).split()


def _shown_below(summaries: list[MethodSummary]) -> list[str]:
    """What is printed below the table, and fits into 80 columns too."""
    console, output = _console(terminal=False)
    show_table(console, TITLE, summaries)
    assert max(map(len, output.getvalue().splitlines())) <= 80
    _, start, below = output.getvalue().partition("Times smaller: ")
    return (start + below).splitlines()


def test_both_compressions_are_shown_weights_in_the_table_and_bytes_below_it():
    ranges = {"dense_bytes_range": (210280, 210280), "file_bytes_range": (4912, 7104)}
    in_bytes = replace(FIVE_SEEDS[-1], **ranges, byte_ratio_range=(29.6, 42.81))
    assert _shown_below([*FIVE_SEEDS[:-1], in_bytes]) == [
        "Times smaller: penalized weights / those that are not 0.",
        "In bytes, runs/METHOD-seedN/model.packed against all tensors dense:",
        "coherent: 4,912 to 7,104 of 210,280 bytes, 29.6 to 42.8 times fewer",
    ]


def test_without_packed_files_no_bytes_are_compared():
    assert _shown_below(FIVE_SEEDS) == ["Times smaller: penalized weights / those that are not 0."]


def test_a_line_of_large_numbers_is_broken_and_nothing_left_out():
    ranges = {"dense_bytes_range": (987654321, 987654321), "file_bytes_range": (123456789, 234567890)}
    large = replace(_summary("magnitude", 0.9, 0.1, 0.1, (10.0, 10.0)), **ranges, byte_ratio_range=(4.2, 12345.0))
    assert " ".join(" ".join(_shown_below([large])[2:]).split()) == (
        "magnitude: 123,456,789 to 234,567,890 of 987,654,321 bytes, 4.2 to 12,345 times fewer"
    )


def test_a_method_that_died_with_every_seed_is_red():
    output = io.StringIO()
    show_table(Console(file=output, width=80, force_terminal=True, color_system="standard"), TITLE, PARTLY_DEAD)
    assert "\x1b[31m" not in output.getvalue()
    show_table(Console(file=output, width=80, force_terminal=True, color_system="standard"), TITLE, ONE_SEED)
    (red,) = (line for line in output.getvalue().splitlines() if "\x1b[31m" in line)
    assert "always" in red


@pytest.mark.parametrize("terminal", [False, True])
def test_the_tolerance_levels_fit_into_80_columns_without_leaving_anything_out(terminal):
    console, output = _console(terminal=terminal)
    levels = [
        Tolerance("always", 0.0, 1.357e-09, "hardly acted", math.nan, math.nan, math.nan),
        Tolerance("delayed", 1.234e-05, 0.01357, "died", 0.981, 999.9, 1.0),
        Tolerance("coherent", 12345.0, 1.357e09, "hardly acted", 1.0, 1051.2, 0.38),
    ]
    show_tolerances(console, recipe(), levels)
    lines = [line.split() for line in output.getvalue().splitlines()]
    assert max(map(len, output.getvalue().splitlines())) <= 80
    assert "…" not in output.getvalue()
    assert ["method", "endures", "fails", "at", "why", "accuracy", "smaller", "acted", "ratio"] in lines
    assert ["always", "none", "1.357e-09", "hardly", "acted", "-", "-", "-", "-"] in lines
    assert ["delayed", "1.234e-05", "0.01357", "died", "98.1%", "999.9", "100%", "9,094"] in lines
    assert ["coherent", "1.234e+04", "1.357e+09", "hardly", "acted", "100.0%", "1,051", "38%", "9e+12"] in lines
