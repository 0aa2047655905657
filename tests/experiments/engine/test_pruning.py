"""The pruning baselines: how many weights go, when, which, and that they stay away."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from strongreg import L1
from strongreg.experiments.engine.pruning import MagnitudePruner, SlimmingPruner, build_pruner, scale_names
from strongreg.experiments.errors import UserError
from strongreg.experiments.models import build_model
from strongreg.experiments.recipe import PruningSection
from strongreg.groups import select_targets


def _params(model: nn.Module) -> dict[str, nn.Parameter]:
    return {t.name: t.param for t in select_targets(model, L1(0.0))}


def _zeros(model: nn.Module) -> int:
    return sum(int((p == 0).sum()) for p in _params(model).values())


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))


def test_the_cubic_schedule_by_hand():
    pruner = MagnitudePruner(_params(_mlp()), compression=10, start=0, end=100, every=10)
    assert pruner.zero_share(0) == 0.0
    assert pruner.zero_share(50) == pytest.approx(0.9 * (1 - 0.5**3))
    assert pruner.zero_share(100) == pruner.zero_share(500) == pytest.approx(0.9)


def test_magnitude_pruning_removes_the_smallest_of_all_layers_and_holds_them():
    model = _mlp()
    params = _params(model)
    pruner = MagnitudePruner(params, compression=10, start=4, end=20, every=4)
    counts = []
    for step in range(1, 31):
        with torch.no_grad():
            for p in params.values():
                p.add_(0.01 * torch.randn_like(p))  # an optimizer that moves all weights
        before = {name: p.detach().clone() for name, p in params.items()}
        pruner.after_step(step)
        counts.append(_zeros(model))
        kept = torch.cat([before[name][p != 0].abs() for name, p in params.items()])
        if step == 8:
            removed = torch.cat([before[name][p == 0].abs() for name, p in params.items()])
            assert removed.max() <= kept.min()
    assert counts[:7] == [0] * 7
    assert counts == sorted(counts)
    assert counts[-1] == round(0.9 * 900) == counts[19]


@pytest.mark.parametrize("values", [[0.0] * 50 + [1.0] * 50, [1.0] * 100, [0.0] * 100], ids=["two", "one", "zero"])
def test_weights_of_the_same_size_leave_as_many_as_asked_for(values):
    parameter = nn.Parameter(torch.tensor(values).view(10, 10))
    pruner = MagnitudePruner({"w": parameter}, compression=4.0, start=1, end=1, every=1)
    pruner.after_step(1)
    assert int(pruner.state_dict()["w"].sum()) == 25


def test_pruning_at_once_reaches_the_compression_in_one_step():
    model = _mlp()
    pruner = build_pruner("oneshot", model, _params(model), PruningSection(compression=4, end_share=0.5), 10)
    for step in range(1, 5):
        pruner.after_step(step)
        assert _zeros(model) == 0
    pruner.after_step(5)
    assert _zeros(model) == 675
    with torch.no_grad():
        model[0].weight.add_(1.0)
    pruner.after_step(6)
    assert _zeros(model) == 675


def test_a_resumed_pruner_goes_on():
    model = _mlp()
    pruner = MagnitudePruner(_params(model), compression=4, start=1, end=5, every=1)
    for step in range(1, 4):
        pruner.after_step(step)
    other = MagnitudePruner(_params(model), compression=4, start=1, end=5, every=1)
    other.load_state_dict(pruner.state_dict())
    with torch.no_grad():
        model[0].weight.add_(1.0)
    other.after_step(100)
    assert _zeros(model) == round(pruner.zero_share(3) * 900)


def _normalized() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


def test_slimming_removes_the_channels_of_the_smallest_scales():
    model = _normalized()
    with torch.no_grad():
        model[1].weight.copy_(torch.arange(1.0, 9.0))
        model[4].weight.copy_(torch.arange(1.5, 9.0))
    assert scale_names(model) == ["1.weight", "4.weight"]
    params = _params(model)
    num = sum(p.numel() for p in params.values())
    pruner = SlimmingPruner(model, params, compression=2, at=3)
    pruner.after_step(2)
    assert _zeros(model) == 0
    pruner.after_step(3)
    gone = [(model[i].weight == 0).nonzero().flatten().tolist() for i in (1, 4)]
    assert gone[0] == list(range(len(gone[0])))  # the smallest first
    assert gone[1] == list(range(len(gone[1])))
    assert abs(len(gone[0]) - len(gone[1])) <= 1
    assert (model[3].weight[gone[1]] == 0).all()
    assert (model[1].bias[gone[0]] == 0).all()
    assert num - _zeros(model) <= num / 2
    assert (model[4].weight != 0).any()


def test_slimming_keeps_a_channel_of_each_layer():
    model = _normalized()
    num = sum(p.numel() for p in _params(model).values())
    fewest = 9 + 9 * 8 + 32 * 4  # a filter of each convolution, and the linear layer
    with pytest.raises(UserError, match=rf"compression=1e\+09: slimming.* reaches {num / fewest - 0.005:.2f} at most"):
        SlimmingPruner(model, _params(model), compression=1e9, at=1)
    SlimmingPruner(model, _params(model), compression=num / fewest, at=1).after_step(1)
    assert [int((model[i].weight != 0).sum()) for i in (1, 4)] == [1, 1]


def test_a_normalization_in_front_of_a_convolution_idles_its_inputs():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 5, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.1, 2.0, 3.0]))
    SlimmingPruner(model, _params(model), compression=1.2, at=1).after_step(1)
    assert (model[2].weight[:, 0] == 0).all()
    assert (model[2].weight[:, 1:] != 0).all()


class Lists(nn.Module):
    """Convolutions in one list, their normalizations in another, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = self.norms[0](self.convs[0](images))
        read_twice = self.convs[1](torch.relu(first))
        return self.norms[1](read_twice) + read_twice + self.norms[2](self.convs[2](first))


