"""Make a trained network faster: layers become CSR where that was measured to be faster on this machine."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from strongreg.compression.sparse_layers import SparseConv1x1, SparseLinear
from strongreg.compression.sparse_report import SparsifyReport, SparsifyRow
from strongreg.timing import interleaved_medians

_SMALLEST_SPARSITY = 0.5  # below it CSR was never faster, at any shape (benchmarks/README.md, Sparse inference)
_DTYPES = (torch.float32, torch.float64)
_SECONDS_PER_INPUT = 0.05
_MOST_INPUTS = 4  # different ones of a layer that are measured
_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]


def sparsify(
    model: nn.Module,
    example_inputs: Inputs | None = None,
    *,
    batch_size: int | None = None,
    min_speedup: float = 1.05,
) -> nn.Module:
    """A copy of a trained network for inference whose layers are in CSR where that is faster on this machine.

    Each ``nn.Linear``, and each ``nn.Conv2d`` of kernel size 1 (stride 1, no padding, one group), with half or more of
    its weights 0 is timed dense and in CSR, in turns, with the threads that torch has now. What is not faster stays as
    it is. Layers are measured in float32 and float64 on the CPU, for about 0.2 s each at most.

    The copy computes what the model computes, within rounding. It is in eval mode, no parameter of it requires a
    gradient, and layers in CSR have no parameters; gradients of inputs are still there. Keep the model: what is fastest
    differs between machines, so save it (:func:`strongreg.save_packed`) and sparsify after loading. Compile, export or
    differentiate forwards (``torch.func``) the model; of the copy torch supports ``torch.compile``.

    Args:
        model: the network; it is left untouched.
        example_inputs: a typical input: a tensor, a tuple of positional or a mapping of keyword arguments. The model is
            called once with it (a copy, in eval mode), and each layer is measured with the inputs that it gets there.
            Convolutions are measured only with it.
        batch_size: without ``example_inputs``, the number of rows that linear layers are measured with; 1 by default.
        min_speedup: a layer is converted where time dense / time in CSR is this at least, > 0.

    Returns:
        The copy. :func:`strongreg.sparsify_and_report` also says what was converted, what was not, and why.

    Raises:
        TypeError: an argument is of another type.
        ValueError: ``batch_size`` or ``min_speedup`` is out of bounds, ``batch_size`` comes together with
            ``example_inputs``, or the model cannot be copied.

    Example:
        >>> import strongreg, torch
        >>> model = torch.nn.Linear(1024, 1024)
        >>> with torch.no_grad():
        ...     model.weight *= torch.rand(1024, 1024) < 0.02
        >>> fast = strongreg.sparsify(model, batch_size=8)
        >>> x = torch.randn(8, 1024)
        >>> torch.allclose(fast(x), model(x), atol=1e-5)
        True
    """
    return sparsify_and_report(model, example_inputs, batch_size=batch_size, min_speedup=min_speedup)[0]


def sparsify_and_report(
    model: nn.Module,
    example_inputs: Inputs | None = None,
    *,
    batch_size: int | None = None,
    min_speedup: float = 1.05,
) -> tuple[nn.Module, SparsifyReport]:
    """:func:`strongreg.sparsify`, with what it measured and did.

    Args:
        model: see :func:`strongreg.sparsify`, as all others.
        example_inputs: a typical input.
        batch_size: number of rows, without ``example_inputs``.
        min_speedup: smallest ratio of times for which a layer is converted.

    Returns:
        The copy, and the report, which ``print`` shows as a table.

    Raises:
        TypeError: see :func:`strongreg.sparsify`.
        ValueError: see there too.

    Example:
        >>> import strongreg, torch
        >>> _, report = strongreg.sparsify_and_report(torch.nn.Linear(10, 10))
        >>> report.left[0].reason
        'fewer than 50% zeros'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    args, kwargs = _arguments(example_inputs)
    _check_numbers(batch_size, min_speedup, given=example_inputs is not None)
    result = _copied(model)
    probe = result if example_inputs is None else _copied(model)  # a call may change what a network remembers
    trials = _trials(probe)
    with torch.no_grad():
        if example_inputs is None:
            for trial in trials.values():
                trial.measure_rows(1 if batch_size is None else int(batch_size))
        else:
            _measure_within(probe, args, kwargs, trials)
    chosen = {name: trial for name, trial in trials.items() if not trial.decide(min_speedup)}
    rows = tuple(trial.row(name) for name, trial in trials.items())
    return _replaced(result, chosen), SparsifyReport(rows, torch.get_num_threads())


# ---------------------------------------------------------------------- one layer


