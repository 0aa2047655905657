"""The table of weights, zeros and compression."""

from __future__ import annotations

import dataclasses
import math

import pytest

from strongreg import Summary, SummaryRow
from strongreg.summary import advise

CONV = SummaryRow("conv.weight", (4, 1, 3, 3), num_weights=36, num_zeros=30, open_fraction=0.5)
FC = SummaryRow("fc.weight", (2, 2), num_weights=4, num_zeros=0, open_fraction=1.0)


def test_counts_of_a_row_by_hand():
    assert CONV.num_nonzero == 6
    assert CONV.compression == 6.0
    assert FC.num_nonzero == 4
    assert FC.compression == 1.0


def test_compression_at_the_ends():
    assert SummaryRow("dead", (3,), num_weights=3, num_zeros=3, open_fraction=1.0).compression == math.inf
    assert SummaryRow("empty", (0,), num_weights=0, num_zeros=0, open_fraction=1.0).compression == 1.0


def test_the_total_by_hand():
    """Open: 36 weights at 0.5 and 4 at 1.0, over 40."""
    total = Summary((CONV, FC), num_steps=10, num_nonfinite=0).total
    assert total == SummaryRow("total", (), num_weights=40, num_zeros=30, open_fraction=0.55)
    assert total.compression == 4.0


def test_the_total_of_one_layer_is_the_layer():
    total = Summary((CONV,), num_steps=10, num_nonfinite=0).total
    assert dataclasses.replace(total, name=CONV.name, shape=CONV.shape) == CONV


def test_the_total_of_no_layers():
    total = Summary((), num_steps=0, num_nonfinite=0).total
    assert (total.num_weights, total.num_zeros, total.compression) == (0, 0, 1.0)
    assert math.isnan(total.open_fraction)


def test_the_open_share_is_unknown_before_the_first_step():
    row = dataclasses.replace(CONV, open_fraction=math.nan)
    summary = Summary((row,), num_steps=0, num_nonfinite=0)
    assert math.isnan(summary.total.open_fraction)
    assert all(line.endswith(" -") for line in str(summary).splitlines() if line.startswith(("conv", "total")))


def test_the_table_word_by_word():
    lines = str(Summary((CONV, FC), num_steps=10, num_nonfinite=0)).splitlines()
    assert [line.split() for line in lines if not set(line) <= {"-"}] == [
        ["parameter", "shape", "weights", "zeros", "kept", "times", "smaller", "gate", "open"],
        ["conv.weight", "4x1x3x3", "36", "30", "16.7%", "6.0", "50.0%"],
        ["fc.weight", "2x2", "4", "0", "100.0%", "1.0", "100.0%"],
        ["total", "40", "30", "25.0%", "4.0", "55.0%"],
        ["10", "steps"],
    ]


def test_the_table_is_aligned():
    *table, steps = str(Summary((CONV, FC), num_steps=10, num_nonfinite=0)).splitlines()
    assert len({len(line) for line in table}) == 1
    assert [i for i, line in enumerate(table) if set(line) == {"-"}] == [1, 4]
    assert steps == "10 steps"
    assert all(line == line.rstrip() for line in table)


def test_large_numbers_have_separators_and_dead_layers_are_infinitely_smaller():
    row = SummaryRow("w", (1000, 1234), num_weights=1_234_000, num_zeros=1_234_000, open_fraction=1.0)
    text = str(Summary((row,), num_steps=1, num_nonfinite=0))
    assert "1000x1234  1,234,000  1,234,000  0.0%            inf     100.0%" in text


def test_empty_parameters_and_empty_summaries_print():
    empty = SummaryRow("w", (0, 3), num_weights=0, num_zeros=0, open_fraction=0.0)
    assert "0x3" in str(Summary((empty,), num_steps=1, num_nonfinite=0))
    assert "total" in str(Summary((), num_steps=0, num_nonfinite=0))


@pytest.mark.parametrize(
    ("num_nonfinite", "last_line"),
    [(0, "10 steps"), (2, "10 steps, 2 of them with a non-finite gradient (gate closed)")],
)
def test_steps_with_a_nonfinite_gradient_are_told(num_nonfinite, last_line):
    assert str(Summary((CONV,), num_steps=10, num_nonfinite=num_nonfinite)).splitlines()[-1] == last_line


def test_a_summary_is_an_immutable_value():
    summary = Summary((CONV, FC), num_steps=10, num_nonfinite=0)
    assert summary == dataclasses.replace(summary)
    assert hash(summary) == hash(dataclasses.replace(summary))
    with pytest.raises(dataclasses.FrozenInstanceError):
        summary.num_steps = 3


@pytest.mark.parametrize(
    ("opened", "zeros_moved", "words"),
    [
        (0.5, False, ""),
        (0.5, True, "finish the run with schedule=Refit"),
        (0.049, True, "acted at 4.9% of the steps"),
        (0.051, False, ""),
        (0.0, False, "acted at 0.0% of the steps"),
        (math.nan, False, ""),  # no step at which the penalty might have acted
    ],
)
def test_advice_looks_at_the_steps_at_which_the_penalty_might_act(opened, zeros_moved, words):
    advice = advise(opened, zeros_moved=zeros_moved)
    assert words in advice
    assert bool(words) == bool(advice)
    assert str(Summary((CONV,), 100, 0, advice)).endswith(advice or "100 steps")
