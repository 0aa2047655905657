"""A shrunk network is kept without pickle."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compression.shrinking.networks import NETWORKS, inputs_of, outputs_of, with_zeros
from strongreg.compression import load_packed, save_packed
from strongreg.compression.shrinking import load_shrunk, shrink


@pytest.mark.parametrize("name", NETWORKS)
def test_a_shrunk_network_is_kept_as_a_packed_file(name, tmp_path):
    generator = torch.Generator().manual_seed(1)
    model = with_zeros(NETWORKS[name][0](), generator, 0.4, silent=False)
    inputs = inputs_of(name, generator)
    shrunk = shrink(model, inputs)
    save_packed(shrunk, tmp_path / "small.packed")
    again = load_shrunk(NETWORKS[name][0]().eval(), load_packed(tmp_path / "small.packed"))
    assert torch.equal(outputs_of(again, inputs), outputs_of(shrunk, inputs))
    assert str(again) == str(shrunk)


def test_a_convolution_that_has_lost_all_groups_but_one_and_a_part_of_that_one():
    def build():
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.Conv2d(6, 2, 1)).eval()

    model = build()
    with torch.no_grad():
        for zeros in (model[0].weight[3:], model[0].bias[3:], model[2].weight[2:], model[2].bias[2:]):
            zeros.zero_()
    x = torch.randn(2, 3, 5, 5)
    shrunk = shrink(model, x)
    assert (shrunk[2].weight.shape, shrunk[2].groups) == ((2, 3, 3, 3), 1)
    again = load_shrunk(build(), shrunk.state_dict())
    assert str(again) == str(shrunk)
    assert torch.equal(again(x), shrunk(x))


def test_a_state_that_is_not_of_the_network_is_an_error_and_changes_nothing():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    before = copy.deepcopy(model.state_dict())
    for state, message in (
        ({}, "it lacks '0.bias'"),
        ({**before, "3.weight": torch.zeros(1)}, "it has '3.weight', which the network has not"),
        ({**before, "0.weight": torch.zeros(7, 4)}, r"'0.weight' has shape \(7, 4\) in the state_dict and \(6, 4\)"),
        ({**before, "0.bias": torch.zeros(2, 2)}, "'0.bias' has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            load_shrunk(model, state)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
