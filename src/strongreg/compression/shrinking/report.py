"""What was removed from a network, what was not, and what it saves."""

from __future__ import annotations

from dataclasses import dataclass

from strongreg.text_table import text_table


@dataclass(frozen=True)
class ShrunkTensor:
    """A parameter or buffer that became smaller, or a bias that took the constants a layer read.

    Args:
        name: its name.
        shape: before; None for a bias that the layer had not.
        new_shape: after.
    """

    name: str
    shape: tuple[int, ...] | None
    new_shape: tuple[int, ...]


@dataclass(frozen=True)
class LeftZeros:
    """Zeros that could not be removed.

    Args:
        name: the weight.
        dim: 0 for outputs (rows), 1 for inputs (columns).
        count: how many of its indices hold nothing but zeros and stay.
        reason: why.
    """

    name: str
    dim: int
    count: int
    reason: str


@dataclass(frozen=True)
class ShrinkReport:
    """What :func:`strongreg.shrink` did.

    Args:
        shrunk: the tensors that became smaller, and biases that are new.
        left: the zeros that could not be removed, and why.
        num_parameters: numbers in all parameters, before and after.
        flops: floating-point operations of one pass over the example inputs, before and after, as
            torch.utils.flop_counter counts them.
        difference: largest difference of the outputs on the example and on random inputs, relative to the largest
            output.
    """

    shrunk: tuple[ShrunkTensor, ...]
    left: tuple[LeftZeros, ...]
    num_parameters: tuple[int, int]
    flops: tuple[int, int]
    difference: float

    def __str__(self) -> str:
        """The table as text."""
        header = ("tensor", "shape", "shrunk to")
        rows = [(x.name, "none" if x.shape is None else _text(x.shape), _text(x.new_shape)) for x in self.shrunk]
        total = ("parameters", *(f"{num:,}" for num in self.num_parameters))
        lines = [text_table(header, rows, total, num_left=1)]
        lines.append(f"{_ratio(self.num_parameters)} times fewer parameters, {_ratio(self.flops)} times fewer FLOPs")
        for x in self.left:
            kind = ("row", "column")[x.dim] + ("s" if x.count > 1 else "")
            lines.append(f"left in {x.name}: {x.count} {kind} of zeros, since {x.reason}")
        return "\n".join(lines)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _ratio(numbers: tuple[int, int]) -> str:
    before, after = numbers
    return f"{before / after:.1f}" if after else "infinitely many"
