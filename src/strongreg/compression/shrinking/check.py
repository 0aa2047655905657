"""Whether a smaller network computes what the given one does, by running both."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from strongreg.compression.shrinking.capture import copied, on_cpu
from strongreg.compression.torch_export import reason

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
_SMALL = 1e-3
"""Outputs below this share of the largest count as if they were that large."""
_MOST_PIXELS = 32


class Check:
    """Compares networks with the given one, in float64 if it can.

    Beside the example it takes random inputs of the same kind, and, where the given network does, one example more,
    larger images and longer sequences. Where the given network runs in training mode the others must, too.

    Args:
        model: the given network; it is not changed.
        inputs: positional inputs.

    Raises:
        ShrinkError: the network cannot be copied.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.model = copied(model).cpu().eval()
        """The given network, in the precision that is compared in."""
        given = on_cpu(inputs)
        generator = torch.Generator().manual_seed(0)
        certain = [given, _drawn(given, generator, lambda shape: shape)]
        try:
            doubled = copy.deepcopy(self.model).double()
            in_double = [_double(x) for x in certain]
            self._expected = [_outputs(doubled, x) for x in in_double]
            self.model, self._inputs, self._dtype = doubled, in_double, torch.float64
        except Exception:  # code that asks for float32: whatever it raises, then there
            self._inputs, self._dtype = certain, torch.float32
            self._expected = [_outputs(self.model, x) for x in certain]
        more = [_drawn(self._inputs[0], generator, larger) for larger in _growths(self._inputs[0])]
        for x in more:
            try:
                expected = _outputs(self.model, x)
            except Exception:  # it does not take this size
                continue
            self._inputs.append(x)
            self._expected.append(expected)
        self._trains_on = next((x for x in (*more, given) if _trains(self.model, x)), None)

    def problem(self, model: nn.Module) -> tuple[str | None, float]:
        """What is wrong with a network.

        Args:
            model: to be compared, a smaller form of :attr:`model`.

        Returns:
            The reason, None if it computes the same; and by how much its outputs differ at most, each relative to
            itself (in float32, and where it is small, to the largest).
        """
        try:
            outputs = [_outputs(model, x) for x in self._inputs]
        except Exception as error:  # whatever the network's own code does where a size has changed
            return f"the network's code fixes its size ({reason(error)})", torch.inf
        if self._trains_on is not None and not _trains(model, self._trains_on):
            return "the network's code in training mode fixes its size", torch.inf
        share = _SMALL if self._dtype is torch.float64 else 1.0
        difference = max(
            (
                _difference(a, b, share)
                for own, new in zip(self._expected, outputs, strict=True)
                for a, b in zip(own, new, strict=True)
            ),
            default=0.0,
        )
        if difference > _TOLERANCE[self._dtype]:
            return f"the network's code reckons with its size (outputs differ by {difference:.1g})", difference
        return None, difference


def count_flops(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    """Floating-point operations of one pass, as torch.utils.flop_counter counts them.

    Args:
        model: the network; it is not changed.
        inputs: positional inputs.

    Returns:
        Their number, in evaluation mode.
    """
    from torch.utils.flop_counter import FlopCounterMode  # it loads Triton, where that is there

    in_one_go = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # which does not count
    try:
        with FlopCounterMode(display=False) as counter:
            _outputs(copied(model).cpu().eval(), on_cpu(inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(in_one_go)
    return int(counter.get_total_flops())


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Those of a copy, since code may keep count of its calls."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        leaves = torch.utils._pytree.tree_leaves(copy.deepcopy(model)(*copy.deepcopy(inputs)))
    return [x for x in leaves if isinstance(x, Tensor)]


def _trains(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    try:
        _outputs(copy.deepcopy(model).train(), inputs)
    except Exception:  # whatever the network's own code raises
        return False
    return True


def _difference(a: Tensor, b: Tensor, share: float) -> float:
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
    size = a.abs()
    largest = size.max().clamp(min=torch.finfo(torch.float64).tiny)
    return float(((a - b).abs() / size.clamp(min=share * float(largest))).max())


def _double(inputs: Any) -> Any:
    return torch.utils._pytree.tree_map(
        lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs
    )


Growth = Callable[[torch.Size], torch.Size]


def _growths(inputs: tuple[Any, ...]) -> Iterator[Growth]:
    """What a network may take beside the example: more examples, longer sequences, larger images."""
    shapes = [x.shape for x in torch.utils._pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.dim()]
    if not shapes:
        return
    num_examples = shapes[0][0]
    yield lambda shape: torch.Size((shape[0] + 1, *shape[1:])) if shape and shape[0] == num_examples else shape
    if len(shapes[0]) in (2, 3):
        length = shapes[0][1]
        yield (
            lambda shape: (
                torch.Size((shape[0], length + 1, *shape[2:])) if len(shape) > 1 and shape[1] == length else shape
            )
        )
    if len(shapes[0]) > 2:
        yield lambda shape: torch.Size((*shape[:2], *(size + min(size, _MOST_PIXELS) for size in shape[2:])))


def _drawn(inputs: Any, generator: torch.Generator, grown: Growth) -> Any:
    """Inputs of the same kind: normal numbers of the same spread, whole numbers of those that occur."""

    def draw(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        shape = grown(x.shape)
        if x.is_floating_point():
            spread = x.double().std() if x.numel() > 1 else 0
            noise = torch.randn(shape, generator=generator, dtype=torch.float64)
            return (noise * (spread if spread > 0 else 1)).to(x.dtype)
        if shape == x.shape:
            return x
        return x.flatten()[torch.randint(x.numel(), shape, generator=generator)]

    return torch.utils._pytree.tree_map(draw, inputs)
