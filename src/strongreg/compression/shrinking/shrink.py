"""Removes from a network what its zeros have made useless."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from strongreg.compression.shrinking.axes import Axis, Coupling, couple
from strongreg.compression.shrinking.capture import Program, capture, on_cpu
from strongreg.compression.shrinking.constants import Value, find_constants
from strongreg.compression.shrinking.influence import find_influence
from strongreg.compression.shrinking.plan import Plan, folds, make_plan
from strongreg.compression.shrinking.report import LeftZeros, ShrinkReport, ShrunkTensor
from strongreg.compression.shrinking.surgery import cut

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def shrink(model: nn.Module, example_inputs: Any) -> nn.Module:
    """A smaller network that computes the same function.

    Channels, neurons and attention heads go where all their incoming or all their outgoing weights are zero. What is
    the same for every input is folded into the biases of the layers that read it, or, where zeros around an image's
    border make that uneven, merged into one channel. The function is that of evaluation mode; the result is checked
    against the given network on the example and on random inputs.

    Args:
        model: any network that torch.export can follow; it is not changed.
        example_inputs: a tensor, or a tuple of the positional inputs, of the size at which the network is used: zeros
            around an image's border are reckoned with at this size. One example is enough. Whole numbers are taken
            as they are, so give such as occur.

    Returns:
        An ordinary network of the same class with smaller parameters, in the same mode, on the same device.

    Raises:
        ShrinkError: torch.export cannot follow the network, a weight is not finite, or an example is empty.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with torch.no_grad():
        ...     _ = model[0].weight[2:].zero_()
        >>> shrink(model, torch.zeros(1, 4))[0].weight.shape
        torch.Size([2, 4])
    """
    return shrink_and_report(model, example_inputs)[0]


def shrink_and_report(model: nn.Module, example_inputs: Any) -> tuple[nn.Module, ShrinkReport]:
    """As :func:`shrink`, and say what was done.

    Args:
        model: the network; it is not changed.
        example_inputs: a tensor, or a tuple of the positional inputs.

    Returns:
        The smaller network and the report: which tensors shrank, which zeros are left and why, parameters and FLOPs.

    Raises:
        ShrinkError: torch.export cannot follow the network, a weight is not finite, or an example is empty.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> small, report = shrink_and_report(model, torch.zeros(1, 4))
        >>> report.num_parameters
        (58, 58)
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    work = _Work(model, inputs)
    shrunk, going, failed, difference = work.best()
    report = ShrinkReport(
        _changes(model, shrunk),
        work.left(going, failed),
        (_count(model), _count(shrunk)),
        (_flops(model, inputs), _flops(shrunk, inputs)),
        difference,
    )
    return shrunk, report


class _Work:
    """A network, what is known of it, and what of it may go."""

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.model = model
        self.program: Program = capture(model, inputs)
        self.found: dict[fx.Node, Value] = find_constants(self.program)
        matters = find_influence(self.program, self.found)
        self.coupling: Coupling = couple(self.program, self.found)
        self.plan: Plan = make_plan(self.program, self.found, matters, self.coupling)
        self.check = _Check(model, inputs)

    def best(self) -> tuple[nn.Module, set[int], dict[int, str], float]:
        """The smallest network that computes the same, what went, what went wrong with which part, the difference."""
        plan = self.plan
        free = {i for i in range(len(plan.classes)) if i not in plan.kept_because}
        failed: dict[int, str] = {}
        shrunk, reason, difference = self._try(free)
        if reason is not None:  # the network's code fixes some size, or reckons with it: find out which
            for part in sorted({plan.parts[i] for i in free}):
                _, problem, _ = self._try({i for i in free if plan.parts[i] == part})
                if problem is not None:
                    failed[part] = problem
            free = {i for i in free if plan.parts[i] not in failed}
            shrunk, reason, difference = self._try(free)
        if reason is not None:
            failed |= {plan.parts[i]: reason for i in free}
            free = set()
            shrunk, _, difference = self._try(free)
        return shrunk, free, failed, difference

    def _try(self, going: set[int]) -> tuple[nn.Module, str | None, float]:
        shrunk = self._without(self.model, going)
        reason, difference = self.check.problem(self._without(self.check.model, going))
        return shrunk, reason, difference

    def _without(self, model: nn.Module, going: Iterable[int]) -> nn.Module:
        going = set(going)
        removed: dict[Axis, list[int]] = {}
        for i in going:
            for axis, index in self.plan.classes[i]:
                removed.setdefault(axis, []).append(index)
        kept = {}
        for axis, indices in removed.items():
            stays = torch.ones(axis.size, dtype=torch.bool)
            stays[indices] = False
            kept[axis] = stays.nonzero().flatten()
        return cut(model, self.program, self.coupling, kept, folds(self.plan, going, self.found))

    def left(self, going: set[int], failed: Mapping[int, str]) -> tuple[LeftZeros, ...]:
        """The rows and columns of zeros that stay, by reason."""
        class_of = {(axis, index): i for i, members in enumerate(self.plan.classes) for axis, index in members}
        found: Counter[tuple[str, int, str]] = Counter()
        for node, name in self.program.names.items():
            tensor = self.program.tensors[node]
            if tensor.dim() < 2:
                continue
            for dim, axis in enumerate(self.coupling.axes[node][:2]):
                if axis.size == 1:
                    continue
                is_zero = (tensor == 0).movedim(dim, 0).flatten(1).all(1)
                for index in is_zero.nonzero().flatten().tolist():
                    i = class_of[axis.root, index]
                    if i not in going:
                        why = self.plan.kept_because.get(i) or failed[self.plan.parts[i]]
                        found[name, dim, why] += 1
        return tuple(LeftZeros(name, dim, count, why) for (name, dim, why), count in found.items())