def test_normalizations_are_paired_by_the_flow_of_data():
    model = Lists()
    assert scale_names(model) == ["norms.0.weight", "norms.2.weight"]
    kept = SlimmingPruner(model, _params(model), compression=1.2, at=1)._masks(torch.arange(3))
    assert {name for name, mask in kept.items() if not mask.all()} == {
        "norms.0.weight",
        "norms.0.bias",
        "convs.0.weight",
    }


class Read(nn.Module):
    """A normalized convolution, and what else a forward method does with the two of them."""

    def __init__(self, forward, conv=None) -> None:
        super().__init__()
        self.conv = conv or nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.twin = nn.Conv2d(3, 4, 1)
        self._forward = forward

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._forward(self, images)


def _in_a_row(net, images):
    return net.norm(net.conv(images))


def test_a_normalization_called_by_keyword_is_found():
    assert scale_names(Read(lambda net, images: net.norm(input=net.conv(images)))) == ["norm.weight"]


@pytest.mark.parametrize("read", ["conv", "norm"])
def test_weights_that_are_read_past_their_module_are_left_alone(read):
    net = Read(lambda net, images: net.norm(net.conv(images)) + getattr(net, read).weight.sum())
    assert scale_names(net) == []


def test_tied_weights_are_left_alone():
    net = Read(lambda net, images: net.norm(net.conv(images)) + net.twin(images))
    assert scale_names(net) == ["norm.weight"]
    net.twin.weight = net.conv.weight
    assert scale_names(net) == []


def test_frozen_and_computed_weights_are_left_alone():
    assert scale_names(Read(_in_a_row)) == ["norm.weight"]
    for frozen in ("norm.weight", "norm.bias", "conv.weight"):
        net = Read(_in_a_row)
        net.get_parameter(frozen).requires_grad_(False)
        assert scale_names(net) == []
    assert scale_names(Read(_in_a_row, nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)))) == []


@pytest.mark.parametrize(("name", "num"), [("resnet20", 19), ("wrn28_2", 22)])
def test_weights_that_slimming_removes_are_idle(name, num):
    """With scale and shift of a channel at 0, the weights that it takes change nothing, whatever they are."""
    model = build_model(name, (3, 16, 16), 10).eval()
    assert len(scale_names(model)) == num
    pruner = SlimmingPruner(model, _params(model), compression=1.0, at=1)
    masks = pruner._masks(torch.randperm(sum(layer.scale.numel() for layer in pruner._layers))[:200])
    with torch.no_grad():
        for scale in (key for key in masks if key in pruner.params and pruner.params[key].dim() == 1):
            pruner.params[scale].masked_fill_(~masks[scale], 0.0)
        images = torch.randn(2, 3, 16, 16)
        before = model(images)
        for key, mask in masks.items():
            pruner.params[key].masked_fill_(~mask, 0.0)
        torch.testing.assert_close(model(images), before, rtol=1e-5, atol=1e-6)
    assert sum(int((~mask).sum()) for mask in masks.values()) > 200


def test_methods_that_do_not_prune_have_no_pruner():
    model = _mlp()
    for method in ("dense", "always", "delayed", "coherent"):
        assert build_pruner(method, model, _params(model), PruningSection(), 10) is None
