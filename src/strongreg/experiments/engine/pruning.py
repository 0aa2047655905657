"""The baselines that prune: by magnitude, gradually or at once, and by the scales of batch normalization."""

from __future__ import annotations

import abc
import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase  # every batch normalization derives from it; torch has no public name

from strongreg.experiments.errors import UserError
from strongreg.experiments.recipe import PruningSection

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_ZERO_STAYS = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Dropout, nn.Dropout2d, nn.Identity, nn.MaxPool2d)
_ZERO_STAYS_FUNCTIONS = (torch.relu, torch.tanh, functional.relu, functional.gelu, functional.silu, "relu", "tanh")


class Pruner(abc.ABC):
    """Holds weights at zero from when they were pruned.

    Args:
        params: the prunable weights by name.
    """

    def __init__(self, params: dict[str, nn.Parameter]) -> None:
        self.params = params
        self._kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Prune if it is time, and put pruned weights back to 0.

        Args:
            step: number of optimizer steps done, >= 1.
        """
        self._update(step)
        for name, kept in self._kept.items():
            self.params[name].masked_fill_(~kept, 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        """Which weights are kept, for a checkpoint.

        Returns:
            Boolean tensors by parameter name.
        """
        return dict(self._kept)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        Args:
            state: what it returned.
        """
        self._kept = {name: kept.to(self.params[name].device) for name, kept in state.items()}

    @abc.abstractmethod
    def _update(self, step: int) -> None:
        """Set ``_kept`` if weights are to be pruned after this step."""


class MagnitudePruner(Pruner):
    r"""Gradual magnitude pruning, over all weights together, along a cubic schedule.

    The share of zeros after step :math:`t` is :math:`s_f\,(1 - (1 - \tfrac{t - t_0}{t_1 - t_0})^3)`, with :math:`s_f`
    the final one. ``start == end`` prunes once.

    Args:
        params: the prunable weights by name.
        compression: how many times fewer weights to leave.
        start: step of the first pruning.
        end: step of the last.
        every: steps between two.

    References:
        M. Zhu, S. Gupta, *To Prune, or Not to Prune: Exploring the Efficacy of Pruning for Model Compression*, arXiv
        1710.01878.
    """

    def __init__(
        self, params: dict[str, nn.Parameter], *, compression: float, start: int, end: int, every: int
    ) -> None:
        super().__init__(params)
        self.final_share = 1 - 1 / compression
        self.start, self.end, self.every = start, max(end, start, 1), every

    def zero_share(self, step: int) -> float:
        """The share of weights that are to be zero.

        Args:
            step: number of optimizer steps done.

        Returns:
            A number in [0, 1].
        """
        if step < self.start or (step == self.start and self.end > self.start):
            return 0.0
        progress = 1.0 if step >= self.end else (step - self.start) / (self.end - self.start)
        return self.final_share * (1 - (1 - progress) ** 3)

    def _update(self, step: int) -> None:
        due = step == self.end or (self.start < step < self.end and (step - self.start) % self.every == 0)
        if not due:
            return
        sizes = torch.cat([param.detach().abs().flatten() for param in self.params.values()])
        num_zeros = round(self.zero_share(step) * sizes.numel())
        if num_zeros == 0:
            return
        threshold = sizes.kthvalue(num_zeros).values
        kept = sizes > threshold
        ties = (sizes == threshold).nonzero()[:, 0]
        num_tied_kept = len(sizes) - num_zeros - int(kept.sum())
        kept[ties[len(ties) - num_tied_kept :]] = True
        parts = kept.split([param.numel() for param in self.params.values()])
        self._kept = {name: part.view_as(p) for (name, p), part in zip(self.params.items(), parts, strict=True)}


class SlimmingPruner(Pruner):
    """Removes the channels of the smallest batch-normalization scales, all layers together, at one step.

    Scale and shift of a removed channel become 0, and so do the weights that they make idle: those into the channel
    where the normalization follows a convolution, those out of it where it precedes one. One channel of each layer is
    kept. Normalizations of sums, and of what others read too, are left alone.

    Args:
        model: the network.
        params: its prunable weights by name.
        compression: how many times fewer of them to leave at least.
        at: the step.

    Raises:
        UserError: so few weights cannot be reached.

    References:
        Z. Liu, J. Li, Z. Shen, G. Huang, S. Yan, C. Zhang, *Learning Efficient Convolutional Networks through Network
        Slimming*, arXiv 1708.06519.
    """

    def __init__(self, model: nn.Module, params: dict[str, nn.Parameter], *, compression: float, at: int) -> None:
        self._layers = _normalized_convolutions(model)
        super().__init__(params | {name: p for layer in self._layers for name, p in layer.scales.items()})
        self._prunable, self._compression, self._at = params, compression, max(at, 1)
        num_channels = sum(layer.scale.numel() for layer in self._layers)
        reachable = self._num_weights / max(self._num_kept(self._masks(torch.arange(num_channels))), 1)
        if reachable < compression:
            at_most = f"{math.floor(100 * reachable) / 100:g}"
            raise UserError(
                f"pruning.compression={compression:g}: slimming, by whole channels, reaches {at_most} at most here: "
                f"set pruning.compression to {at_most} or less"
            )

    def _update(self, step: int) -> None:
        if step != self._at:
            return
        scales = torch.cat([layer.scale.detach().abs() for layer in self._layers])
        order = scales.argsort(stable=True)
        low, high = 0, len(order)
        while low < high:  # the fewest channels that leave few enough weights
            middle = (low + high) // 2
            if self._num_kept(self._masks(order[:middle])) * self._compression <= self._num_weights:
                high = middle
            else:
                low = middle + 1
        self._kept = self._masks(order[:low])

    @property
    def _num_weights(self) -> int:
        return sum(param.numel() for param in self._prunable.values())

    def _num_kept(self, masks: dict[str, Tensor]) -> int:
        removed = sum(int((~masks[name]).sum()) for name in self._prunable if name in masks)
        return self._num_weights - removed

    def _masks(self, removed: Tensor) -> dict[str, Tensor]:
        masks: dict[str, Tensor] = {}
        first = 0
        for layer in self._layers:
            num = layer.scale.numel()
            kept = torch.ones(num, dtype=torch.bool, device=layer.scale.device)
            kept[removed[(removed >= first) & (removed < first + num)] - first] = False
            kept[layer.scale.detach().abs().argmax()] = True
            first += num
            masks |= dict.fromkeys(layer.scales, kept)
            shape = [1] * layer.weight.dim()
            shape[layer.dim] = num
            mask = kept.view(shape).expand_as(layer.weight)
            masks[layer.weight_name] = masks.get(layer.weight_name, torch.ones_like(mask)) & mask
        return masks


