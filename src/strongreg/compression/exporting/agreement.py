"""Whether an exported network computes what the network does."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from strongreg.compression.errors import ExportError
from strongreg.compression.exporting.capture import Candidate, tensors_of
from strongreg.compression.torch_export import reason

TOLERANCE = 1e-4
"""Largest difference that is taken for rounding, relative to the largest number of an output."""
_TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 1e-1}  # a few units in the last place of a few thousand sums


@dataclass(frozen=True)
class Agreement:
    """The outcome of a comparison.

    Args:
        batch_sizes: that were tried.
        difference: the largest one, relative to the largest number of an output.
    """

    batch_sizes: tuple[int, ...]
    difference: float


def compare(
    candidate: Candidate, run: Callable[[tuple[Tensor, ...]], Any], *, dynamic_batch: bool, label: str
) -> Agreement:
    """Run both on the example and on random inputs: of the sizes 1 and one more than the example's, or of its own.

    A size at which the network itself fails is left out.

    Args:
        candidate: the network.
        run: the exported one.
        dynamic_batch: whether it takes batches of any size.
        label: names it, for messages ("the ONNX file").

    Returns:
        How far they are apart.

    Raises:
        ExportError: they are too far apart, or the exported one fails.
    """
    own = candidate.batch_size
    others = sorted({1, own + 1} - {own}) if dynamic_batch else [own]
    tried, largest = [own], 0.0
    for inputs in (candidate.inputs, *map(candidate.inputs_at, others)):
        size = len(inputs[0])
        try:
            with torch.no_grad():
                expected = tensors_of(candidate.model(*copy.deepcopy(inputs)))  # code may change what it is given
        except Exception:
            if inputs is candidate.inputs:
                raise
            continue
        try:
            with torch.no_grad():
                got = tensors_of(run(copy.deepcopy(inputs)))
        except Exception as error:
            raise ExportError(f"{label} of {candidate.name} fails at batch size {size}: {reason(error)}") from error
        largest = max(largest, _difference(expected, got, f"{label} of {candidate.name} at batch size {size}"))
        tried += [size] * (size not in tried)
    return Agreement(tuple(tried), largest)


def _difference(expected: Sequence[Tensor], got: Sequence[Tensor], label: str) -> float:
    formats = [
        [(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for tensor in s] for s in (expected, got)
    ]
    if formats[0] != formats[1]:
        raise ExportError(f"{label} returns {formats[1]} where torch returns {formats[0]}")
    largest = 0.0
    for one, other in zip(expected, got, strict=True):
        difference = relative_difference(one, other)
        tolerance = _TOLERANCES.get(one.dtype, TOLERANCE)
        if difference > tolerance:
            raise ExportError(
                f"{label} differs from torch by {difference:.1e} of its largest output, more than {tolerance:g}"
            )
        largest = max(largest, difference)
    return largest


def relative_difference(expected: Tensor, got: Tensor) -> float:
    """How far two tensors are apart.

    Args:
        expected: of any shape and dtype.
        got: of the same shape.

    Returns:
        max abs(expected - got) / max abs(expected), over 1 where ``expected`` is 0 throughout. Infinity where one is
        not finite and the other is something else; NaN equals NaN.
    """
    one, other = expected.detach().double().flatten(), got.detach().double().flatten()
    equal = (one == other) | (one.isnan() & other.isnan())
    if bool(equal.all()):
        return 0.0
    gap = float((one - other)[~equal].abs().max())
    size = float(one[one.isfinite()].abs().max()) if bool(one.isfinite().any()) else 0.0
    return gap / (size or 1.0) if math.isfinite(gap) else math.inf
