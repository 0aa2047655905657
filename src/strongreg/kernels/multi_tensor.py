"""The passes on a GPU by loops that Triton compiles: the same few launches however many tensors there are."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from strongreg.devices import is_captured, reading_is_free
from strongreg.groups import Target
from strongreg.kernels.layout import all_laid_out_as, group_sizes, is_dense, is_plain, known_terms
from strongreg.kernels.zeros import BooleanZeros
from strongreg.penalties import L1, GroupL2
from strongreg.penalties.terms import Terms
from strongreg.warning import warn

_PIECE = 8192  # entries: a small network still has a program for every multiprocessor
_BLOCK = 512  # entries: four for each of 128 threads, whose sums leave registers for others beside them
_SUMMED_AT_ONCE = 256  # pieces
_CAPTURES = 4  # sets of addresses that CUDA graphs may keep before more has to be allocated during a capture
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DEVICES = ("cuda",)  # ROCm has this name, too

BITS_OF_1 = int(np.float64(1.0).view(np.int64))
"""A float64 in the bits of an integer, as the loops take numbers of the host that must not be rounded."""
_EXACT = {"enable_fp_fusion": False}  # each operation is rounded, as torch rounds it

Table = npt.NDArray[np.int64]
"""Addresses and other whole numbers of each tensor, a row for each."""


@functools.cache
def _loops() -> Any:
    """The loops, or None where Triton is not there, does not fit, or is not wanted."""
    if os.environ.get("STRONGREG_COMPILED") == "0" or importlib.util.find_spec("triton") is None:
        return None
    try:
        return importlib.import_module("strongreg.kernels.multi_tensor_loops")
    except (ImportError, AttributeError, OSError, RuntimeError):  # a Triton that does not fit the system
        return None


@functools.cache
def _run_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the loops run there: they are tried once, for Triton may lack a compiler or not know the GPU."""
    loops = _loops()
    if loops is None or (device.type == "cpu") != loops.IS_INTERPRETED:
        return False
    param = nn.Parameter(torch.zeros(2, 2, dtype=dtype, device=device))
    targets = [Target("", param, penalty, by_pattern=False) for penalty in (L1(1.0), GroupL2(1.0))]
    weights = [param.detach()] * 2
    try:
        passes = MultiTensorPasses(targets)
        passes.products(weights, weights, weights)
        passes.squares(weights)
        passes.shrink(weights, [1.0] * 2, [1.0] * 2)
    except Exception as error:  # whatever a compiler or a driver raises: the other ways need neither
        warn_of_triton(device, dtype, error)
        return False
    return True


def warn_of_triton(device: torch.device, dtype: torch.dtype, error: Exception) -> None:
    """Warn that loops do not run, and that others do their work.

    Args:
        device: where.
        dtype: of the weights.
        error: what was raised when they were tried.
    """
    warn(
        f"Triton does not work on {device} ({type(error).__name__}: {error}): a step over {dtype} takes more launches "
        "there; set the environment variable STRONGREG_COMPILED=0 to do without Triton silently",
        RuntimeWarning,
    )


