"""The few numbers that decide: one tensor from many, without a launch for each."""

from __future__ import annotations

import torch

from contract.devices import Launches
from strongreg.devices import Constants
from strongreg.scalars import one_tensor

_CPU = torch.device("cpu")


def _one(numbers):
    return one_tensor(numbers, torch.float64, _CPU, Constants())


def test_numbers_and_tensors_become_one_tensor_in_their_order():
    a, b = torch.tensor(0.5), torch.tensor([2.0], dtype=torch.float64)
    assert _one([a, 1.0, b, a, 1.0]).tolist() == [0.5, 1.0, 2.0, 0.5, 1.0]
    assert _one([a, a]).tolist() == [0.5, 0.5]
    assert _one([0.25] * 3).tolist() == [0.25] * 3
    assert _one([a, b]).dtype == torch.float64
    assert _one([1.0]).shape == (1,)


def test_few_parameter_groups_take_few_launches():
    a, constant = torch.tensor(0.5), Constants()
    counts = []
    for many in (4, 100):
        one_tensor([a, 1.0] * many, torch.float64, _CPU, constant)
        with Launches() as launches:
            one_tensor([a, 1.0] * many, torch.float64, _CPU, constant)
        counts.append(launches.counts.total())
    assert counts[0] == counts[1]
