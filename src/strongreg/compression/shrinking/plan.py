"""What can leave a network without a change of what it returns, and what its leaving adds elsewhere.

A class of indices that go together can go if each element at them is the same for every input or matters to nothing.
What such a constant adds to the layers that read it goes into their biases; where zeros around the border make it
uneven, constant channels are merged into one of them, which stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from strongreg.compression.shrinking.axes import Axis, Coupling
from strongreg.compression.shrinking.capture import Program
from strongreg.compression.shrinking.constants import Known, Value
from strongreg.compression.shrinking.influence import Influence
from strongreg.compression.shrinking.operations import (
    CONVOLUTIONS,
    MATRIX_PRODUCTS,
    TRANSPOSED_CONVOLUTIONS,
    argument,
    arguments,
    name_of,
    on_image,
)


@dataclass
class Fold:
    """What the removal of constant inputs adds to a layer, float64.

    Args:
        bias: to its outputs, shape (outputs,).
        weight: to its weight, shape of the weight.
    """

    bias: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Constant:
    """An input of a layer that is the same for every input of the network.

    Args:
        layer: the layer that reads it, a linear layer or convolution.
        axis: the axis of its inputs.
        index: which of its inputs.
        value: what it is, not 0.
        to_bias: what it adds to each output, or None where that is not the same everywhere.
    """

    layer: fx.Node
    axis: Axis
    index: int
    value: float
    to_bias: Tensor | None


@dataclass
class Plan:
    """What goes.

    Args:
        classes: the indices that go together: axis and index of each.
        parts: for each class the number of the part of the network it is in.
        kept_because: the classes that stay though nothing needs them, and why.
        constants: what the layers read at the indices of each class.
        stands_for: for each layer and class that goes and is merged, the class that stays for it and its constant.
    """

    classes: list[list[tuple[Axis, int]]]
    parts: list[int]
    kept_because: dict[int, str]
    constants: dict[int, list[Constant]]
    stands_for: dict[tuple[fx.Node, int], Constant] = field(default_factory=dict)


class _Classes:
    """Indices of axes, joined where they go together."""

    def __init__(self, axes: Iterable[Axis]) -> None:
        self.axes = list(dict.fromkeys(axis.root for axis in axes))
        self.start: dict[Axis, int] = {}
        total = 0
        for axis in self.axes:
            self.start[axis] = total
            total += axis.size
        self._above = list(range(total))

    def number(self, axis: Axis, index: int) -> int:
        return self._find(self.start[axis.root] + index)

    def join(self, a: tuple[Axis, int], b: tuple[Axis, int]) -> None:
        self._above[self.number(*a)] = self.number(*b)

    def _find(self, i: int) -> int:
        while self._above[i] != i:
            self._above[i] = self._above[self._above[i]]
            i = self._above[i]
        return i

    def numbers(self, axis: Axis) -> list[int]:
        return [self.number(axis, index) for index in range(axis.size)]


def all_axes(axes: Any) -> Iterable[Axis]:
    """Every axis in lists of lists.

    Args:
        axes: an axis, or a list of such.

    Yields:
        The axes.
    """
    if isinstance(axes, Axis):
        yield axes
    else:
        for x in axes:
            yield from all_axes(x)


def make_plan(
    program: Program, found: Mapping[fx.Node, Value], matters: Influence, coupling: Coupling, round_to: int = 1
) -> Plan:
    """Decide what can go.

    Args:
        program: the network's operations.
        found: what is known of every output.
        matters: what of every output matters.
        coupling: which axes belong together.
        round_to: what the sizes that are left are multiples of, where there are that many.

    Returns:
        The plan.
    """
    classes, part_of = _joined(coupling)
    reasons: dict[int, str] = {}
    for axis in classes.axes:
        if axis.fixed is not None:
            reasons |= {number: reasons.get(number, axis.fixed) for number in classes.numbers(axis)}
    for node, value in found.items():
        if node.op == "call_function":
            _keep_needed(value, matters[node], coupling.axes[node], classes, reasons, _place(node))
    members: dict[int, list[tuple[Axis, int]]] = {}
    for axis in classes.axes:
        for index, number in enumerate(classes.numbers(axis)):
            members.setdefault(number, []).append((axis, index))
    constants = _constants(program, found, matters, coupling, classes, reasons)
    stands_for = _merge(constants, reasons)
    _keep_one(classes, reasons)
    _round_up(classes, reasons, round_to)
    order = list(members)
    position = {number: i for i, number in enumerate(order)}
    return Plan(
        [members[number] for number in order],
        [part_of[members[number][0][0]] for number in order],
        {position[number]: reason for number, reason in reasons.items()},
        {position[number]: found for number, found in constants.items()},
        {(layer, position[number]): constant for (layer, number), constant in stands_for.items()},
    )


def _joined(coupling: Coupling) -> tuple[_Classes, dict[Axis, int]]:
    """The classes, and for each axis the number of the part of the network that is connected through them."""
    classes = _Classes(all_axes([*coupling.axes.values(), *([tie.fine, *tie.coarse] for tie in coupling.ties)]))
    whole = {axis: i for i, axis in enumerate(classes.axes)}
    for tie in coupling.ties:
        free = [i for i, axis in enumerate(tie.coarse) if axis.fixed is None]
        if not free and len(tie.coarse) > 1:
            tie.fine.fix(tie.coarse[0].fixed or "")
            continue
        chosen = free[0] if free else 0
        for i, axis in enumerate(tie.coarse):
            if i != chosen:
                axis.fix("another axis of the same reshape is cut instead")
        coarse = tie.coarse[chosen]
        for fine_index, coarse_index in enumerate(tie.index_of[chosen].tolist()):
            if coarse_index >= 0:
                classes.join((tie.fine, fine_index), (coarse, coarse_index))
        old, new = whole[tie.fine.root], whole[coarse.root]
        whole = {axis: new if part == old else part for axis, part in whole.items()}
    return classes, whole


def _place(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return path or name_of(node)


def _keep_needed(value: Value, matters: Any, axes: Any, classes: _Classes, reasons: dict[int, str], place: str) -> None:
    """What varies and matters stays."""
    if isinstance(value, list):
        for one, mask, own in zip(value, matters, axes, strict=True):
            _keep_needed(one, mask, own, classes, reasons, place)
        return
    if not isinstance(value, Known):
        return
    needed = value.unknown & matters
    for dim, axis in enumerate(axes):
        if axis.fixed is None:
            of_index = needed.movedim(dim, 0).flatten(1).any(1) if needed.dim() > 1 else needed
            for index in of_index.nonzero().flatten().tolist():
                reasons.setdefault(classes.number(axis, index), f"what {place} computes there varies and is used")


def _constants(
    program: Program,
    found: Mapping[fx.Node, Value],
    matters: Influence,
    coupling: Coupling,
    classes: _Classes,
    reasons: dict[int, str],
) -> dict[int, list[Constant]]:
    """What the layers read at indices that could go; those that no layer can take otherwise stay."""
    constants: dict[int, list[Constant]] = {}
    for node in program.nodes:
        name = name_of(node)
        if name in MATRIX_PRODUCTS:
            _keep_factors(node, found, matters, coupling, classes, reasons)
        if name != "linear" and name not in CONVOLUTIONS and name not in TRANSPOSED_CONVOLUTIONS:
            continue
        inputs, weight = arguments(node, 2)
        dim = _channel_dim(node, found)
        if dim is None:
            continue
        axis = coupling.axes[inputs][dim]
        if axis.fixed is not None:
            continue
        candidates = [i for i, number in enumerate(classes.numbers(axis)) if number not in reasons]
        values = found[inputs].value.movedim(dim, 0).reshape(axis.size, -1)
        used = _used_weight(node, found[weight].value, matters[node])
        always = on_image(node) if name in CONVOLUTIONS else None
        for index in candidates:
            column = used.select(0 if name in TRANSPOSED_CONVOLUTIONS else 1, index)
            if not values[index].any() or not column.any():
                continue
            number = classes.number(axis, index)
            even = bool((values[index] == values[index][0]).all())
            if not even or name in TRANSPOSED_CONVOLUTIONS or not can_take(program, node):
                reasons[number] = f"{_place(node)} reads a constant there that it cannot take otherwise"
                continue
            value = float(values[index][0])
            constants.setdefault(number, []).append(Constant(node, axis, index, value, _to_bias(value, column, always)))
    return constants


def _channel_dim(node: fx.Node, found: Mapping[fx.Node, Value]) -> int | None:
    """The axis of a layer's input that it sums over; None for groups, whose channels go with their outputs."""
    inputs, weight = (found[source].shape for source in arguments(node, 2))
    if name_of(node) == "linear":
        return len(inputs) - 1
    dim = len(inputs) - (len(weight) - 1)
    in_transposed = name_of(node) in TRANSPOSED_CONVOLUTIONS
    return dim if in_transposed or weight[1] == inputs[dim] else None