@dataclass
class _Trial:
    """A layer, its form in CSR if it may have one, and the times of both.

    Args:
        dense: the layer.
        reason: why it is left dense, as far as is known.
    """

    dense: nn.Module
    reason: str
    sparse: nn.Module | None = None
    counts: dict[Any, int] = field(default_factory=dict)
    times: dict[Any, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.reason:
            form = SparseLinear if isinstance(self.dense, nn.Linear) else SparseConv1x1
            weight, bias = self.dense.weight, self.dense.bias
            assert isinstance(weight, Tensor)
            assert bias is None or isinstance(bias, Tensor)
            self.sparse = form(weight, bias)

    def measure_rows(self, batch_size: int) -> None:
        """Measure a linear layer with as many rows."""
        if self.sparse is None:
            return
        if isinstance(self.dense, nn.Linear):
            self.measure(torch.ones(batch_size, self.dense.in_features, dtype=self.dense.weight.dtype))
        else:
            self.reason = "a convolution, measured only with example_inputs"

    def measure(self, inputs: Tensor) -> None:
        """Measure both forms with this input, unless one like it was measured before."""
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
        """Why the layer is left dense; empty if it is to be converted."""
        if not self.reason and not self.times:
            self.reason = "not called with these example_inputs"
        dense, sparse = self._seconds()
        if not self.reason and dense < min_speedup * sparse:
            self.reason = f"not {min_speedup:g} times faster in CSR"
        return self.reason

    def row(self, name: str) -> SparsifyRow:
        """What the report says."""
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


def _trials(model: nn.Module) -> dict[str, _Trial]:
    """Every linear layer and convolution, by name."""
    modules = dict(model.named_modules())
    read = {
        id(child)
        for parent in modules.values()
        if isinstance(parent, nn.TransformerEncoderLayer)
        for child in parent.children()
    }
    trials: dict[str, _Trial] = {}
    for name, module in modules.items():
        if isinstance(module, nn.Linear | nn.Conv2d):
            reason = _reason(module)
            if "_orig_mod" in name.split("."):
                reason = "compiled (sparsify before torch.compile)"
            elif id(module) in read:
                reason = "read, not called, by nn.TransformerEncoderLayer"
            trials[name] = _Trial(module, reason)
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


# ---------------------------------------------------------------------- the network


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).eval().requires_grad_(False)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"model cannot be copied ({error}): tensors that were computed must be parameters or detached first; after "
            "torch.nn.utils.prune call prune.remove(module, 'weight')"
        ) from error


def _measure_within(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], trials: Mapping[str, _Trial]
) -> None:
    """Call the model once, and measure each layer when it is called, with what it is called with."""

    def measurer(trial: _Trial) -> Any:
        return lambda _, args, kwargs: trial.measure(args[0] if args else kwargs["input"])

    for trial in trials.values():
        if trial.sparse is not None:
            trial.dense.register_forward_pre_hook(measurer(trial), with_kwargs=True)
    model(*args, **kwargs)


def _replaced(model: nn.Module, chosen: Mapping[str, _Trial]) -> nn.Module:
    """The model with layers replaced, everywhere where they are used."""
    modules = dict(model.named_modules())
    forms: dict[int, nn.Module] = {}
    for name, trial in chosen.items():
        assert trial.sparse is not None
        forms[id(modules[name])] = trial.sparse.train(modules[name].training)
        for hooks in _HOOKS:
            setattr(trial.sparse, hooks, getattr(modules[name], hooks))
    for parent in modules.values():
        for name, child in parent._modules.items():
            parent._modules[name] = forms.get(id(child), child)
    return forms.get(id(model), model)


# ---------------------------------------------------------------------- checks of arguments


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), example_inputs
    if example_inputs is None or isinstance(example_inputs, tuple):
        return example_inputs or (), {}
    kind = type(example_inputs).__name__
    raise TypeError(
        f"example_inputs must be a tensor, a tuple of positional or a mapping of keyword arguments, got {kind}"
    )


def _check_numbers(batch_size: Any, min_speedup: Any, *, given: bool) -> None:
    if isinstance(min_speedup, bool) or not isinstance(min_speedup, numbers.Real):
        raise TypeError(f"min_speedup={min_speedup!r} must be a number: time dense / time in CSR")
    if not (math.isfinite(min_speedup) and float(min_speedup) > 0):
        raise ValueError(f"min_speedup={min_speedup!r} must be finite and > 0: 1 converts whatever is not slower")
    if batch_size is None:
        return
    if isinstance(batch_size, bool) or not isinstance(batch_size, numbers.Integral):
        raise TypeError(f"batch_size={batch_size!r} must be an int: rows per call")
    if int(batch_size) < 1:
        raise ValueError(f"batch_size={batch_size!r} must be >= 1")
    if given:
        raise ValueError(f"batch_size={batch_size!r} is that of example_inputs where these are given: leave it out")