class MultiTensorPasses(BooleanZeros):
    """The passes over tensors of one dtype on one device.

    While a CUDA graph is captured, the addresses that it works with are kept by this object, and so are the tables: as
    long as the graph is replayed, keep the :class:`strongreg.Regularizer` that it belongs to.

    Args:
        targets: n penalized parameters of one dtype and device, all of which :meth:`accepts` takes.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        param = targets[0].param
        self._loops, self._device, self._params = _loops(), param.device, [target.param for target in targets]
        dtype = str(param.dtype).removeprefix("torch.")
        number = torch.promote_types(param.dtype, torch.float32)
        self._element = {**_EXACT, "ELEMENT": self._loops.ELEMENTS[dtype], "BLOCK": _BLOCK}
        self._number = {**self._element, "NUMBER": self._loops.NUMBERS[dtype]}
        self._huge = {**self._number, "HUGE": torch.finfo(number).max}
        terms = [known_terms(target) or Terms() for target in targets]
        rows = group_sizes(self._params, terms)
        pieces, spans, self._num_separable = _pieces([each.numel() for each in self._params], rows, terms)
        self._num_pieces = len(pieces)
        of_terms = np.array([(t.l1, t.l2, t.cutoff, t.group) for t in terms], dtype=np.float64)
        strengths = np.array([target.penalty.strength for target in targets], dtype=np.float64)
        self._pieces, self._spans, self._row, self._terms, self._strengths = (
            torch.from_numpy(table).to(self._device)
            for table in (pieces, spans, np.array(rows, dtype=np.int64), of_terms, strengths)
        )
        self._of_products, self._of_squares, self._of_shrink = (
            Sent((len(targets), columns), self._device) for columns in (3, 3, 5)
        )

    @staticmethod
    def accepts(target: Target) -> bool:
        """Whether a parameter can be worked on.

        Args:
            target: the penalized parameter.

        Returns:
            True for dense tensors on a GPU under a penalty whose terms are known, where Triton is there and works.
        """
        param = target.param
        if param.device.type not in DEVICES or param.dtype not in _DTYPES:
            return False
        if not is_plain(param) or not is_dense(param) or known_terms(target) is None:
            return False
        return _run_on(param.device, param.dtype)

    def products(
        self, pulls: Sequence[Tensor | None], minus: Sequence[Tensor | None], weights: Sequence[Tensor]
    ) -> Tensor:
        """See :meth:`strongreg.kernels.reference.ReferencePasses.products`."""
        pulls, minus = all_laid_out_as(weights, pulls), all_laid_out_as(weights, minus)
        with self._on_device():
            at = self._of_products(_addresses(weights, pulls, minus))
            return self._products_of(at, self._new(self._num_pieces), self._new(len(self._params)))

    def _products_of(self, at: Tensor, by_piece: Tensor, out: Tensor) -> Tensor:
        """The sums of what stands in a table, by way of those of the pieces."""
        self._launch(
            lambda grid, first: self._loops.products[grid](
                self._pieces, first, at, self._terms, by_piece, **self._huge
            ),
            lambda grid, first: self._loops.products_of_groups[grid](
                self._pieces, first, at, self._row, self._terms, by_piece, **self._huge
            ),
        )
        return self._summed(at, by_piece, out)

    def squares(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """See :meth:`strongreg.kernels.reference.ReferencePasses.squares`."""
        fitting = all_laid_out_as(self._params, tensors)
        nothing: list[Tensor | None] = [None] * len(fitting)
        with self._on_device():
            at = self._of_squares(_addresses(fitting, nothing, nothing))
            return self._squares_of(at, self._new(self._num_pieces), self._new(len(self._params)))[:, 3]

    def _squares_of(self, at: Tensor, by_piece: Tensor, out: Tensor) -> Tensor:
        """Likewise, the squares alone, in the last column."""
        if self._num_pieces:
            self._loops.squares[(self._num_pieces,)](self._pieces, at, by_piece, **self._element)
        return self._summed(at, by_piece, out)

    def shrink(
        self, weights: Sequence[Tensor], factors: Sequence[float | Tensor], step_sizes: Sequence[float | Tensor]
    ) -> None:
        """See :meth:`strongreg.kernels.reference.ReferencePasses.shrink`."""
        on_device = _OnDevice(self._device)
        numbers = np.ones(len(weights))
        addresses = np.zeros((len(weights), 4), dtype=np.int64)  # of weights, and of what to multiply the numbers by
        addresses[:, :1] = _addresses(weights)
        for i, (factor, step_size) in enumerate(zip(factors, step_sizes, strict=True)):
            for place, each in ((1, factor), (2, step_size)):
                known = on_device(each, narrow=place == 2)
                if isinstance(known, Tensor):
                    addresses[i, place + (known.dtype == torch.float32)] = known.data_ptr()
                else:
                    numbers[i] *= max(known, 0.0)
        if not numbers.any():
            return
        with self._on_device():
            at = self._of_shrink(np.column_stack([addresses[:, 0], numbers.view(np.int64), addresses[:, 1:]]))
            self._shrink_by(at, BITS_OF_1)
        torch.autograd.graph.increment_version([w for w, number in zip(weights, numbers, strict=True) if number])

    def _shrink_by(self, at: Tensor, common: int) -> None:
        """The proximal step by what stands in a table, with a factor on all step sizes."""
        self._launch(
            lambda grid, first: self._loops.shrink[grid](
                self._pieces, first, at, self._terms, self._strengths, common, **self._huge
            ),
            lambda grid, first: self._loops.shrink_groups[grid](
                self._pieces, first, at, self._row, self._terms, self._strengths, common, **self._number
            ),
        )

    def _launch(self, separable: Callable[[Any, int], Any], grouped: Callable[[Any, int], Any]) -> None:
        """A launch over the pieces of each kind of penalty."""
        if self._num_separable:
            separable((self._num_separable,), 0)
        if self._num_pieces > self._num_separable:
            grouped((self._num_pieces - self._num_separable,), self._num_separable)

    def _summed(self, at: Tensor, by_piece: Tensor, out: Tensor) -> Tensor:
        tables = self._spans, at, self._strengths, by_piece
        self._loops.sums[(len(out),)](*tables, out, BLOCK=_SUMMED_AT_ONCE, **_EXACT)
        return out

    def _new(self, count: int) -> Tensor:
        return torch.empty((count, 4), dtype=torch.float64, device=self._device)

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        """Triton launches on the current device."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext()