def _used_weight(node: fx.Node, weight: Tensor, out: Tensor) -> Tensor:
    """The weight, 0 where the output does not matter."""
    if name_of(node) in TRANSPOSED_CONVOLUTIONS:
        return weight
    dim = out.dim() - 1 if name_of(node) == "linear" else out.dim() - (weight.dim() - 1)
    rows = out.movedim(dim, 0).reshape(len(weight), -1).any(1)
    return weight * rows.reshape(-1, *[1] * (weight.dim() - 1))


def _to_bias(value: float, column: Tensor, always: Tensor | None) -> Tensor | None:
    """What a constant adds to each output; None if that is not the same everywhere."""
    if always is not None and column[:, ~always].any():
        return None
    return value * column.reshape(len(column), -1).sum(1)


def can_take(program: Program, node: fx.Node) -> bool:
    """Whether weight and bias of a layer can be changed, for this layer alone.

    Args:
        program: the network's operations.
        node: a linear layer or convolution.

    Returns:
        Whether both are parameters that nothing else reads, or the bias can be made.
    """
    weight, bias = argument(node, 1), argument(node, 2, "bias", None)
    for source in (weight,) if bias is None else (weight, bias):
        if source not in program.names or len(source.users) != 1:
            return False
        tensor = program.tensors[source]
        pointers = [x.untyped_storage().data_ptr() for x in program.tensors.values()]
        if pointers.count(tensor.untyped_storage().data_ptr()) != 1:
            return False
    return bias is not None or program.names[weight] in program.of_layers


