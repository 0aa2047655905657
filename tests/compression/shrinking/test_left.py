"""What is folded, what stays, and the reasons that the report gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compression.shrinking.networks import outputs_of, zero
from strongreg.compression import ShrinkError, shrink, shrink_and_report


def _reasons(report):
    return [(x.name, x.dim, x.count, x.reason) for x in report.left]


def test_a_constant_that_the_border_makes_uneven_is_merged_into_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)).eval()
    zero(model[0].weight[1:5])
    with torch.no_grad():
        model[0].bias[1:5] = torch.tensor([0.5, -1.0, 2.0, 0.25])  # the second is silent behind the rectifier
    shrunk, report = shrink_and_report(model, torch.zeros(1, 1, 5, 5))
    assert shrunk[0].bias.tolist() == model[0].bias[[0, 3, 5]].tolist()
    assert [reason[:3] for reason in _reasons(report)] == [("0.weight", 0, 1)]
    assert report.left[0].reason == "it stands for all constants of its layer, uneven at the border"
    images = torch.randn(3, 1, 5, 5)
    torch.testing.assert_close(shrunk(images), model(images))


def test_without_a_border_a_constant_goes_into_the_bias_which_is_made_if_there_is_none():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False)).eval()
    zero(model[0].weight[2:])
    with torch.no_grad():
        model[0].bias[2:] = 1.0
    shrunk, report = shrink_and_report(model, torch.zeros(1, 1, 7, 7))
    assert shrunk[0].weight.shape == (2, 1, 3, 3)
    assert report.left == ()
    torch.testing.assert_close(shrunk[2].bias, model[2].weight[:, 2:].sum((1, 2, 3)))
    images = torch.randn(3, 1, 7, 7)
    torch.testing.assert_close(shrunk(images), model(images))


class FixedSize(nn.Module):
    """Its code says how many features there are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.a(x).relu().view(x.shape[0], 8)
        return self.c(self.b(x).relu())


class Reckons(nn.Module):
    """Its outputs depend on how many features there are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8, bias=False), nn.Linear(8, 2)

    def forward(self, x):
        x = self.a(x)
        return self.b(x * x.shape[1])


def test_what_the_code_fixes_stays_and_all_else_goes():
    model = FixedSize().eval()
    zero(model.a.weight[:3], model.a.bias[:3], model.b.weight[:2], model.b.bias[:2])
    shrunk, report = shrink_and_report(model, torch.zeros(1, 4))
    assert shrunk.a.weight.shape == (8, 4)
    assert shrunk.b.weight.shape == (6, 8)
    assert shrunk.c.weight.shape == (2, 6)
    ((name, dim, count, reason),) = _reasons(report)
    assert (name, dim, count) == ("a.weight", 0, 3)
    assert reason.startswith("the network's code fixes its size (")


def test_what_the_code_reckons_with_stays():
    model = Reckons().eval()
    zero(model.a.weight[:3])
    shrunk, report = shrink_and_report(model, torch.ones(1, 4))
    assert shrunk.a.weight.shape == (8, 4)
    assert "reckons with its size" in _reasons(report)[0][3]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.lstm = nn.Linear(4, 6), nn.LSTM(6, 5, batch_first=True)
        self.attention = nn.MultiheadAttention(5, 1, batch_first=True)
        self.norm, self.after = nn.GroupNorm(1, 5), nn.Linear(5, 3)

    def forward(self, x):
        x, _ = self.lstm(self.before(x))
        x, _ = self.attention(x, x, x, need_weights=False)
        return self.after(self.norm(x.mT).mT)


def test_what_is_not_known_stays_with_its_reason():
    model = Recurrent().eval()
    zero(model.before.weight[:2], model.before.bias[:2], model.after.weight[:, 0], model.attention.out_proj.weight[1])
    zero(model.attention.out_proj.bias[1])
    inputs = torch.randn(2, 4, 4)
    shrunk, report = shrink_and_report(model, inputs)
    torch.testing.assert_close(outputs_of(shrunk, inputs), outputs_of(model, inputs))
    reasons = {name: reason for name, _, _, reason in _reasons(report)}
    assert reasons["before.weight"] == "lstm needs all of it"
    assert reasons["attention.out_proj.weight"] == "group_norm needs all of it"


def test_a_parametrized_weight_is_left_alone():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2)).eval()
    zero(model[2].weight[:, :3])
    inputs = torch.randn(2, 4)
    shrunk, _ = shrink_and_report(model, inputs)
    torch.testing.assert_close(shrunk(inputs), model(inputs))


def test_a_layer_that_is_all_zeros_keeps_one_index():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    zero(model[0].weight)
    inputs = torch.randn(5, 4)
    shrunk, report = shrink_and_report(model, inputs)
    assert shrunk[0].weight.shape == (1, 4)
    assert "one index of an axis is kept" in {x.reason for x in report.left}
    torch.testing.assert_close(shrunk(inputs), model(inputs))


def test_nothing_to_remove_leaves_the_same_network():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    shrunk, report = shrink_and_report(model, torch.zeros(1, 4))
    assert (report.shrunk, report.left, report.difference) == ((), (), 0.0)
    assert shrunk is not model
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), shrunk.parameters(), strict=True))


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.b(nn.functional.dropout(self.a(x), 0.5, training=True))


def test_what_is_drawn_at_random_is_not_taken_for_a_constant():
    model = Noisy()
    zero(model.a.weight[:3])
    shrunk, report = shrink_and_report(model, torch.zeros(1, 4))
    assert shrunk.a.weight.shape == (6, 4)
    assert report.left


def test_the_report_is_a_table():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    zero(model[0].weight[:3], model[0].bias[:3], model[2].weight[0])
    _, report = shrink_and_report(model, torch.zeros(1, 4))
    lines = str(report).splitlines()
    assert lines[0].split() == ["tensor", "shape", "shrunk", "to"]
    assert lines[2].split() == ["0.weight", "6x4", "3x4"]
    assert lines[-3].split() == ["parameters", "51", "27"]
    assert lines[-2] == "1.9 times fewer parameters, 2.0 times fewer FLOPs"
    assert lines[-1] == "left in 2.weight: 1 row of zeros, since the network returns it"
    assert report.flops == (2 * (24 + 18), 2 * (12 + 9))


class Masked(nn.Module):
    """Divides by its width, and returns minus infinity in one place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x):
        h = self.a(x).relu().float()
        bad = torch.tensor([False, False, False, True])
        logits = self.b(h)
        return (logits / h.shape[-1] ** 0.5).masked_fill(bad, -torch.inf).log_softmax(-1), logits > 0


def test_infinite_outputs_do_not_hide_a_difference():
    torch.manual_seed(0)
    model = Masked().eval()
    zero(model.a.weight[6:], model.a.bias[6:])
    with torch.no_grad():
        shrunk, report = shrink_and_report(model, torch.randn(2, 6))
    assert shrunk.a.weight.shape == (12, 6)
    assert "reckons with its size" in _reasons(report)[0][3]
    assert report.difference == 0.0


def test_an_empty_example_is_an_error():
    with pytest.raises(ShrinkError, match="has no elements"):
        shrink(nn.Linear(4, 2), torch.zeros(0, 4))
