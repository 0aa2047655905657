"""skorch with the callback: the plain loop, bit for bit; cloned, searched over, pickled, and trained on."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from skorch.callbacks import Checkpoint, LoadInitState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from strongreg import L1, AlwaysOpen, CoherenceGate, Refit, Regularizer
from strongreg.integrations.skorch import RegularizerCallback

BATCHES, EPOCHS, BATCH_SIZE = 8, 4, 16
OPTIONS = {"gate": CoherenceGate(0.8), "schedule": Refit(start=12)}
PENALTY = L1(0.03)
METRICS = ("strongreg/open", "strongreg/coherence", "strongreg/compression")


class Net(nn.Sequential):
    """Two layers, always the same ones."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    inputs = torch.randn(BATCHES * BATCH_SIZE, 8, generator=torch.Generator().manual_seed(0))
    return inputs.numpy(), inputs[:, :4].argmax(dim=1).numpy()


def net(*others, penalty=PENALTY, options=OPTIONS, **changes) -> NeuralNetClassifier:
    callbacks = [("strongreg", RegularizerCallback(penalty, **options)), *others]
    settings = {"lr": 0.1, "optimizer__momentum": 0.9, "max_epochs": EPOCHS, "batch_size": BATCH_SIZE, **changes}
    return NeuralNetClassifier(
        Net,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        train_split=None,
        verbose=0,
        callbacks=callbacks,
        **settings,
    )


def regularizer(model) -> Regularizer:
    return dict(model.callbacks_)["strongreg"].regularizer_