class _Layer:
    """A batch normalization and the convolution whose weights its scales make idle."""

    def __init__(self, norm_name: str, norm: _NormBase, conv_name: str, conv: _Convolution, dim: int) -> None:
        self.scale = norm.weight
        self.scales = {f"{norm_name}.weight": norm.weight, f"{norm_name}.bias": norm.bias}
        self.weight, self.weight_name, self.dim = conv.weight, f"{conv_name}.weight", dim


def _normalized_convolutions(model: nn.Module) -> list[_Layer]:
    """The batch normalizations whose scales make weights idle, by the flow of data that torch.fx finds; none without.

    A normalization counts if it alone reads the output of one convolution, or if one convolution alone reads its own,
    through nothing but functions that keep 0 at 0.
    """
    try:
        nodes = list(fx.symbolic_trace(model).graph.nodes)
    except Exception:  # whatever a forward method raises when it is given symbols instead of tensors
        return []
    modules = dict(model.named_modules())
    num_calls = Counter(node.target for node in nodes if node.op == "call_module")
    own = _own_params(model, nodes)
    once: dict[Any, nn.Module] = {
        node: modules[str(node.target)] for node in nodes if node.op == "call_module" and num_calls[node.target] == 1
    }
    layers: list[_Layer] = []
    for node, norm in once.items():
        if not isinstance(norm, _NormBase) or not {f"{node.target}.weight", f"{node.target}.bias"} <= own:
            continue
        before, after = node.all_input_nodes[0], _only_reader(node, modules)
        for other, dim in ((before, 0), (after, 1)):
            conv = once.get(other)
            if other is None or not isinstance(conv, _Convolution) or f"{other.target}.weight" not in own:
                continue
            fits = conv.groups == 1 and conv.weight.shape[dim] == norm.num_features
            if fits and (dim == 1 or len(other.users) == 1):
                layers.append(_Layer(str(node.target), norm, str(other.target), conv, dim))
                break
    return layers


def _own_params(model: nn.Module, nodes: list[fx.Node]) -> set[str]:
    """The names of the trainable parameters of one module each, which no forward method reads past that module."""
    named = [(name, p) for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad]
    num_names = Counter(id(p) for _, p in named)
    read = {str(node.target) for node in nodes if node.op == "get_attr"}
    read_ids = {id(p) for name, p in named if name in read}
    return {name for name, p in named if num_names[id(p)] == 1 and id(p) not in read_ids}


def _only_reader(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """What alone reads a node's output, beyond functions that keep 0 at 0."""
    while len(node.users) == 1:
        (node,) = node.users
        called = modules[str(node.target)] if node.op == "call_module" else node.target
        if not (isinstance(called, _ZERO_STAYS) or called in _ZERO_STAYS_FUNCTIONS):
            return node
    return None


def scale_names(model: nn.Module) -> list[str]:
    """The names of the batch-normalization scales that slimming penalizes.

    Args:
        model: the network.

    Returns:
        Parameter names, in the model's order.
    """
    return [name for layer in _normalized_convolutions(model) for name in list(layer.scales)[:1]]


def build_pruner(
    method: str, model: nn.Module, params: dict[str, nn.Parameter], section: PruningSection, num_steps: int
) -> Pruner | None:
    """The pruner of a method.

    Args:
        method: any method.
        model: the network.
        params: the weights that count, by name.
        section: how much, and when.
        num_steps: optimizer steps of the whole run.

    Returns:
        A pruner, or None for a method that does not prune.
    """
    start, end = (max(round(num_steps * share), 1) for share in (section.start_share, section.end_share))
    if method == "magnitude":
        return MagnitudePruner(params, compression=section.compression, start=start, end=end, every=section.every)
    if method == "oneshot":
        return MagnitudePruner(params, compression=section.compression, start=end, end=end, every=1)
    if method == "slimming":
        return SlimmingPruner(model, params, compression=section.compression, at=end)
    return None
