"""A collapse is told once, when it begins; a healthy run is left in peace."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from strongreg import L1, L2, AlwaysOpen, CoherenceGate, Regularizer
from strongreg.collapse import has_taken_over


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(16, 16), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(16, 4))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    return model


def _train(penalty, gate, steps=300, read=None, **options) -> tuple[list[int], Regularizer]:
    """The steps after which there was a warning; ``read`` is called with the Regularizer after each step."""
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    reg = Regularizer(model, penalty, gate=gate, **options).attach(optimizer)
    generator = torch.Generator().manual_seed(0)
    told = []
    for step in range(steps):
        inputs = torch.randn(64, 16, generator=generator)
        labels = inputs[:, :4].argmax(dim=1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
        assert all("a collapse has begun" in str(w.message) for w in caught)
        told += [step] * len(caught)
        if read is not None:
            read(reg)
    return told, reg


@pytest.mark.parametrize("penalty", [L1(0.05), L2(0.5)], ids=repr)
def test_a_collapse_is_told_once_and_early(penalty):
    told, reg = _train(penalty, AlwaysOpen())
    assert len(told) == 1
    assert told[0] < 150
    assert reg.history["weight_norm"][-1] < 0.1 * reg.history["weight_norm"][0]


@pytest.mark.parametrize(
    "read", [lambda reg: reg.history["open"], lambda reg: len(reg.history)], ids=["a column", "how many"]
)
def test_who_reads_the_history_at_each_step_is_told_at_the_same_step(read):
    assert _train(L1(0.05), AlwaysOpen(), read=read)[0] == _train(L1(0.05), AlwaysOpen())[0]


@pytest.mark.parametrize(
    ("penalty", "gate"), [(L1(0.05), CoherenceGate(0.7)), (L1(1e-4), AlwaysOpen()), (L1(0.0), AlwaysOpen())], ids=repr
)
def test_a_run_that_lives_is_left_in_peace(penalty, gate):
    assert _train(penalty, gate)[0] == []


def test_the_warning_can_be_silenced_and_needs_a_history():
    assert _train(L1(0.05), AlwaysOpen(), steps=150, warn_of_collapse=False)[0] == []
    assert _train(L1(0.05), AlwaysOpen(), steps=150, history_every=0)[0] == []


def test_a_sparse_history_sees_it_later():
    assert len(_train(L1(0.05), AlwaysOpen(), steps=300, history_every=4)[0]) == 1


@pytest.mark.parametrize(
    ("weight", "opened", "penalty", "expected"),
    [(4.0, 1.0, 3.0, True), (6.0, 1.0, 3.0, False), (4.0, 0.0, 3.0, False), (4.0, 1.0, 1.5, False)],
    ids=["taken-over", "weights-still-there", "gate-closed", "gradient-still-there"],
)
def test_the_signs_by_hand(weight, opened, penalty, expected):
    first = torch.tensor([0.9, 1.0, 1.0, 1.0, 10.0])
    last = torch.tensor([[0.9, opened, 1.0, penalty, weight]]).expand(16, 5)
    assert has_taken_over(first, last) is expected