@pytest.fixture
def plain(data) -> tuple[nn.Module, Regularizer]:
    model = Net()
    loader = DataLoader(TensorDataset(*map(torch.tensor, data)), batch_size=BATCH_SIZE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    reg = Regularizer(model, PENALTY, **OPTIONS).attach(optimizer)
    for _ in range(EPOCHS):
        for inputs, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    return model, reg


def assert_same(model, plain):
    """Weights, decisions and what was measured, bit for bit; and the gate was open, and closed, before the refit."""
    other, reg = plain
    for weight, its in zip(model.module_.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, its)
    for quantity in ("coherence", "open", "gradient_norm", "penalty_norm", "weight_norm"):
        assert (regularizer(model).history[quantity] == reg.history[quantity]).all(), quantity
    assert regularizer(model).num_steps == reg.num_steps == EPOCHS * BATCHES
    assert {0.0, 1.0} <= set(reg.history["open"][:12])
    assert regularizer(model).summary() == reg.summary()
    assert reg.summary().total.num_zeros > 0


def test_the_result_is_that_of_the_plain_loop_and_fit_begins_anew(data, plain):
    model = net().fit(*data)
    assert_same(model, plain)
    first = regularizer(model)
    assert_same(model.fit(*data), plain)
    assert "not attached" in repr(first)


@pytest.mark.parametrize("epochs", [1, 3], ids=["before the refit", "within the refit"])
@pytest.mark.parametrize(
    "between",
    [lambda model: model, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["partial_fit", "deepcopy", "pickle"],
)
def test_training_goes_on(data, plain, epochs, between):
    model = net(max_epochs=epochs).fit(*data)
    model = between(model).set_params(max_epochs=EPOCHS - epochs)
    assert_same(model.partial_fit(*data), plain)


def test_a_warm_start_goes_on(data, plain):
    model = net(max_epochs=2, warm_start=True)
    assert_same(model.fit(*data).fit(*data), plain)


def test_another_optimizer_on_the_same_network_goes_on_with_the_schedule(data):
    model = net(max_epochs=1).fit(*data)
    model.set_params(optimizer__momentum=0.5)
    model.partial_fit(*data)
    assert regularizer(model).num_steps == 2 * BATCHES


def test_a_pickle_of_the_callback_holds_no_weights(data):
    model = net(max_epochs=1).fit(*data)
    assert b"_rebuild_parameter" not in pickle.dumps(dict(model.callbacks_)["strongreg"])
    assert b"_rebuild_parameter" in pickle.dumps(model.module_)


@pytest.mark.parametrize("epochs", [1, 3], ids=["before the refit", "within the refit"])
def test_a_checkpoint_carries_the_regularizer(tmp_path, data, plain, epochs):
    save = Checkpoint(dirname=tmp_path, monitor=None)
    net(("save", save), max_epochs=epochs).fit(*data)
    load = LoadInitState(Checkpoint(dirname=tmp_path, monitor=None))
    model = net(("load", load), max_epochs=EPOCHS - epochs).fit(*data)
    assert_same(model, plain)


def saved(model, folder) -> dict[str, str]:
    """What ``load_params`` wants."""
    files = {f"f_{part}": str(folder / part) for part in ("params", "optimizer", "history")}
    model.save_params(**files)
    return files


@pytest.mark.parametrize("epochs", [1, 3], ids=["before the refit", "within the refit"])
def test_load_params_carries_the_regularizer_into_a_new_network(tmp_path, data, plain, epochs):
    files = saved(net(max_epochs=epochs).fit(*data), tmp_path)
    model = net(max_epochs=EPOCHS - epochs).initialize()
    model.load_params(**files)
    assert_same(model.partial_fit(*data), plain)


def test_what_was_loaded_does_not_come_back_after_more_training(tmp_path, data, plain):
    save = Checkpoint(dirname=tmp_path, monitor=None)
    net(("save", save), max_epochs=1).fit(*data)
    load = LoadInitState(Checkpoint(dirname=tmp_path, monitor=None))
    model = net(("load", load), max_epochs=1).fit(*data)
    model = pickle.loads(pickle.dumps(model)).set_params(max_epochs=EPOCHS - 2)
    assert_same(model.partial_fit(*data), plain)


def test_a_checkpoint_is_loaded_by_a_callback_that_comes_first(tmp_path, data, plain):
    save = Checkpoint(dirname=tmp_path, monitor=None)
    net(("save", save), max_epochs=1).fit(*data)
    model = net(max_epochs=EPOCHS - 1)
    model.callbacks.insert(0, ("load", LoadInitState(Checkpoint(dirname=tmp_path, monitor=None))))
    assert_same(model.fit(*data), plain)


def test_a_state_that_training_without_it_has_left_behind_is_not_adopted(tmp_path, data):
    first = saved(net(max_epochs=1).fit(*data), tmp_path)
    without = net(max_epochs=1, callbacks__strongreg=None).initialize()
    without.load_params(**first)
    files = saved(without.partial_fit(*data), tmp_path)
    model = net(max_epochs=1).initialize()
    model.load_params(**files)
    with pytest.warns(UserWarning, match=r"a Regularizer's state for other weights .* begins anew"):
        model.partial_fit(*data)
    assert regularizer(model).num_steps == BATCHES


def test_set_params_of_a_callback_is_told_to_begin_anew(data):
    model = net(max_epochs=1).fit(*data)
    model.set_params(callbacks__strongreg__penalty=L1(0.1))
    with pytest.warns(UserWarning, match=r"trained for 1 epochs, .*set_params.* begins anew, with step 0"):
        model.partial_fit(*data)
    assert regularizer(model).num_steps == BATCHES


def test_two_penalties_with_two_gates_on_one_network_resume_each_by_its_key(tmp_path, data):
    def pair(**changes):
        second = RegularizerCallback({"2.weight": L1(0.01)}, gate=AlwaysOpen(), key="last")
        return net(("last", second), penalty={"0.weight": PENALTY}, **changes)

    files = saved(pair(max_epochs=2).fit(*data), tmp_path)
    model = pair(max_epochs=EPOCHS - 2).initialize()
    model.load_params(**files)
    model.partial_fit(*data)
    whole = pair().fit(*data)
    for name in ("strongreg", "last"):
        ours, theirs = (dict(m.callbacks_)[name].regularizer_ for m in (model, whole))
        assert ours.summary() == theirs.summary()
        assert len(whole.history[:, f"{name}/open"]) == EPOCHS
    for weight, its in zip(model.module_.parameters(), whole.module_.parameters(), strict=True):
        assert torch.equal(weight, its)


def test_the_history_is_json_when_no_weight_is_left(tmp_path, data):
    model = net(penalty=L1(1e3), options={"gate": AlwaysOpen(), "warn_of_collapse": False}, max_epochs=1).fit(*data)
    model.history.to_file(tmp_path / "history.json")
    text = (tmp_path / "history.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)[0]["strongreg/compression"] == 8 * 16 + 16 * 4


def test_it_is_cloned_with_its_parameters_and_without_its_training(data):
    model = net().fit(*data)
    copied = clone(model)
    callback = dict(copied.callbacks)["strongreg"]
    assert callback is not dict(model.callbacks)["strongreg"]
    assert callback.get_params() == dict(model.callbacks)["strongreg"].get_params()
    assert callback.regularizer_ is None
    assert set(callback.get_params()) == {
        "penalty",
        "gate",
        "schedule",
        "mode",
        "strength_scale",
        "coherence_of",
        "target_compression",
        "history_every",
        "warn_of_collapse",
        "key",
    }


def test_a_grid_search_tunes_the_strength(data):
    grid = {"callbacks__strongreg__penalty": [L1(1e-3), L1(10.0)], "callbacks__strongreg__gate": [AlwaysOpen()]}
    options = {"warn_of_collapse": False}
    search = GridSearchCV(net(options=options, penalty=L1(0.0)), grid, cv=2, scoring="accuracy").fit(*data)
    weak, strong = search.cv_results_["mean_test_score"]
    assert weak > strong
    assert search.best_params_["callbacks__strongreg__penalty"] == L1(1e-3)
    best = regularizer(search.best_estimator_)
    assert best.num_steps == EPOCHS * BATCHES
    assert best.gate == AlwaysOpen()


def test_what_is_written_into_the_history(data):
    model = net().fit(*data)
    history = regularizer(model).history
    rows = model.history[:, METRICS]
    assert len(rows) == EPOCHS
    for number, (opened, coherence, _) in enumerate(rows):
        since = slice(number * BATCHES, (number + 1) * BATCHES)
        assert opened == pytest.approx(history["open"][since].mean(), rel=1e-6)
        assert coherence == pytest.approx(history["coherence"][since].mean(), rel=1e-6)
    assert rows[-1][2] == regularizer(model).summary().total.compression > 1


def test_a_penalty_that_does_not_fit_is_told(data):
    with pytest.raises(ValueError, match=r"nowhere"):
        net(penalty={"nowhere.*": PENALTY}).fit(*data)
