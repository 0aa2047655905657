"""Lightning's Trainer with the callback, or with two lines in configure_optimizers: the plain loop, bit for bit."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from strongreg import L1, AlwaysOpen, CoherenceGate, Refit, Regularizer
from strongreg.integrations.lightning import RegularizerCallback

BATCHES, EPOCHS, BATCH_SIZE = 8, 4, 16
OPTIONS = {"gate": CoherenceGate(0.8), "schedule": Refit(start=12)}
PENALTY = L1(0.03)
METRICS = ["strongreg/open", "strongreg/coherence", "strongreg/compression"]


pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")  # of Lightning's own use of torch, and its hints
    for message in (r".isinstance\(treespec, LeafSpec\):FutureWarning", ".*does not have many workers", ".*not empty")
]


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def data() -> TensorDataset:
    inputs = torch.randn(BATCHES * BATCH_SIZE, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(inputs, inputs[:, :4].argmax(dim=1))


class Module(LightningModule):
    """A network, SGD with a schedule, and if asked for the two lines."""

    def __init__(self, *, attaches: bool = False) -> None:
        super().__init__()
        self.net, self.attaches = network(), attaches

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        if self.attaches:
            self.reg = Regularizer(self.net, PENALTY, **OPTIONS).attach(optimizer)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def fit(folder, module, *callbacks, checkpoint=None, epochs=EPOCHS, **arguments) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        **{"logger": False, **arguments},
    )
    trainer.fit(module, DataLoader(data(), batch_size=BATCH_SIZE), ckpt_path=checkpoint)
    return trainer


def plain_loop(accumulate=1, bf16=False) -> tuple[nn.Module, Regularizer]:
    model, loader = network(), DataLoader(data(), batch_size=BATCH_SIZE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    reg = Regularizer(model, PENALTY, **OPTIONS).attach(optimizer)
    for _ in range(EPOCHS):
        for number, (inputs, labels) in enumerate(loader, start=1):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = nn.functional.cross_entropy(model(inputs), labels)
            (loss / accumulate).backward()
            if number % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
        scheduler.step()
    return model, reg


def assert_same(first, second, reg, other):
    """Weights, decisions and what was measured, bit for bit; and the gate was open, and closed, before the refit."""
    for weight, its in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(weight, its)
    for quantity in ("coherence", "open", "gradient_norm", "penalty_norm", "weight_norm"):
        assert (reg.history[quantity] == other.history[quantity]).all(), quantity
    assert reg.num_steps == other.num_steps > 12
    assert {0.0, 1.0} <= set(reg.history["open"][:12])
    assert reg.summary().total.num_zeros == other.summary().total.num_zeros > 0


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_result_is_that_of_the_plain_loop(tmp_path, accumulate, precision):
    module, callback = Module(), RegularizerCallback(PENALTY, **OPTIONS)
    fit(tmp_path, module, callback, accumulate_grad_batches=accumulate, precision=precision)
    model, reg = plain_loop(accumulate, precision == "bf16-mixed")
    assert_same(module.net, model, callback.regularizer, reg)
    assert [target.name for target in callback.regularizer.targets] == ["net.0.weight", "net.2.weight"]


def test_two_lines_in_configure_optimizers_do_without_the_callback(tmp_path):
    module = Module(attaches=True)
    fit(tmp_path, module)
    assert_same(module.net, plain_loop()[0], module.reg, plain_loop()[1])


@pytest.mark.parametrize("attaches", [False, True], ids=["callback", "two lines"])
@pytest.mark.parametrize("epochs", [1, 3], ids=["before the refit", "within the refit"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, attaches, epochs):
    def run(folder, **arguments):
        module, callback = Module(attaches=attaches), RegularizerCallback(PENALTY, **OPTIONS)
        save = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        fit(folder, module, *([] if attaches else [callback]), save, **arguments)
        return module, module.reg if attaches else callback.regularizer

    run(tmp_path, epochs=epochs)
    torch.manual_seed(1)
    module, reg = run(tmp_path, checkpoint=str(tmp_path / f"epoch={epochs - 1}.ckpt"))
    model, other = plain_loop()
    assert_same(module.net, model, reg, other)


def test_a_second_fit_begins_anew(tmp_path):
    module, callback = Module(), RegularizerCallback(PENALTY, **OPTIONS)
    fit(tmp_path, module, callback, epochs=1)
    first = callback.regularizer
    fit(tmp_path, module, callback, epochs=1)
    assert (first.num_steps, callback.regularizer.num_steps) == (BATCHES, BATCHES)
    assert "not attached" in repr(first)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_logged(tmp_path, accumulate):
    module, callback = Module(), RegularizerCallback(PENALTY, **OPTIONS)
    logger = CSVLogger(tmp_path)
    trainer = fit(tmp_path, module, callback, logger=logger, log_every_n_steps=4, accumulate_grad_batches=accumulate)
    with (Path(logger.log_dir) / "metrics.csv").open(encoding="utf-8") as file:
        rows = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    history = callback.regularizer.history
    ends = range(4, len(history) + 1, 4)
    assert [row["step"] + 1 for row in rows] == list(ends)
    for row, end in zip(rows, ends, strict=True):
        assert row["strongreg/open"] == pytest.approx(history["open"][end - 4 : end].mean(), rel=1e-6)
        assert row["strongreg/coherence"] == pytest.approx(history["coherence"][end - 4 : end].mean(), rel=1e-6)
    assert rows[-1]["strongreg/compression"] == pytest.approx(callback.regularizer.summary().total.compression)
    assert rows[-1]["strongreg/compression"] > 1
    assert set(METRICS) <= set(trainer.callback_metrics)


class Validated(Module):
    """It is validated, too, with the data it is trained with."""

    def validation_step(self, batch, batch_idx):
        pass

    def val_dataloader(self):
        return DataLoader(data(), batch_size=BATCH_SIZE)


@pytest.mark.parametrize("callback_first", [True, False], ids=["callback first", "monitor first"])
@pytest.mark.parametrize(
    ("module", "arguments", "checks"),
    [
        (Module, {}, EPOCHS),
        (Module, {"log_every_n_steps": 3}, EPOCHS),
        (Module, {"log_every_n_steps": 0}, EPOCHS),
        (Module, {"max_steps": 2 * BATCHES + 3, "epochs": -1}, 3),
        (Validated, {}, EPOCHS),
        (Validated, {"val_check_interval": 0.25}, 4 * EPOCHS),
    ],
    ids=["rare logs", "odd logs", "no logs", "stopped within an epoch", "validated", "validated within the epoch"],
)
def test_what_is_monitored_is_there_at_each_check(tmp_path, callback_first, module, arguments, checks):
    seen = []

    class Stop(EarlyStopping):
        def _run_early_stopping_check(self, trainer):
            super()._run_early_stopping_check(trainer)
            shown = trainer.callback_metrics[self.monitor].item()  # in float32
            seen.append(shown == pytest.approx(callback.regularizer.summary().total.compression))

    callback = RegularizerCallback(PENALTY, **OPTIONS)
    stop = Stop("strongreg/compression", mode="max", patience=100)
    callbacks = [callback, stop] if callback_first else [stop, callback]
    fit(tmp_path, module(), *callbacks, **arguments)
    assert seen == [True] * checks


def test_the_best_checkpoint_by_compression_is_kept(tmp_path):
    callback = RegularizerCallback(PENALTY, **OPTIONS)
    save = ModelCheckpoint(
        tmp_path,
        monitor="strongreg/compression",
        mode="max",
        filename="{epoch}-{strongreg/compression:.2f}",
        auto_insert_metric_name=False,
    )
    fit(tmp_path, Module(), callback, save)
    compression = callback.regularizer.summary().total.compression
    assert float(save.best_model_score) == pytest.approx(compression)
    assert Path(save.best_model_path).parent == tmp_path, "the name of the metric is none of the file's"
    assert Path(save.best_model_path).stem.endswith(f"-{compression:.2f}")


def test_what_is_shown_between_the_logs_takes_nothing_from_them(tmp_path):
    callback, logger = RegularizerCallback(PENALTY, **OPTIONS), CSVLogger(tmp_path)
    fit(tmp_path, Validated(), callback, logger=logger, log_every_n_steps=5, num_sanity_val_steps=2)
    with (Path(logger.log_dir) / "metrics.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["strongreg/open"]]
    history = callback.regularizer.history
    assert [int(row["step"]) + 1 for row in rows] == list(range(5, EPOCHS * BATCHES + 1, 5))
    for row in rows:
        end = int(row["step"]) + 1
        assert float(row["strongreg/open"]) == pytest.approx(history["open"][end - 5 : end].mean(), rel=1e-6)


def test_two_penalties_with_two_gates_on_one_network_resume_each_by_its_key(tmp_path):
    def callbacks():
        return [
            RegularizerCallback({"net.0.weight": PENALTY}, **OPTIONS),
            RegularizerCallback({"net.2.weight": L1(0.01)}, gate=AlwaysOpen(), key="last"),
        ]

    def run(folder, **arguments):
        module, pair, save = Module(), callbacks(), ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        trainer = fit(folder, module, *pair, save, **arguments)
        assert {"strongreg/compression", "last/compression"} <= set(trainer.callback_metrics)
        return module, pair

    whole, wanted = run(tmp_path)
    module, pair = run(tmp_path, checkpoint=str(tmp_path / "epoch=1.ckpt"))
    for weight, its in zip(module.parameters(), whole.parameters(), strict=True):
        assert torch.equal(weight, its)
    for ours, theirs in zip(pair, wanted, strict=True):
        assert ours.regularizer.summary() == theirs.regularizer.summary()
    assert set(pair[1].regularizer.history["open"]) == {1.0}


def test_two_callbacks_without_a_key_of_their_own_are_told(tmp_path):
    pair = [RegularizerCallback({f"net.{layer}.weight": PENALTY}) for layer in (0, 2)]
    with pytest.raises(ValueError, match=r"has the key 'strongreg': pass another one, key=, .* the callback"):
        fit(tmp_path, Module(), *pair)


class Adversaries(Module):
    """Two optimizers, so it steps by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.automatic_optimization = network(), False

    def training_step(self, batch, batch_idx):
        for net, optimizer in zip((self.net, self.other), self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(net(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (self.net, self.other)]


@pytest.mark.parametrize("position", [0, 1])
def test_of_several_optimizers_the_one_asked_for_is_regularized(tmp_path, position):
    module = Adversaries()
    name = ("net", "other")[position]
    callback = RegularizerCallback({f"{name}.*.weight": PENALTY}, optimizer=position, **OPTIONS)
    fit(tmp_path, module, callback)
    zeros = {
        which: sum((p == 0).sum().item() for p in getattr(module, which).parameters()) for which in ("net", "other")
    }
    assert zeros.pop(name) == callback.regularizer.summary().total.num_zeros > 0
    assert list(zeros.values()) == [0]
    assert callback.regularizer.num_steps == EPOCHS * BATCHES


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (None, r"configure_optimizers returned 2 optimizers: say which one to regularize by .*optimizer="),
        (2, r"RegularizerCallback\(optimizer=2\): configure_optimizers returned 2 optimizers, counted from 0"),
        (0, r"the optimizer does not hold the penalized parameters \['other.0.weight', 'other.2.weight'\]"),
    ],
)
def test_an_unclear_choice_of_optimizer_is_an_error(tmp_path, position, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, Adversaries(), RegularizerCallback(PENALTY, optimizer=position))


def test_an_unknown_option_is_told_at_once():
    with pytest.raises(TypeError, match=r"gates=.*Regularizer has no such argument"):
        RegularizerCallback(PENALTY, gates=CoherenceGate(0.7))