class _Check:
    """Compares networks with the given one, in float64 if it can."""

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.model = copy.deepcopy(model).cpu().eval()
        examples = on_cpu(inputs)
        self._inputs = [examples, _random_like(examples)]
        try:
            doubled = copy.deepcopy(self.model).double()
            in_double = [_double(x) for x in self._inputs]
            self._expected = [_outputs(doubled, x) for x in in_double]
            self.model, self._inputs, self._tolerance = doubled, in_double, _TOLERANCE[torch.float64]
        except Exception:  # code that asks for float32: whatever it raises, then there
            self._expected = [_outputs(self.model, x) for x in self._inputs]
            self._tolerance = _TOLERANCE[torch.float32]

    def problem(self, model: nn.Module) -> tuple[str | None, float]:
        """What is wrong with a network, if anything, and how much its outputs differ."""
        try:
            outputs = [_outputs(model, x) for x in self._inputs]
        except Exception as error:  # whatever the network's own code does where a size has changed
            return f"the network's code fixes its size ({str(error).strip().partition(chr(10))[0]})", torch.inf
        difference = max(
            (
                _difference(a, b)
                for own, new in zip(self._expected, outputs, strict=True)
                for a, b in zip(own, new, strict=True)
            ),
            default=0.0,
        )
        if difference > self._tolerance:
            return f"the network's code reckons with its size (outputs differ by {difference:.1g})", difference
        return None, difference


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        leaves = torch.utils._pytree.tree_leaves(model(*inputs))
    return [x for x in leaves if isinstance(x, Tensor)]


def _difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return torch.inf
    if not a.numel():
        return 0.0
    if not (a.is_floating_point() and b.is_floating_point()):
        return 0.0 if torch.equal(a, b) else torch.inf
    a, b = a.double(), b.double()
    finite = a.isfinite()
    if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()) or not b[finite].isfinite().all():
        return torch.inf
    a, b = a[finite], b[finite]
    if not a.numel():
        return 0.0
    return float((a - b).abs().max() / a.abs().max().clamp(min=torch.finfo(torch.float64).tiny))


def _double(inputs: Any) -> Any:
    return torch.utils._pytree.tree_map(
        lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs
    )


def _random_like(inputs: Any) -> Any:
    """Inputs of the same kind: normal numbers of the same spread, whole numbers as they are."""
    generator = torch.Generator().manual_seed(0)

    def draw(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        spread = x.double().std() if x.numel() > 1 else 0
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        return (noise * (spread if spread > 0 else 1)).to(x.dtype)

    return torch.utils._pytree.tree_map(draw, inputs)


def _changes(model: nn.Module, shrunk: nn.Module) -> tuple[ShrunkTensor, ...]:
    before, after = model.state_dict(), shrunk.state_dict()
    return tuple(
        ShrunkTensor(name, tuple(before[name].shape), tuple(tensor.shape))
        for name, tensor in after.items()
        if name in before and before[name].shape != tensor.shape
    )


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _flops(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    model = copy.deepcopy(model).cpu().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*on_cpu(inputs))
    return int(counter.get_total_flops())
