"""What all hosts log: finite numbers, under names that begin with the key."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from strongreg import L1, AlwaysOpen, Regularizer
from strongreg.integrations.metrics import Metrics
from strongreg.integrations.options import Builder


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, scale: float = 1.0) -> None:
    optimizer.zero_grad()
    (scale * model(torch.ones(2, 4)).sum()).backward()
    optimizer.step()


@pytest.fixture
def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_where_no_weight_is_left_the_compression_is_as_if_one_were(parts):
    reg = Regularizer(parts[0], L1(1e3), gate=AlwaysOpen(), warn_of_collapse=False).attach(parts[1])
    _step(*parts)
    values = Metrics(reg).read()
    assert reg.summary().total.num_zeros == 12
    assert values["strongreg/compression"] == 12
    json.dumps(values, allow_nan=False)


@pytest.mark.filterwarnings("ignore:the loss gradient holds NaN")
def test_a_coherence_that_is_not_finite_is_left_out(parts):
    metrics = Metrics(Regularizer(parts[0], L1(0.1)).attach(parts[1]))
    _step(*parts, scale=math.nan)
    values = metrics.read()
    assert set(values) == {"strongreg/open", "strongreg/compression"}
    json.dumps(values, allow_nan=False)


def test_what_is_kept_is_told_again_and_the_names_begin_with_the_key(parts):
    metrics = Metrics(Builder(L1(0.1), "second").attach(*parts), "second")
    _step(*parts)
    values = metrics.read(keep=True)
    assert set(values) == {"second/open", "second/coherence", "second/compression"}
    assert metrics.read() == values
    assert set(metrics.read()) == {"second/compression"}
    assert "second" in parts[1].state_dict()


@pytest.mark.parametrize(("key", "error"), [("state", ValueError), ("", ValueError), (3, TypeError)])
def test_a_key_that_cannot_be_one_is_told_at_once(key, error):
    with pytest.raises(error, match=r"key="):
        Builder(L1(0.1), key)
