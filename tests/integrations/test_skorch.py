"""skorch with the callback: the plain loop, bit for bit; cloned, searched over, pickled, and trained on."""

from __future__ import annotations

import copy
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
