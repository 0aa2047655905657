"""Removes from a network what its zeros have made useless."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from strongreg.compression.errors import ShrinkError
from strongreg.compression.shrinking.axes import Axis, Coupling, couple
from strongreg.compression.shrinking.capture import Program, capture, copied
from strongreg.compression.shrinking.check import Check, count_flops
from strongreg.compression.shrinking.constants import Value, find_constants
from strongreg.compression.shrinking.influence import find_influence
from strongreg.compression.shrinking.likeness import unlikeness
from strongreg.compression.shrinking.plan import Plan, folds, make_plan
from strongreg.compression.shrinking.report import LeftZeros, ShrinkReport, ShrunkTensor
from strongreg.compression.shrinking.surgery import cut
from strongreg.compression.torch_export import reason
from strongreg.validation import check_type


def shrink(model: nn.Module, example_inputs: Any, *, round_to: int = 1) -> nn.Module:
    """A smaller network that computes the same function.

    Channels, neurons and attention heads go where all their incoming or all their outgoing weights are zero. What is
    the same for every input is folded into the biases of the layers that read it, or, where zeros around an image's
    border make that uneven, merged into one channel. The function is that of evaluation mode, for inputs of every size.
    The result is checked: its operations are the same but for their sizes, and its outputs are those of the given
    network on the example, on random inputs, and, where the network takes them, on other sizes.

    Args:
        model: any network that torch.export can follow; it is not changed.
        example_inputs: a tensor, or a tuple of the positional inputs. One example is enough. Whole numbers are not
            drawn at random, so give such as occur.
        round_to: sizes are left at multiples of it, 1 or more, where zeros suffice. Libraries for inference reckon
            in blocks of 8 or 16 channels, and may be slower with 13 than with 16.

    Returns:
        An ordinary network of the same class with smaller parameters, in the same mode, on the same device.

    Raises:
        TypeError: ``model`` is no network, or ``round_to`` no whole number.
        ValueError: ``round_to`` is less than 1.
        ShrinkError: the network cannot be copied or followed by torch.export, a weight is not finite, complex or not
            there, or an example is empty.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with torch.no_grad():
        ...     _ = model[0].weight[2:].zero_()
        >>> shrink(model, torch.zeros(1, 4))[0].weight.shape
        torch.Size([2, 4])
    """
    return shrink_and_report(model, example_inputs, round_to=round_to)[0]


def shrink_and_report(model: nn.Module, example_inputs: Any, *, round_to: int = 1) -> tuple[nn.Module, ShrinkReport]:
    """As :func:`shrink`, and say what was done.

    Args:
        model: the network; it is not changed.
        example_inputs: a tensor, or a tuple of the positional inputs.
        round_to: sizes are left at multiples of it, where zeros suffice.

    Returns:
        The smaller network and the report: which tensors shrank, which zeros are left and why, parameters and FLOPs.

    Raises:
        TypeError: ``model`` is no network, or ``round_to`` no whole number.
        ValueError: ``round_to`` is less than 1.
        ShrinkError: as for :func:`shrink`.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> small, report = shrink_and_report(model, torch.zeros(1, 4))
        >>> report.num_parameters
        (58, 58)
    """
    check_type("model", model, nn.Module)
    if not isinstance(round_to, int) or isinstance(round_to, bool):
        raise TypeError(f"round_to={round_to!r}: give a whole number, such as 8")
    if round_to < 1:
        raise ValueError(f"round_to={round_to}: give 1 or more")
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    program = capture(model, inputs)
    check = Check(model, inputs)
    shrunk, exact = model, check.model
    difference = 0.0
    while True:
        work = _Work(shrunk, exact, program, check, inputs, round_to)
        step = work.best()
        shrunk, exact, program, difference = step.model, step.exact, step.program, max(difference, step.difference)
        if not step.going:
            break
    report = ShrinkReport(
        _changes(model, shrunk),
        work.left(step.failed),
        (_count(model), _count(shrunk)),
        (count_flops(model, inputs), count_flops(shrunk, inputs)),
        difference,
    )
    return shrunk, report


@dataclass(frozen=True)
class _Step:
    """A network without some of its indices.

    Args:
        model: a new network.
        exact: the same in the precision that is compared in.
        program: its operations.
        difference: of its outputs, at most.
        going: the classes that went.
        failed: what went wrong with which part of the network.
    """

    model: nn.Module
    exact: nn.Module
    program: Program
    difference: float
    going: frozenset[int] = frozenset()
    failed: Mapping[int, str] = field(default_factory=dict)


class _Work:
    """A network, what is known of it, and what of it may go."""

    def __init__(
        self,
        model: nn.Module,
        exact: nn.Module,
        program: Program,
        check: Check,
        inputs: tuple[Any, ...],
        round_to: int = 1,
    ) -> None:
        self.model, self.exact, self.program, self.check, self.inputs = model, exact, program, check, inputs
        try:
            self.found: dict[fx.Node, Value] = find_constants(program)
            matters = find_influence(program, self.found)
            self.coupling: Coupling = couple(program, self.found)
            self.plan: Plan = make_plan(program, self.found, matters, self.coupling, round_to)
        except Exception as error:  # an operation used in a way that its rule does not know
            raise ShrinkError(
                f"{type(model).__name__} does something that shrink cannot follow: {reason(error)}"
            ) from error

    def best(self) -> _Step:
        """The smallest network that computes the same."""
        plan = self.plan
        free = frozenset(i for i in range(len(plan.classes)) if i not in plan.kept_because)
        nothing = _Step(copied(self.model), self.exact, self.program, 0.0)
        if not free:
            return nothing
        step, problem = self._try(free)
        failed: dict[int, str] = {}
        if problem is not None:  # the network's code fixes some size, or reckons with it: find out which
            for part in sorted({plan.parts[i] for i in free}):
                _, why = self._try(frozenset(i for i in free if plan.parts[i] == part))
                if why is not None:
                    failed[part] = why
            free = frozenset(i for i in free if plan.parts[i] not in failed)
            step, problem = self._try(free) if free else (None, None)
        if problem is not None:
            failed |= {plan.parts[i]: problem for i in free}
        if step is None:
            return replace(nothing, failed=failed)
        return replace(step, going=free, failed=failed)

    def _try(self, going: frozenset[int]) -> tuple[_Step | None, str | None]:
        """The network without some classes, or why it will not do."""
        kept = self._kept(going)
        exact = self._without(self.exact, going, kept)
        problem, difference = self.check.problem(exact)
        if problem is not None:
            return None, problem
        model = self._without(self.model, going, kept)
        try:
            program = capture(model, self.inputs)
        except ShrinkError as error:
            return None, str(error)
        shapes = {node: _shape(axes, kept) for node, axes in self.coupling.axes.items()}
        other = unlikeness(self.program, program, shapes)
        if other is not None:
            return None, f"the network's code reckons with its size ({other})"
        return _Step(model, exact, program, difference), None

    def _kept(self, going: Iterable[int]) -> dict[Axis, Tensor]:
        """The indices that stay, for each axis that loses any."""
        removed: dict[Axis, list[int]] = {}
        for i in going:
            for axis, index in self.plan.classes[i]:
                removed.setdefault(axis, []).append(index)
        kept = {}
        for axis, indices in removed.items():
            stays = torch.ones(axis.size, dtype=torch.bool)
            stays[indices] = False
            kept[axis] = stays.nonzero().flatten()
        return kept

    def _without(self, model: nn.Module, going: Iterable[int], kept: Mapping[Axis, Tensor]) -> nn.Module:
        return cut(model, self.program, self.coupling, kept, folds(self.plan, going, self.found))

    def left(self, failed: Mapping[int, str]) -> tuple[LeftZeros, ...]:
        """The rows and columns of zeros that stay, by reason, when nothing goes any more."""
        class_of = {(axis, index): i for i, members in enumerate(self.plan.classes) for axis, index in members}
        found: Counter[tuple[str, int, str]] = Counter()
        for node, name in self.program.names.items():
            tensor = self.program.tensors[node]
            if tensor.dim() < 2 and name.rpartition(".")[2] != "weight":
                continue
            for dim, axis in enumerate(self.coupling.axes[node][:2]):
                is_zero = (tensor == 0).movedim(dim, 0).reshape(axis.size, -1).all(1)
                for index in is_zero.nonzero().flatten().tolist():
                    i = class_of[axis.root, index]
                    found[name, dim, self.plan.kept_because.get(i) or failed[self.plan.parts[i]]] += 1
        return tuple(LeftZeros(name, dim, count, why) for (name, dim, why), count in found.items())


def _shape(axes: Any, kept: Mapping[Axis, Tensor]) -> Any:
    if any(not isinstance(axis, Axis) for axis in axes):
        return [_shape(x, kept) for x in axes]
    return tuple(len(kept[axis.root]) if axis.root in kept else axis.size for axis in axes)


def _changes(model: nn.Module, shrunk: nn.Module) -> tuple[ShrunkTensor, ...]:
    before, after = model.state_dict(), shrunk.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in before.items() if isinstance(tensor, Tensor)}
    return tuple(
        ShrunkTensor(name, shapes.get(name), tuple(tensor.shape))
        for name, tensor in after.items()
        if isinstance(tensor, Tensor) and shapes.get(name) != tuple(tensor.shape)
    )


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
