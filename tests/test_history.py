"""Records of the steps."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch

from strongreg import History

LAYERS = ["conv.weight", "fc.weight"]
QUANTITIES = ["coherence", "open", "gradient_norm", "penalty_norm", "weight_norm"]


def _record(step: int) -> torch.Tensor:
    """Every entry tells its step, row and column."""
    rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(5.0), indexing="ij")
    return 100.0 * step + 10 * rows + columns


def _filled(num_steps: int, *, history: History | None = None, start: int = 0) -> History:
    history = History(LAYERS) if history is None else history
    for step in range(start, start + num_steps):
        history.append(_record(step), torch.tensor(step))
    return history


def _assert_same(one: History, other: History) -> None:
    np.testing.assert_array_equal(one.steps, other.steps)
    for quantity in QUANTITIES:
        np.testing.assert_array_equal(one[quantity], other[quantity])
        np.testing.assert_array_equal(one.per_layer(quantity), other.per_layer(quantity))


@pytest.mark.parametrize("num_steps", [0, 1, 255, 256, 257, 600])
def test_every_record_is_kept_over_several_blocks(num_steps):
    history = _filled(num_steps)
    assert len(history) == num_steps
    np.testing.assert_array_equal(history.steps, np.arange(num_steps))
    for column, quantity in enumerate(QUANTITIES):
        steps = 100.0 * np.arange(num_steps)
        np.testing.assert_array_equal(history[quantity], steps + 20 + column)
        np.testing.assert_array_equal(history.per_layer(quantity), np.stack([steps + column, steps + 10 + column], 1))
        assert history[quantity].dtype == np.float32
        assert history.per_layer(quantity).shape == (num_steps, 2)


def test_reading_between_records_loses_none():
    history = History(LAYERS)
    for step in range(300):
        _filled(1, history=history, start=step)
        if step % 7 == 0:
            assert len(history) == step + 1
            assert history["weight_norm"].shape == (step + 1,)
            history.flush()
    _assert_same(history, _filled(300))


@pytest.mark.parametrize(
    ("every", "expected"), [(1, [0, 1, 2, 3, 4, 5, 6]), (2, [0, 2, 4, 6]), (3, [0, 3, 6]), (0, [])]
)
def test_every_nth_step_is_wanted(every, expected):
    history = History(LAYERS, every=every)
    assert [step for step in range(7) if history.wants(step)] == expected
    assert history.every == every


def test_steps_that_did_not_take_place_are_dropped():
    history = History(LAYERS)
    for step in (0, -1, 1, -1, -1, 2):
        history.append(_record(step), torch.tensor(step))
    np.testing.assert_array_equal(history.steps, [0, 1, 2])
    _assert_same(history, _filled(3))


def test_a_block_of_nothing_but_dropped_steps_is_empty():
    history = History(LAYERS)
    for _ in range(300):
        history.append(_record(0), torch.tensor(-1))
    assert len(history) == 0
    assert history["coherence"].shape == (0,)
    _assert_same(_filled(3, history=history), _filled(3))


def test_a_record_is_copied():
    history, record, step = History(LAYERS), _record(0), torch.tensor(0)
    history.append(record, step)
    record.fill_(-1.0)
    step.fill_(7)
    _assert_same(history, _filled(1))


def test_float64_records_are_stored_in_float32_and_nan_stays():
    history = History(LAYERS)
    record = torch.full((3, 5), 1 / 3, dtype=torch.float64)
    record[0, 0] = torch.nan
    history.append(record, torch.tensor(0))
    assert np.isnan(history.per_layer("coherence")).tolist() == [[True, False]]
    assert history["coherence"][0] == np.float32(1 / 3)


@pytest.mark.parametrize("num_before", [0, 3, 300])
@pytest.mark.parametrize("num_after", [0, 5, 300])
def test_a_loaded_history_goes_on_where_it_was_saved(num_before, num_after):
    buffer = io.BytesIO()
    torch.save(_filled(num_before).state_dict(), buffer)
    buffer.seek(0)
    resumed = _filled(17, start=5000)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    _filled(num_after, history=resumed, start=num_before)
    _assert_same(resumed, _filled(num_before + num_after))


def test_the_saved_state_has_the_documented_shapes_and_does_not_move():
    history = _filled(4)
    state = history.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {"steps": (4,), "records": (4, 3, 5)}
    assert state["steps"].dtype == torch.int64
    _filled(2, history=history, start=4)
    assert len(state["steps"]) == 4
    state["records"].zero_()
    state["steps"].zero_()
    _assert_same(history, _filled(6))


def test_a_loaded_state_is_copied():
    state = _filled(4).state_dict()
    history = History(LAYERS)
    history.load_state_dict(state)
    state["records"].zero_()
    _assert_same(history, _filled(4))


def test_a_state_for_another_number_of_layers_is_an_error_and_changes_nothing():
    history = _filled(3)
    with pytest.raises(ValueError, match=r"records of shape \(2, 5\), expected \(3, 5\)"):
        history.load_state_dict(History(LAYERS[:1]).state_dict())
    _assert_same(history, _filled(3))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda history: pickle.loads(pickle.dumps(history))])
def test_a_copy_goes_its_own_way(copied):
    history = _filled(3)
    other = _filled(2, history=copied(history), start=3)
    _assert_same(other, _filled(5))
    _assert_same(history, _filled(3))


def test_an_unknown_quantity_is_an_error_that_lists_the_known_ones():
    history = _filled(1)
    for read in (history.__getitem__, history.per_layer):
        with pytest.raises(KeyError, match=r"unknown quantity 'coherense': choose one of .*'coherence', 'open'"):
            read("coherense")


@pytest.mark.parametrize("every", [-1, 1.5, True, None, "1"])
def test_a_bad_interval_is_an_error(every):
    with pytest.raises(ValueError, match=r"must be an int >= 0; 1 records every step, n every n-th, 0 none") as caught:
        History(LAYERS, every=every)
    assert f"history_every={every!r}" in str(caught.value)


def test_the_list_of_layers_is_copied():
    layers = list(LAYERS)
    history = History(layers)
    layers.append("more")
    assert history.layers == LAYERS


def test_some_of_the_layers_can_be_selected_and_go_on():
    history = _filled(300)
    kept = history.select([1])
    assert kept.layers == ["fc.weight"]
    for quantity in QUANTITIES:
        np.testing.assert_array_equal(kept.per_layer(quantity), history.per_layer(quantity)[:, 1:])
        np.testing.assert_array_equal(kept[quantity], history[quantity])
    kept.append(_record(300)[1:], torch.tensor(300))
    assert (len(kept), len(history)) == (301, 300)


def test_nothing_is_recorded_while_a_graph_is_captured(monkeypatch):
    history = History(["a"])
    monkeypatch.setattr("strongreg.history.is_captured", lambda device: True)
    history.append(torch.zeros(2, 5), torch.tensor(0))
    assert len(history) == 0
