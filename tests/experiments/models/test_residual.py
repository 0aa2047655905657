"""Residual networks: published sizes, shortcuts, and the order of activation."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from strongreg.experiments.models import build_model
from strongreg.experiments.models.residual import wide_resnet


def _count(name, image_shape=(3, 32, 32), num_classes=10) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(name, image_shape, num_classes).parameters())


def _block(before: int, after: int) -> int:
    """Two 3x3 convolutions without bias, each with its normalization."""
    return (before * after * 9 + 2 * after) + (after * after * 9 + 2 * after)


def _cifar(num_blocks: int) -> int:
    """Counted by hand; the shortcuts have no weights."""
    stem = 3 * 16 * 9 + 2 * 16
    first = num_blocks * _block(16, 16)
    second = _block(16, 32) + (num_blocks - 1) * _block(32, 32)
    third = _block(32, 64) + (num_blocks - 1) * _block(64, 64)
    return stem + first + second + third + (64 * 10 + 10)


@pytest.mark.parametrize(
    ("name", "num_parameters", "num_blocks"),  # arXiv 1512.03385, table 6: 0.27 M, 0.46 M, 0.85 M
    [("resnet20", 269_722, 3), ("resnet32", 464_154, 5), ("resnet56", 853_018, 9)],
)
def test_the_networks_of_he_et_al_have_their_published_size(name, num_parameters, num_blocks):
    assert _count(name) == num_parameters == _cifar(num_blocks)


def test_resnet18_has_its_published_size():
    stem = 3 * 64 * 9 + 2 * 64
    groups = 2 * _block(64, 64)
    for before, after in ((64, 128), (128, 256), (256, 512)):
        groups += _block(before, after) + _block(after, after) + (before * after + 2 * after)
    # 11.17 M: github.com/kuangliu/pytorch-cifar
    assert _count("resnet18") == 11_173_962 == stem + groups + (512 * 10 + 10)


def _pre_activation_block(before: int, after: int) -> int:
    return (2 * before + before * after * 9) + (2 * after + after * after * 9)


def test_wrn28_2_has_its_published_size():
    groups = 0
    for before, after in ((16, 32), (32, 64), (64, 128)):
        groups += _pre_activation_block(before, after) + before * after + 3 * _pre_activation_block(after, after)
    assert _count("wrn28_2") == 1_467_610 == 3 * 16 * 9 + groups + 2 * 128 + (128 * 10 + 10)


@pytest.mark.parametrize(
    ("depth", "widening", "millions"),  # arXiv 1605.07146, table 4
    [(40, 1, 0.6), (40, 2, 2.2), (40, 4, 8.9), (16, 8, 11.0), (28, 10, 36.5)],
)
def test_wide_networks_have_the_sizes_of_the_paper(depth, widening, millions):
    with torch.device("meta"):
        model = wide_resnet(depth, widening, (3, 32, 32), 10)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize(("name", "num_weights"), [("resnet20", 20), ("resnet32", 32), ("resnet56", 56)])
def test_the_name_counts_the_layers_with_weights(name, num_weights):
    with torch.device("meta"):
        modules = list(build_model(name, (3, 32, 32), 10).modules())
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in modules) == num_weights


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("resnet18", [64, 64, 32, 16, 8]), ("resnet20", [64, 64, 32, 16]), ("wrn28_2", [64, 64, 32, 16])],
)
def test_the_stem_and_the_groups_have_the_sizes_of_the_papers(name, sizes):
    model = build_model(name, (3, 64, 64), 10).eval()
    seen = []
    x = model.get_submodule("stem")(torch.rand(1, 3, 64, 64))
    seen.append(x.shape[-1])
    blocks = model.get_submodule("blocks")
    num_groups = len(sizes) - 1
    for i, block in enumerate(blocks, start=1):
        x = block(x)
        if i % (len(blocks) // num_groups) == 0:
            seen.append(x.shape[-1])
    assert seen == sizes


def test_shortcuts_without_weights_take_every_second_pixel_and_surround_the_channels_with_zeros():
    block = build_model("resnet20", (3, 32, 32), 10).eval().get_submodule("blocks.3")
    nn.init.zeros_(block.conv2.weight)  # the shortcut alone is left
    for size in (6, 7):
        x = torch.rand(2, 16, size, size)
        y = block(x)
        assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
        assert (y[:, :8] == 0).all()
        assert (y[:, 24:] == 0).all()


def test_blocks_of_the_wide_network_activate_first_and_add_the_bare_input():
    first, second = build_model("wrn28_2", (3, 32, 32), 10).eval().get_submodule("blocks")[:2]
    x = torch.randn(2, 16, 8, 8)
    activated = functional.relu(first.norm1(x))
    hidden = functional.relu(first.norm2(first.conv1(activated)))
    y = first(x)
    torch.testing.assert_close(y, first.conv2(hidden) + first.shortcut(activated))
    assert first.shortcut.kernel_size == (1, 1)
    assert (y < 0).any()
    nn.init.zeros_(second.conv2.weight)
    assert torch.equal(second(y), y)  # negative values pass


def test_blocks_of_the_other_networks_activate_the_sum():
    for name in ("resnet18", "resnet20"):
        block = build_model(name, (3, 32, 32), 10).eval().get_submodule("blocks.1")
        x = torch.randn(2, block.conv1.in_channels, 8, 8)
        hidden = functional.relu(block.norm1(block.conv1(x)))
        torch.testing.assert_close(block(x), functional.relu(block.norm2(block.conv2(hidden)) + x))