class Sent:
    """A table on the device, sent anew when the host's has changed, without waiting.

    A graph under capture gets a table of its own: it sends it again at each replay, from memory of the host that stays
    as it is.

    Attributes:
        device: where the table is sent.

    Args:
        shape: of the table.
        device: see above.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self.device = device
        self._last: Table | None = None
        self._kept: Tensor | None = None
        self._in_graphs: list[Tensor] = []
        self._spare: list[Tensor] = []
        if device.type != "cpu":  # to allocate such memory is not allowed everywhere during a capture
            spare = _pinned((_CAPTURES, *shape))
            self._spare = list(spare.unbind())

    def __call__(self, table: Table) -> Tensor:
        """The table on the device.

        Args:
            table: what it is to hold.

        Returns:
            A tensor, not to be written to.
        """
        if is_captured(self.device):
            host = self._spare.pop() if self._spare else _pinned(table.shape)
            host.numpy()[...] = table
            self._in_graphs.append(host)
            return host.to(self.device, non_blocking=True)
        if self._kept is None or self._last is None or not np.array_equal(table, self._last):
            host = torch.from_numpy(table)
            if self.device.type != "cpu":
                host = host.pin_memory()  # torch keeps it until the copy is done
            self._last, self._kept = table, host.to(self.device, non_blocking=True)
        return self._kept


def _pinned(shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=torch.int64, device="cpu", pin_memory=True)


class _OnDevice:
    """Numbers as the loops can take them: those that the host knows, or tensors on the device.

    It holds the tensors that it makes until the launch is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._made: dict[int, tuple[Tensor, float | Tensor]] = {}

    def __call__(self, number: float | Tensor, *, narrow: bool) -> float | Tensor:
        """The number itself, or a tensor of float64, or of float32 too if ``narrow``, on the device."""
        if not isinstance(number, Tensor):
            return float(number)
        fits = number.dtype == torch.float64 or (narrow and number.dtype == torch.float32)
        if fits and number.device == self._device:
            return number
        if id(number) not in self._made:  # of one parameter group
            on_host = reading_is_free(number.device) and number.device != self._device
            known = float(number) if on_host else number.to(self._device, torch.float64)
            self._made[id(number)] = number, known
        return self._made[id(number)][1]


def _pieces(sizes: Sequence[int], rows: Sequence[int], terms: Sequence[Terms]) -> tuple[Table, Table, int]:
    """The pieces (tensor, first entry, number of entries), the span of each tensor in them, and how many are separable.

    Those of separable penalties come first; of one tensor they follow one another.
    """
    spans = np.zeros((len(sizes), 2), dtype=np.int64)
    found, count, num_separable = [np.zeros((0, 3), dtype=np.int64)], 0, 0
    for k in sorted(range(len(sizes)), key=lambda k: terms[k].group > 0):
        length = max(_PIECE // rows[k], 1) * rows[k]
        begins = np.arange(0, sizes[k], length, dtype=np.int64)
        lengths = np.minimum(length, sizes[k] - begins)
        found.append(np.stack([np.full_like(begins, k), begins, lengths], axis=1))
        spans[k] = count, count + len(begins)
        count += len(begins)
        num_separable += len(begins) if terms[k].group == 0 else 0
    return np.concatenate(found), spans, num_separable


def _addresses(*columns: Sequence[Tensor | None]) -> Table:
    """The addresses of the tensors, 0 for none, a column for each list."""
    return np.array([[0 if t is None else t.data_ptr() for t in column] for column in columns], dtype=np.int64).T.copy()
