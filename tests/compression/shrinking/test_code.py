"""Networks whose code does more than call layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

from compression.shrinking.networks import NETWORKS, inputs_of, outputs_of, with_zeros, zero
from strongreg.compression import ShrinkError, load_shrunk, shrink, shrink_and_report


class Hidden(nn.Module):
    """A hidden layer of which half is zero, code that uses its width, and a gate that is shut where the input is 0."""

    def __init__(self, code):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        self.code = code
        zero(self.a.weight[:4], self.a.bias[:4])

    def forward(self, x):
        h = self.a(x.to(self.a.weight.dtype)).relu()
        return self.b(self.code(h)) * x.sum(1, keepdim=True)


def _divides(h):
    return h / h.shape[1]


def _branches(h):
    return h.tanh() if h.shape[1] > 6 else h


def _fills(h):
    return h * torch.full((1, 1), h.shape[1])


def _counts(h):
    return h + torch.arange(h.shape[1]).sum()


def _makes(h):
    return h * torch.tensor([1.0 / h.shape[1]])


def _powers(h):
    return torch.pow(h, exponent=h.shape[1])


@pytest.mark.parametrize("code", [_divides, _branches, _fills, _counts, _makes, _powers])
def test_a_width_taken_for_a_number_is_seen_where_no_output_shows_it(code):
    model = Hidden(code).eval()
    shrunk, report = shrink_and_report(model, torch.zeros(1, 4, dtype=torch.long))
    assert shrunk.a.weight.shape == (8, 4)
    assert [x.count for x in report.left if "the network's code reckons with its size" in x.reason] == [4], report
    ones = torch.ones(3, 4, dtype=torch.long)
    torch.testing.assert_close(shrunk(ones), model(ones))


def test_code_that_only_takes_sizes_for_sizes_does_not_keep_anything():
    def reshapes(h):
        h = h.reshape(len(h), -1, 4).transpose(1, 2).flatten(1)
        return h.view(len(h), h.shape[1])

    model = Hidden(reshapes).eval()
    shrunk = shrink(model, torch.zeros(1, 4, dtype=torch.long))
    ones = torch.ones(3, 4, dtype=torch.long)
    torch.testing.assert_close(shrunk(ones), model(ones))
    assert shrunk.a.weight.shape == (4, 4)


def test_a_reshape_that_would_take_other_numbers_together_is_seen():
    """Two rows of four became two rows of two, not one of four."""

    def reshapes(h):
        return h.reshape(len(h), 2, -1).transpose(1, 2).flatten(1)

    model = Hidden(reshapes).eval()
    shrunk, report = shrink_and_report(model, torch.zeros(1, 4, dtype=torch.long))
    assert shrunk.a.weight.shape == (8, 4)
    assert "would not get the shape" in report.left[0].reason
    ones = torch.ones(3, 4, dtype=torch.long)
    torch.testing.assert_close(shrunk(ones), model(ones))


def test_a_split_that_would_give_fewer_parts_is_seen():
    model = Hidden(lambda h: torch.cat([part.tanh() for part in h.split(2, 1)], 1)).eval()
    zero(model.a.weight[1::2], model.a.bias[1::2])  # the second of each part, and the first two of them
    shrunk, report = shrink_and_report(model, torch.zeros(1, 4, dtype=torch.long))
    assert shrunk.a.weight.shape == (8, 4)
    assert [x.count for x in report.left if "split_with_sizes" in x.reason or "split would" in x.reason] == [4], report
    ones = torch.ones(3, 4, dtype=torch.long)
    torch.testing.assert_close(shrunk(ones), model(ones))


@pytest.mark.parametrize("name", NETWORKS)
def test_shrinking_twice_removes_nothing_more(name):
    generator = torch.Generator().manual_seed(5)
    model = with_zeros(NETWORKS[name][0](), generator, 0.5, silent=False)
    inputs = inputs_of(name, generator)
    once, _ = shrink_and_report(model, inputs)
    again, report = shrink_and_report(once, inputs)
    assert report.shrunk == ()
    assert torch.equal(outputs_of(again, inputs), outputs_of(once, inputs))


class WithBuffers(nn.Module):
    """A mask of minus infinity, and a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, -torch.inf]))
        self.register_buffer("scale", torch.arange(1.0, 9.0), persistent=False)

    def forward(self, x):
        return (self.b(self.a(x).relu() * self.scale) + self.mask).softmax(-1)


def test_a_mask_of_minus_infinity_is_no_obstacle_and_a_buffer_that_is_not_saved_stays():
    model = WithBuffers().eval()
    zero(model.b.weight[:, 2:5])
    x = torch.randn(3, 4)
    shrunk, report = shrink_and_report(model, x)
    torch.testing.assert_close(shrunk(x), model(x))
    assert shrunk.scale.shape == (8,)
    assert report.left
    torch.testing.assert_close(load_shrunk(WithBuffers().eval(), shrunk.state_dict())(x), model(x))


