"""The summary of a comparison against numbers computed by hand."""

from __future__ import annotations

import math

import pytest

from strongreg.experiments.engine import RunResult
from strongreg.experiments.table import BYTE_HEADER, HEADER, MethodSummary, byte_cells, cells, summarize


def _result(method="coherent", seed=0, accuracy=0.9, num_nonzero=100, *, alive=True, opened=0.5, seconds=3.0, **sizes):
    return RunResult(
        method=method,
        data="digits",
        model="lenet300",
        penalty="l1",
        strength=0.005,
        gate="",
        seed=seed,
        accuracy=accuracy,
        num_weights=1000,
        num_nonzero=num_nonzero,
        compression=1000 / num_nonzero if num_nonzero else None,
        open_fraction=opened,
        train_seconds=seconds,
        num_parameters=1100,
        num_nonzero_parameters=200,
        alive=alive,
        validation_accuracy=None,
        epochs=3,
        chance=0.1,
        steps_per_epoch=23,
        refit_start=None,
        **sizes,
    )


def _summary(**changes) -> MethodSummary:
    values = {"method": "coherent", "num_runs": 5, "num_alive": 5, "accuracy_mean": 0.9612, "accuracy_error": 0.0049}
    values |= {"kept_mean": 0.0196, "compression_range": (48.04, 53.96), "open_mean": 0.484, "seconds_mean": 20.6}
    return MethodSummary(**(values | changes))


# Student's t at 97.5 %, from a printed table: 2 and 4 degrees of freedom
@pytest.mark.parametrize(
    ("accuracies", "mean", "error"),
    [
        ([0.90, 0.92, 0.94], 0.92, 4.303 * 0.02 / math.sqrt(3)),
        ([0.1, 0.2, 0.3, 0.4, 0.5], 0.3, 2.776 * math.sqrt(0.025) / math.sqrt(5)),
        ([0.9, 0.9, 0.9], 0.9, 0.0),
    ],
)
def test_mean_and_95_percent_interval_are_those_computed_by_hand(accuracies, mean, error):
    (summary,) = summarize([_result(seed=seed, accuracy=x) for seed, x in enumerate(accuracies)])
    assert summary.accuracy_mean == pytest.approx(mean)
    assert summary.accuracy_error == pytest.approx(error, rel=2e-4, abs=1e-12)
    assert summary.num_runs == len(accuracies)


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_one_or_two_seeds_have_no_interval(num_seeds):
    (summary,) = summarize([_result(seed=seed, accuracy=0.75) for seed in range(num_seeds)])
    assert summary.accuracy_mean == 0.75
    assert math.isnan(summary.accuracy_error)
    assert cells(summary)[1] == "75.0 %"


def test_the_other_columns_are_means_counts_and_ranges():
    runs = [
        _result(seed=0, num_nonzero=10, opened=0.2, seconds=1.0),
        _result(seed=1, num_nonzero=500, opened=0.4, seconds=2.0, alive=False),
        _result(seed=2, num_nonzero=90, opened=0.9, seconds=6.0),
    ]
    (summary,) = summarize(runs)
    assert summary.num_alive == 2
    assert summary.kept_mean == pytest.approx(0.2)
    assert summary.compression_range == (2.0, 100.0)
    assert summary.open_mean == pytest.approx(0.5)
    assert summary.seconds_mean == pytest.approx(3.0)


def test_bytes_are_compared_run_by_run():
    sizes = [(4400, 1100), (4400, 440), (8800, 1760)]
    (summary,) = summarize([_result(seed=i, dense_bytes=d, file_bytes=f) for i, (d, f) in enumerate(sizes)])
    assert summary.dense_bytes_range == (4400, 8800)
    assert summary.file_bytes_range == (440, 1760)
    assert summary.byte_ratio_range == (4.0, 10.0)
    assert byte_cells(summary) == ("4,400 to 8,800", "440 to 1,760", "4.0 to 10.0")
    assert len(BYTE_HEADER) == len(byte_cells(summary))


def test_one_packed_file_and_those_of_equal_size_are_one_number():
    (summary,) = summarize([_result(seed=seed, dense_bytes=4400, file_bytes=2) for seed in range(2)])
    assert byte_cells(summary) == ("4,400", "2", "2,200")


def test_a_run_without_packed_file_leaves_its_method_without_bytes():
    (summary,) = summarize([_result(seed=0), _result(seed=1, dense_bytes=4400, file_bytes=440)])
    assert summary.byte_ratio_range is None
    assert byte_cells(summary) == ("-", "-", "-")


def test_a_network_without_weights_is_compressed_without_end():
    (summary,) = summarize([_result(num_nonzero=0), _result(num_nonzero=10)])
    assert summary.compression_range == (100.0, math.inf)
    assert summary.kept_mean == pytest.approx(0.005)


def test_methods_are_in_the_order_of_the_comparison_and_absent_ones_are_left_out():
    runs = [_result("coherent"), _result("dense"), _result("always"), _result("coherent", seed=1)]
    assert [(s.method, s.num_runs) for s in summarize(runs)] == [("dense", 1), ("always", 1), ("coherent", 2)]
    assert summarize([]) == []


def test_every_cell_is_text_for_people():
    assert cells(_summary()) == ("coherent", "96.1 ± 0.5 %", "5/5", "1.96%", "48.0 to 54.0", "48%", "21")
    assert len(HEADER) == len(cells(_summary()))


@pytest.mark.parametrize(
    ("compression", "text"),
    [
        ((1.0, 1.0), "1.0"),
        ((33.22, 33.24), "33.2"),
        ((998.0, 12345.6), "998.0 to 12,346"),
        ((math.inf, math.inf), "nothing left"),
    ],
)
def test_the_range_of_the_compression_is_one_number_where_both_ends_look_alike(compression, text):
    assert cells(_summary(compression_range=compression))[4] == text


def test_the_dense_method_has_no_gate():
    assert cells(_summary(method="dense", open_mean=1.0))[5] == "-"
