"""Accelerate needs no code of ours: attach to what prepare() returns, or before; the plain loop, bit for bit."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from strongreg import L1, CoherenceGate, Refit, Regularizer

BATCHES, EPOCHS, BATCH_SIZE = 8, 4, 16
OPTIONS = {"gate": CoherenceGate(0.8), "schedule": Refit(start=12)}
PENALTY = L1(0.03)


@pytest.fixture(autouse=True)
def fresh():
    """Accelerate keeps its choices in globals of the process."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def parts() -> tuple[nn.Module, torch.optim.Optimizer, DataLoader]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    inputs = torch.randn(BATCHES * BATCH_SIZE, 8, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(inputs, inputs[:, :4].argmax(dim=1)), batch_size=BATCH_SIZE)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), loader


class Accelerated:
    """A network under Accelerate with the two lines; ``attach_first``: the Regularizer before ``prepare``."""

    def __init__(self, *, accumulate=1, precision="no", attach_first=False):
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        self.accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulate)
        model, optimizer, loader = parts()
        if attach_first:
            self.reg = Regularizer(model, PENALTY, **OPTIONS).attach(optimizer)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)
        if not attach_first:
            self.reg = Regularizer(model, PENALTY, **OPTIONS).attach(self.optimizer)

    def train(self, epochs=EPOCHS):
        for _ in range(epochs):
            for inputs, labels in self.loader:
                with self.accelerator.accumulate(self.model):
                    self.accelerator.backward(nn.functional.cross_entropy(self.model(inputs), labels))
                    self.optimizer.step()
                    self.optimizer.zero_grad()
        return self


def plain_loop(accumulate=1, bf16=False) -> tuple[nn.Module, Regularizer]:
    model, optimizer, loader = parts()
    reg = Regularizer(model, PENALTY, **OPTIONS).attach(optimizer)
    for _ in range(EPOCHS):
        for number, (inputs, labels) in enumerate(loader, start=1):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                outputs = model(inputs)
            loss = nn.functional.cross_entropy(outputs.float(), labels)
            (loss / accumulate).backward()
            if number % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    return model, reg


def assert_same(first, second, reg, other):
    """Weights, decisions and what was measured, bit for bit; and the gate was open, and closed, before the refit."""
    for weight, its in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(weight, its)
    for quantity in ("coherence", "open", "gradient_norm", "penalty_norm", "weight_norm"):
        assert (reg.history[quantity] == other.history[quantity]).all(), quantity
    assert reg.num_steps == other.num_steps > 12
    assert {0.0, 1.0} <= set(reg.history["open"][:12])
    assert reg.summary() == other.summary()
    assert reg.summary().total.num_zeros > 0


@pytest.mark.parametrize("attach_first", [False, True], ids=["after prepare", "before prepare"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_result_is_that_of_the_plain_loop(accumulate, precision, attach_first):
    run = Accelerated(accumulate=accumulate, precision=precision, attach_first=attach_first).train()
    model, reg = plain_loop(accumulate, precision == "bf16")
    assert_same(run.model, model, run.reg, reg)


@pytest.mark.parametrize("attach_first", [False, True], ids=["after prepare", "before prepare"])
@pytest.mark.parametrize("epochs", [1, 3], ids=["before the refit", "within the refit"])
def test_save_state_and_load_state_carry_the_regularizer(tmp_path, epochs, attach_first):
    Accelerated(attach_first=attach_first).train(epochs).accelerator.save_state(tmp_path)
    run = Accelerated(attach_first=attach_first)
    run.accelerator.load_state(tmp_path)
    assert run.reg.num_steps == epochs * BATCHES
    run.train(EPOCHS - epochs)
    assert_same(run.model, plain_loop()[0], run.reg, plain_loop()[1])


def test_detach_leaves_the_wrapped_optimizer_as_it_was():
    run = Accelerated()
    run.reg.detach()
    run.train(1)
    assert run.reg.num_steps == 0
    assert "strongreg" not in run.optimizer.state_dict()