class Trained(nn.Module):
    """A second head in training only."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.second = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.c, self.d = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.a(x).relu()
        out = self.b(h) + self.d(self.c(x).relu())
        return (out, self.second(h)) if self.training else out


def test_what_is_used_in_training_stays():
    model = Trained()
    zero(model.a.weight[:4], model.a.bias[:4], model.c.weight[:4], model.c.bias[:4])
    shrunk, report = shrink_and_report(model, torch.zeros(1, 4))
    assert shrunk.training
    assert len(shrunk(torch.randn(2, 4))) == 2
    assert (shrunk.a.weight.shape, shrunk.c.weight.shape) == ((8, 4), (4, 4))
    assert [x.reason for x in report.left] == ["the network's code in training mode fixes its size"]


def test_groups_that_become_one_are_the_same_convolution():
    """torch.export leaves out the number of groups where it is 1."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1, groups=2), nn.Conv2d(6, 2, 1))
    zero(model[0].weight[4:], model[0].bias[4:], model[2].weight[3:], model[2].bias[3:])
    x = torch.randn(2, 3, 5, 5)
    shrunk, report = shrink_and_report(model.eval(), x)
    assert (shrunk[2].weight.shape, shrunk[2].groups) == ((3, 4, 3, 3), 1)
    assert report.left == ()
    torch.testing.assert_close(shrunk(x), model(x))


class Counts(nn.Module):
    """Counts its calls, and rolls its channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.c(self.b(self.a(x).roll(2, 1)).relu()) + self.calls


def test_code_that_keeps_count_and_code_that_reorders():
    model = Counts().eval()
    zero(model.a.weight[:4], model.a.bias[:4], model.b.weight[:4], model.b.bias[:4])
    x = torch.randn(2, 4)
    state = torch.random.get_rng_state()
    shrunk, report = shrink_and_report(model, x)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (model.calls, shrunk.calls) == (0, 0)
    assert (shrunk.a.weight.shape, shrunk.b.weight.shape) == ((8, 4), (4, 8))
    assert [(x.name, x.dim, x.reason) for x in report.left] == [("a.weight", 0, "roll changes its order")]
    torch.testing.assert_close(shrunk(x), model(x))


def test_order_in_memory_and_what_hangs_on_a_parameter_stay():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    zero(model[0].weight[:3], model[0].bias[:3])
    shrunk = shrink(model, torch.randn(1, 3, 8, 8))
    model[0].weight.group = "slow"
    for small in (shrunk, load_shrunk(model, shrunk.state_dict())):
        assert small[0].weight.shape == (5, 3, 3, 3)
        assert small[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert small[0].weight.group == "slow"


def test_a_new_bias_and_a_normalization_of_zeros_are_in_the_report():
    model = nn.Sequential(nn.Conv2d(1, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1, bias=False), nn.LayerNorm(5)).eval()
    zero(model[1].weight[:2], model[3].weight[:1])
    with torch.no_grad():
        model[1].bias[:2] = 1.0
    _, report = shrink_and_report(model, torch.randn(1, 1, 5, 5))
    assert [(x.shape, x.new_shape) for x in report.shrunk if x.name == "2.bias"] == [(None, (4,))]
    assert ["2.bias", "none", "4"] in [line.split() for line in str(report).splitlines()]
    assert [(x.name, x.count, x.reason) for x in report.left] == [("3.weight", 1, "it is an axis of pixels")]


def test_the_operations_of_a_transformer_of_torch_are_counted():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    _, report = shrink_and_report(model, torch.randn(1, 5, 8))
    assert report.flops[0] >= 2 * 5 * (3 * 64 + 64 + 2 * 128)
    assert torch.backends.mha.get_fastpath_enabled()


class Joined(nn.Module):
    """An empty beginning, as in a cache of keys, and a layer that is its own input."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(3, 2)

    def forward(self, x):
        h = torch.cat([torch.empty(0), self.a(x).relu()], 1)
        return self.b(functional.linear(h, h))


def test_an_empty_part_and_a_product_with_itself():
    model = Joined().eval()
    zero(model.a.weight[:3], model.a.bias[:3])
    x = torch.randn(3, 4)
    shrunk, _ = shrink_and_report(model, x)
    torch.testing.assert_close(shrunk(x), model(x))


def _pruned():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    prune.ln_structured(model[0], "weight", 0.5, 2, 0)
    model(torch.randn(2, 4)).sum().backward()
    return model


class Condition(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = self.a(x)
        return self.b(torch.cond(x.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (h,)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_pruned, "make it a parameter first: prune.remove"),
        (lambda: nn.Sequential(nn.LazyLinear(8)), "call the network once"),
        (lambda: nn.Linear(4, 2, device="meta"), "weight is on the meta device, without values: load"),
        (lambda: nn.Linear(4, 2, dtype=torch.complex64), "weight is complex"),
        (Condition, "branches on its data"),
    ],
)
def test_networks_that_cannot_be_looked_into(model, message):
    with pytest.raises(ShrinkError, match=message):
        shrink(model(), torch.randn(2, 4))


def test_what_is_no_network_is_an_error():
    with pytest.raises(TypeError, match="model"):
        shrink({}, torch.randn(2, 4))


def test_a_path_is_no_state():
    with pytest.raises(TypeError, match=r"state='small.packed': give the state_dict"):
        load_shrunk(nn.Linear(4, 2), "small.packed")


def test_states_that_hold_more_than_tensors():
    class Extra(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(x).relu())

        def get_extra_state(self):
            return {"version": 3}

        def set_extra_state(self, state):
            self.read = state

    model = Extra()
    zero(model.a.weight[:3], model.a.bias[:3])
    shrunk = shrink(model, torch.randn(1, 4))
    again = load_shrunk(Extra(), copy.deepcopy(shrunk.state_dict()))
    assert (again.a.weight.shape, again.read) == ((5, 4), {"version": 3})
