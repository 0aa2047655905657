"""A shrunk network computes the same at every size of its inputs, whatever the size of the example was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from compression.shrinking.networks import zero
from strongreg.compression import shrink, shrink_and_report


def _same_at_all_sizes(model, example, sizes):
    shrunk = shrink(model, torch.zeros(1, 1, example, example))
    for size in sizes:
        images = torch.randn(2, 1, size, size)
        torch.testing.assert_close(shrunk(images), model(images))
    return shrunk


def _ends(*layers):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double().eval()


@pytest.fixture(autouse=True)
def _in_double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_a_kernel_that_only_reads_the_border_of_one_pixel_reads_more_of_an_image():
    """On an image of one pixel all but the middle of the kernel lies outside of it."""
    model = _ends(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU())
    zero(model[2].weight[:, :3, 1, 1])
    shrunk = _same_at_all_sizes(model, 1, (1, 2, 5))
    assert shrunk[0].weight.shape[0] == 6


def test_a_constant_that_is_even_on_one_pixel_is_not_on_an_image():
    """The third layer reads a constant of the second, which is the first one's bias, with zeros around it."""
    model = _ends(
        *(nn.Conv2d(1, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 1)),
    )
    zero(model[0].weight[:4], model[2].weight[:3, 4:])
    with torch.no_grad():
        model[0].bias.fill_(1.0)
        model[2].weight.abs_()
    _same_at_all_sizes(model, 1, (1, 2, 5))


@pytest.mark.parametrize("pool", [nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1, False, False)])
def test_a_pooled_constant(pool):
    model = _ends(nn.Conv2d(1, 6, 1), pool, nn.Conv2d(6, 4, 1))
    zero(model[0].weight[:4])
    _same_at_all_sizes(model, 1, (1, 2, 5))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_transposed_convolution_of_a_constant(stride):
    model = _ends(nn.Conv2d(1, 6, 1), nn.ConvTranspose2d(6, 5, 3, stride), nn.Conv2d(5, 4, 1))
    zero(model[0].weight[:4], model[1].weight[4:, :2])
    with torch.no_grad():
        model[1].weight[:4] = 1.0
    _same_at_all_sizes(model, 1, (1, 2, 5))


@pytest.mark.parametrize("padding", ["same", "valid", 2, (0, 1)])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 2), (2, 1), ((1, 4), 1)])
def test_convolutions_of_constants_with_any_border(padding, kernel, dilation):
    model = _ends(nn.Conv2d(1, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, kernel, padding=padding, dilation=dilation))
    zero(model[0].weight[2:])
    with torch.no_grad():
        model[0].bias[2:] = torch.rand(4)
    shrunk = _same_at_all_sizes(model, 8, (8, 11, 6))
    assert shrunk[0].weight.shape[0] < 6


class Crops(nn.Module):
    """Of a larger image it reads more channels' places than of a small one."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 1), nn.Linear(6, 3)

    def forward(self, x):
        x = self.a(x)
        weights = torch.arange(x.shape[-1], dtype=x.dtype).clamp(0, 1)  # 0 for a single pixel
        return self.b((x * weights).mean((2, 3)))


def test_what_the_code_does_only_at_another_size_is_seen_at_that_size():
    model = Crops().eval()
    shrunk, report = shrink_and_report(model, torch.zeros(1, 1, 1, 1))
    images = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(shrunk(images), model(images))
    assert shrunk.a.weight.shape[0] == 6
    assert report.shrunk == ()


class Pooled(nn.Module):
    """Only the places of the largest numbers are used."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 3), nn.Linear(6, 3)

    def forward(self, x):
        _, places = functional.max_pool2d(self.a(x), 2, return_indices=True)
        return self.b(places.to(x.dtype).mean((2, 3)))


def test_the_places_of_the_largest_numbers_matter():
    model = Pooled().eval()
    shrunk = _same_at_all_sizes(model, 6, (6, 9))
    assert shrunk.a.weight.shape[0] == 6


def test_sizes_are_rounded_up_where_zeros_suffice():
    model = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    zero(model[0].weight[:21], model[2].weight[:1], model[2].bias[:1], model[2].weight[:, :7])
    inputs = torch.randn(5, 4)
    shrunk, report = shrink_and_report(model, inputs, round_to=8)
    assert [layer.weight.shape for layer in shrunk if isinstance(layer, nn.Linear)] == [(16, 4), (20, 16), (3, 20)]
    assert {x.reason for x in report.left if x.name == "0.weight"} == {"sizes are rounded up to multiples of 8"}
    torch.testing.assert_close(shrunk(inputs), model(inputs))
    with pytest.raises(ValueError, match="round_to=0: give 1 or more"):
        shrink(model, inputs, round_to=0)
    with pytest.raises(TypeError, match=r"round_to=2\.5: give a whole number"):
        shrink(model, inputs, round_to=2.5)
