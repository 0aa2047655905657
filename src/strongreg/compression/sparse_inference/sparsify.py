"""Make a trained network faster: layers become CSR where that was measured to be faster on this machine."""

from __future__ import annotations

import copy
import math
import numbers
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from strongreg.compression.sparse_inference.layers import SparseLinear
from strongreg.compression.sparse_inference.report import SparsifyReport
from strongreg.compression.sparse_inference.trial import Trial, trials_of

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

_ELEMENTWISE = (
    *(nn.Identity, nn.Dropout, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Softsign),
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
    it is. Layers are measured one by one, in float32 and float64 on the CPU, for about 0.2 s each at most.

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
    args, kwargs = torch.utils._pytree.tree_map(_copy, _arguments(example_inputs))  # code may change what it is given
    _check_numbers(batch_size, min_speedup, given=example_inputs is not None)
    result = _copied(model)
    probe = result if example_inputs is None else _copied(model)  # a call may change what a network remembers
    trials = trials_of(probe)
    with torch.no_grad():
        if example_inputs is None:
            for trial in trials.values():
                trial.measure_rows(1 if batch_size is None else int(batch_size))
        else:
            _measure_within(probe, args, kwargs, trials)
    chosen = {name: trial for name, trial in trials.items() if not trial.decide(min_speedup)}
    rows = tuple(trial.row(name) for name, trial in trials.items())
    return _chained(_replaced(result, chosen)), SparsifyReport(rows, torch.get_num_threads())


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
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], trials: Mapping[str, Trial]
) -> None:
    """Call the model once, and measure each layer when it is called, with what it is called with."""

    def measurer(trial: Trial) -> Any:
        return lambda _, args, kwargs: trial.measure(args[0] if args else kwargs["input"])

    for trial in trials.values():
        if trial.sparse is not None:
            trial.dense.register_forward_pre_hook(measurer(trial), with_kwargs=True)
    model(*args, **kwargs)


def _replaced(model: nn.Module, chosen: Mapping[str, Trial]) -> nn.Module:
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


def _chained(model: nn.Module) -> nn.Module:
    """The model, in which a layer passes its output on as it is where only linear layers of a Sequential see it."""
    uses = Counter(id(child) for parent in model.modules() for child in parent._modules.values())
    for parent in model.modules():
        if type(parent) is not nn.Sequential:
            continue
        waiting: SparseLinear | None = None
        for child in parent:
            if waiting is not None and type(child) in (nn.Linear, SparseLinear):
                waiting.contiguous = False
            if type(child) not in _ELEMENTWISE:
                waiting = child if isinstance(child, SparseLinear) and uses[id(child)] == 1 else None
    return model


# ---------------------------------------------------------------------- checks of arguments


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


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