def _keep_factors(
    node: fx.Node,
    found: Mapping[fx.Node, Value],
    matters: Influence,
    coupling: Coupling,
    classes: _Classes,
    reasons: dict[int, str],
) -> None:
    """An index that a product sums over goes only if it adds 0."""
    first, second = arguments(node, 2)
    if min(len(coupling.axes[first]), len(coupling.axes[second])) < 2:
        return
    axis = coupling.axes[first][-1]
    if axis.fixed is not None:
        return
    of_a = (~found[first].zero & matters[first]).flatten(0, -2).any(0)
    of_b = (~found[second].zero & matters[second]).movedim(-2, 0).flatten(1).any(1)
    for index in (of_a & of_b).nonzero().flatten().tolist():
        reasons.setdefault(classes.number(axis, index), f"{_place(node)} multiplies by it")


def _merge(constants: dict[int, list[Constant]], reasons: dict[int, str]) -> dict[tuple[fx.Node, int], Constant]:
    """Of constants that no bias can take, one of each axis stays and stands for the others."""
    uneven: dict[Axis, dict[fx.Node, dict[int, Constant]]] = {}
    for number, of_class in constants.items():
        if number in reasons:
            continue
        for constant in of_class:
            if constant.to_bias is None:
                uneven.setdefault(constant.axis.root, {}).setdefault(constant.layer, {})[number] = constant
    chosen: dict[Axis, int] = {}
    for axis, by_layer in uneven.items():
        numbers = {number for of_layer in by_layer.values() for number in of_layer}
        size = {n: min(abs(x[n].value) if n in x else 0.0 for x in by_layer.values()) for n in sorted(numbers)}
        best = max(size, key=size.__getitem__)
        if size[best] == 0:
            reasons |= dict.fromkeys(numbers, "its constant is uneven at the border, and no other can stand for it")
        else:
            chosen[axis] = best
    reasons |= dict.fromkeys(chosen.values(), "it stands for all constants of its layer, uneven at the border")
    return {
        (layer, number): of_layer[chosen[axis]]
        for axis, by_layer in uneven.items()
        if axis in chosen
        for layer, of_layer in by_layer.items()
        for number in of_layer
        if number not in reasons
    }


def _keep_one(classes: _Classes, reasons: dict[int, str]) -> None:
    for axis in classes.axes:
        numbers = classes.numbers(axis)
        if numbers and all(number not in reasons for number in numbers):
            reasons[numbers[0]] = "one index of an axis is kept"


def _round_up(classes: _Classes, reasons: dict[int, str], round_to: int) -> None:
    """Keep as many of those that could go as make the sizes multiples."""
    for axis in classes.axes:
        numbers = list(dict.fromkeys(classes.numbers(axis)))
        free = [number for number in numbers if number not in reasons]
        missing = -(axis.size - sum(number not in reasons for number in classes.numbers(axis))) % round_to
        if axis.fixed is None:
            reasons |= dict.fromkeys(free[:missing], f"sizes are rounded up to multiples of {round_to}")


def folds(plan: Plan, going: Iterable[int], found: Mapping[fx.Node, Value]) -> dict[fx.Node, Fold]:
    """What the layers get for the constants that they lose.

    Args:
        plan: the plan.
        going: the classes that go.
        found: the weights.

    Returns:
        For each layer that loses any what is added to its weight and bias.
    """
    added: dict[fx.Node, Fold] = {}
    for number in going:
        for constant in plan.constants.get(number, ()):
            layer = constant.layer
            weight = found[argument(layer, 1)].value
            fold = added.setdefault(layer, Fold(torch.zeros(len(weight)).double(), torch.zeros_like(weight)))
            if constant.to_bias is not None:
                fold.bias += constant.to_bias
            else:
                stays = plan.stands_for[layer, number]
                fold.weight[:, stays.index] += constant.value / stays.value * weight[:, constant.index]
    return added
