"""Whether a layer is faster in CSR, on this machine and with its own inputs; or why that is not even asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from strongreg.compression.sparse_inference.layers import SparseConv1x1, SparseLinear
from strongreg.compression.sparse_inference.report import SparsifyRow
from strongreg.timing import interleaved_medians

_SMALLEST_SPARSITY = 0.5  # below it hardly any shape is faster in CSR (benchmarks/README.md, Sparse inference)
_DTYPES = (torch.float32, torch.float64)
_SECONDS_PER_INPUT = 0.05
_MOST_INPUTS = 4  # different ones of a layer that are measured


@dataclass
class Trial:
    """A layer, its form in CSR if it may have one, and the times of both.

    Args:
        dense: the layer.
        reason: why it is left dense, as far as is known; empty if it may be converted.
        sparse: its form in CSR, built here.
        counts: how often each kind of input came, by shape and strides.
        times: seconds of a call dense and in CSR, for each kind of input that was measured.
    """

    dense: nn.Module
    reason: str
    sparse: nn.Module | None = None
    counts: dict[Any, int] = field(default_factory=dict)
    times: dict[Any, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Build the form in CSR."""
        if not self.reason:
            form = SparseLinear if isinstance(self.dense, nn.Linear) else SparseConv1x1
            weight, bias = self.dense.weight, self.dense.bias
            assert isinstance(weight, Tensor)
            assert bias is None or isinstance(bias, Tensor)
            self.sparse = form(weight, bias)

    def measure_rows(self, batch_size: int) -> None:
        """Measure a linear layer with a matrix.

        Args:
            batch_size: number of its rows.
        """
        if self.sparse is None:
            return
        if isinstance(self.dense, nn.Linear):
            self.measure(torch.ones(batch_size, self.dense.in_features, dtype=self.dense.weight.dtype))
        else:
            self.reason = "a convolution, measured only with example_inputs"

    def measure(self, inputs: Tensor) -> None:
        """Measure both forms with an input, unless one like it was measured before.

        Args:
            inputs: what the layer is called with.
        """
        key = (tuple(inputs.shape), inputs.stride())
        if self.sparse is None or (key not in self.counts and len(self.counts) == _MOST_INPUTS):
            return
        self.counts[key] = self.counts.get(key, 0) + 1
        if self.counts[key] > 1 or self.reason:
            return
        dense, sparse = self.dense.forward, self.sparse.forward
        try:
            sparse(inputs)
        except RuntimeError as error:
            self.reason = f"CSR fails here ({str(error).partition(chr(10))[0]})"
            return
        self.times[key] = interleaved_medians(
            [lambda: dense(inputs), lambda: sparse(inputs)], seconds=_SECONDS_PER_INPUT
        )

    def decide(self, min_speedup: float) -> str:
        """Why the layer is left dense, known once it was measured.

        Args:
            min_speedup: smallest time dense / time in CSR for which it is converted.

        Returns:
            The reason, empty if it is to be converted.
        """
        if not self.reason and not self.times:
            self.reason = "not called with these example_inputs"
        dense, sparse = self._seconds()
        if not self.reason and dense < min_speedup * sparse:
            self.reason = f"not {min_speedup:g} times faster in CSR"
        return self.reason

    def row(self, name: str) -> SparsifyRow:
        """What the report says.

        Args:
            name: of the layer.

        Returns:
            A row.
        """
        weight = self.dense._parameters.get("weight")
        if weight is None or not _is_plain(weight):
            return SparsifyRow(name, (), 0, 0, reason=self.reason)
        inputs = tuple(shape for shape, _ in self.times)
        zeros, shape = _num_zeros(weight), tuple(weight.shape)
        return SparsifyRow(name, shape, zeros, weight.numel(), inputs, *self._seconds(), self.reason)

    def _seconds(self) -> tuple[float, float]:
        """Times of both forms, of all calls together."""
        both = [[self.counts[key] * seconds for seconds in times] for key, times in self.times.items()]
        return sum(times[0] for times in both), sum(times[1] for times in both)


def trials_of(model: nn.Module) -> dict[str, Trial]:
    """Every linear layer and convolution of a network.

    Args:
        model: the network.

    Returns:
        A trial per layer, by name.
    """
    modules = dict(model.named_modules())
    read = {
        id(child)
        for parent in modules.values()
        if isinstance(parent, nn.TransformerEncoderLayer)
        for child in parent.children()
    }
    trials: dict[str, Trial] = {}
    for name, module in modules.items():
        if isinstance(module, nn.Linear | nn.Conv2d):
            reason = _reason(module)
            if "_orig_mod" in name.split("."):
                reason = "compiled (sparsify before torch.compile)"
            elif id(module) in read:
                reason = "read, not called, by nn.TransformerEncoderLayer"
            trials[name] = Trial(module, reason)
    return trials


def _reason(module: nn.Linear | nn.Conv2d) -> str:
    """Why a layer is not even measured; empty if it is."""
    own, weight = module._parameters, module._parameters.get("weight")
    if parametrize.is_parametrized(module):
        return "parametrized (torch.nn.utils.parametrize.remove_parametrizations first)"
    if type(module) not in (nn.Linear, nn.Conv2d):
        return f"of class {type(module).__name__}"
    if isinstance(module, nn.Conv2d) and not _is_pointwise(module):
        return "not a 1x1 convolution with stride 1, no padding and one group"
    if weight is None or "bias" not in own:
        return "its weight or bias computed by a hook (torch.nn.utils.prune.remove or the like first)"
    if "forward" in vars(module):
        return "its forward replaced"
    if not _is_plain(weight):
        return f"its weight a {type(weight).__name__} of layout {weight.layout} on {weight.device.type}"
    if weight.device.type != "cpu":
        return f"on {weight.device.type} (CSR is measured on the CPU only)"
    if weight.dtype not in _DTYPES:
        return f"in {weight.dtype} (CSR computes in float32 and float64 only)"
    if _num_zeros(weight) < _SMALLEST_SPARSITY * weight.numel() or not weight.numel():
        return f"fewer than {_SMALLEST_SPARSITY:.0%} zeros"
    return ""


def _is_plain(weight: nn.Parameter) -> bool:
    """Whether it is a dense tensor with values, and of no class that computes in its own way."""
    return type(weight) is nn.Parameter and weight.layout == torch.strided and not weight.is_meta


def _is_pointwise(module: nn.Conv2d) -> bool:
    padded = module.padding not in ("same", "valid", (0, 0))
    return module.kernel_size == module.stride == (1, 1) and module.groups == 1 and not padded


def _num_zeros(weight: Tensor) -> int:
    return int((weight == 0).sum())
