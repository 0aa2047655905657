"""The passes on the CPU by loops that numba compiles: one call for all tensors, one look at the memory each."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import itertools
import operator
import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from strongreg.devices import reading_is_free
from strongreg.groups import Target
from strongreg.kernels.adam import AdamStep
from strongreg.kernels.layout import (
    all_laid_out_as,
    group_sizes,
    has_freed_memory,
    has_plain_memory,
    is_dense,
    is_plain,
    known_terms,
)
from strongreg.kernels.zeros import PackedMask, as_boolean
from strongreg.penalties import L1
from strongreg.penalties.terms import Terms
from strongreg.warning import warn

_PIECE = 65536  # entries; the sums do not depend on the number of threads
_WORTH_A_THREAD = 2**19  # entries
_MOST_SHARES = 16  # of the work, unless there are more threads: each costs some microseconds
_NUMPY: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}
_UNITS = {dtype: np.array([1, np.finfo(number).max], dtype=number) for dtype, number in _NUMPY.items()}
_NO_ADAM = np.empty((0, 8))


@functools.cache
def _loops() -> Any:
    """The compiled loops, or None where numba is not there, does not fit, or is not wanted."""
    if os.environ.get("STRONGREG_COMPILED") == "0" or importlib.util.find_spec("numba") is None:
        return None
    try:
        if importlib.import_module("numba").config.DISABLE_JIT:
            return None
        return importlib.import_module("strongreg.kernels.compiled_loops")
    except (ImportError, AttributeError, OSError, RuntimeError):  # it does not fit numpy or Python, or finds no cache
        return None


def _works(dtype: torch.dtype) -> bool:
    return _loops() is not None and _tried(dtype)


def are_compiled() -> bool:
    """Whether the passes over plain float32 and float64 parameters on the CPU are compiled here.

    Returns:
        False where numba is missing, switched off or broken: other ways take their place.
    """
    return all(_works(dtype) for dtype in _NUMPY)


@functools.cache
def _tried(dtype: torch.dtype) -> bool:
    """Whether the loops do their work: they are tried once, for numba may have no compiler or a damaged cache."""
    targets = [Target("", nn.Parameter(torch.zeros(2, 2, dtype=dtype, device="cpu")), L1(1.0), by_pattern=False)]
    weights = [targets[0].param.detach()]
    try:
        passes = CompiledPasses(targets)
        passes.products(weights, [None], weights)
        passes.shrink(weights, [1.0], [1.0])
        passes.set_zeros(weights, passes.mark_zeros(weights, [None], [True]))
        _loops().square_of_all(np.array(_addresses(weights)), np.array([4]), _UNITS[dtype])
    except Exception as error:  # whatever a compiler raises: the other ways need none
        warn(
            f"numba does not work here ({type(error).__name__}: {error}): the passes over {dtype} are slower; empty "
            "the folders __pycache__ of strongreg, or set STRONGREG_COMPILED=0 to do without numba silently",
            RuntimeWarning,
        )
        return False
    return True


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="strongreg")


if hasattr(os, "register_at_fork"):  # a forked process has none of its parent's threads
    os.register_at_fork(after_in_child=_threads.cache_clear)


class CompiledPasses:
    """The passes over tensors of one dtype.

    Args:
        targets: n penalized parameters of one dtype, all of which :meth:`accepts` takes.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self._loops = _loops()
        self._units = _UNITS[targets[0].param.dtype]
        self._targets = targets
        terms = [known_terms(target) or Terms() for target in targets]
        self._terms = np.array([(t.l1, t.l2, t.cutoff, t.group) for t in terms], dtype=np.float64)
        self._strengths = np.array([target.penalty.strength for target in targets], dtype=np.float64)
        self._by_strength = self._strengths[:, None] ** np.array([0, 1, 2, 0, 0])
        sizes = [target.param.numel() for target in targets]
        rows = group_sizes([target.param for target in targets], terms)
        self._row = np.array(rows, dtype=np.int64)
        pieces = [
            (k, begin, min(length, size - begin))
            for k, (size, row) in enumerate(zip(sizes, rows, strict=True))
            for length in [max(_PIECE // row, 1) * row]
            for begin in range(0, max(size, 1), length)
        ]
        # the last tensors first: what an optimizer takes first is then still in the cache, and what it took last
        self._pieces = np.array(pieces[::-1], dtype=np.int64).reshape(-1, 3)
        blocks = [(k, begin, min(_PIECE, n - begin)) for k, n in enumerate(sizes) for begin in range(0, n, _PIECE)]
        self._pieces_of_bits = np.array(blocks[::-1], dtype=np.int64).reshape(-1, 3)
        self._bits_at = np.cumsum([0, *((size + 7) // 8 for size in sizes)])
        self._first_pieces = np.flatnonzero(np.diff(self._pieces[:, 0], prepend=-1))
        self._num_entries = sum(sizes)

    @staticmethod
    def accepts(target: Target) -> bool:
        """Whether a parameter can be worked on.

        Args:
            target: the penalized parameter.

        Returns:
            True for dense float32 and float64 on the CPU under a penalty whose terms are known, where numba is there.
        """
        param = target.param
        if not reading_is_free(param.device) or param.dtype not in _NUMPY or not is_plain(param) or not is_dense(param):
            return False
        return known_terms(target) is not None and _works(param.dtype)

    def products(
        self, pulls: Sequence[Tensor | None], minus: Sequence[Tensor | None], weights: Sequence[Tensor]
    ) -> Tensor:
        """See :meth:`strongreg.kernels.reference.ReferencePasses.products`."""
        columns = [weights, all_laid_out_as(weights, pulls), all_laid_out_as(weights, minus)]
        return torch.from_numpy(self._at_strength(columns, _NO_ADAM)[:, :4])

    def foreseen(
        self, gradients: Sequence[Tensor | None], steps: Sequence[AdamStep], weights: Sequence[Tensor]
    ) -> Tensor:
        """See :meth:`strongreg.kernels.reference.ReferencePasses.foreseen`."""
        states = [[step.exp_avg for step in steps], [step.exp_avg_sq for step in steps]]
        columns = [weights, *(all_laid_out_as(weights, column) for column in (gradients, *states))]
        return torch.from_numpy(self._at_strength(columns, np.array([step.constants() for step in steps])))

    def squares(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """See :meth:`strongreg.kernels.reference.ReferencePasses.squares`."""
        params = [target.param for target in self._targets]
        fitting = all_laid_out_as(params, tensors)
        at = np.zeros((len(params), 4), dtype=np.int64)
        at[:, 0] = _addresses([param if each is None else each for param, each in zip(params, fitting, strict=True)])
        squares = self._products(at, _NO_ADAM)[:, 3].copy()
        squares[[each is None for each in fitting]] = 0
        return torch.from_numpy(squares)

    def shrink(
        self, weights: Sequence[Tensor], factors: Sequence[float | Tensor], step_sizes: Sequence[float | Tensor]
    ) -> None:
        """See :meth:`strongreg.kernels.reference.ReferencePasses.shrink`."""
        steps = [float(step_size) * float(factor) for factor, step_size in zip(factors, step_sizes, strict=True)]
        thresholds = np.array(steps) * self._strengths
        at = np.array(_addresses(weights), dtype=np.int64)

        def work(first: int, last: int) -> None:
            self._loops.shrink(first, last, self._pieces, at, self._row, self._terms, thresholds, self._units)

        self._in_threads(work, len(self._pieces))
        torch.autograd.graph.increment_version([w for w, t in zip(weights, thresholds, strict=True) if t > 0])

    def mark_zeros(
        self, weights: Sequence[Tensor], others: Sequence[Tensor | PackedMask | None], flags: Sequence[bool | Tensor]
    ) -> tuple[npt.NDArray[np.uint8], list[bool]]:
        """See :meth:`strongreg.kernels.zeros.BooleanZeros.mark_zeros`; here it is one bit for each weight."""
        at = np.array(_addresses(weights), dtype=np.int64)
        bits = np.empty(self._bits_at[-1], dtype=np.uint8)
        self._over_bits(self._loops.mark_zeros, at, bits)
        for k, (weight, other) in enumerate(zip(weights, others, strict=True)):
            if other is not None:
                bits[self._bits_at[k] : self._bits_at[k + 1]] |= _bits_of(other, weight)
        return bits, [bool(flag) for flag in flags]

    def set_zeros(self, weights: Sequence[Tensor], marks: tuple[npt.NDArray[np.uint8], list[bool]]) -> None:
        """See :meth:`strongreg.kernels.zeros.BooleanZeros.set_zeros`."""
        bits, flags = marks
        at = np.array(_addresses(weights), dtype=np.int64) * flags
        self._over_bits(self._loops.set_zeros, at, bits)
        torch.autograd.graph.increment_version([w for w, flag in zip(weights, flags, strict=True) if flag])

    def _over_bits(self, loop: Any, at: npt.NDArray[np.int64], bits: npt.NDArray[np.uint8]) -> None:
        def work(first: int, last: int) -> None:
            loop(first, last, self._pieces_of_bits, at, self._bits_at, self._units, bits)

        self._in_threads(work, len(self._pieces_of_bits))

    def _at_strength(
        self, columns: Sequence[Sequence[Tensor | None]], adam: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """The sums at full strength, from weights, pulls and what makes up the pulls."""
        at = np.zeros((len(self._targets), 4), dtype=np.int64)
        for i, column in enumerate(columns):
            at[:, i] = _addresses(column)
        with np.errstate(invalid="ignore"):  # of infinite weights under a strength of 0
            sums: npt.NDArray[np.float64] = self._products(at, adam) * self._by_strength
        if not at[:, 1].all():  # the address of an empty tensor is 0, too, and its sums are 0
            sums[at[:, 1] == 0, :3] = 0
        return sums

    def _products(self, at: npt.NDArray[np.int64], adam: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The sums of each tensor at strength 1, shape (n, 5)."""
        by_piece = np.empty((len(self._pieces), 5))

        def work(first: int, last: int) -> None:
            constants = self._row, self._terms, adam, self._units
            self._loops.products(first, last, self._pieces, at, *constants, by_piece)

        self._in_threads(work, len(self._pieces))
        by_tensor: npt.NDArray[np.float64] = np.add.reduceat(by_piece, self._first_pieces)[::-1]
        return by_tensor

    def _in_threads(self, work: Callable[[int, int], None], num_pieces: int) -> None:
        """Share the pieces among as many threads as torch uses, where that is worth it."""
        count = min(torch.get_num_threads(), self._num_entries // _WORTH_A_THREAD, num_pieces)
        if count <= 1:
            work(0, num_pieces)
            return
        # in small shares, each taken by who is free: a thread of torch that still waits for work may have a core
        num_shares = min(num_pieces, max(count, _MOST_SHARES))
        ends = [num_pieces * i // num_shares for i in range(num_shares + 1)]
        shares: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        for span in itertools.pairwise(ends):
            shares.put(span)

        def work_on_shares() -> None:
            with contextlib.suppress(queue.Empty):
                while True:
                    work(*shares.get_nowait())

        others: list[Future[None]] = []
        try:
            with contextlib.suppress(RuntimeError):  # no more threads can begin; what was put off may still be done
                for _ in range(count - 1):
                    others.append(_threads(count - 1).submit(work_on_shares))
            work_on_shares()
        finally:
            with contextlib.suppress(queue.Empty):  # nothing is left for who begins late: the tensors may be gone then
                while True:
                    shares.get_nowait()
            wait(others)  # they work on the tensors' memory
        for other in others:
            other.result()


def _bits_of(mask: Tensor | PackedMask, weight: Tensor) -> npt.NDArray[np.uint8]:
    """A mask's bits in the order in which the weights lie in the memory."""
    if isinstance(mask, PackedMask) and mask.stride == weight.stride():
        return mask.bits
    return PackedMask.of(torch.empty_like(weight, dtype=torch.bool).copy_(as_boolean(mask))).bits


def square_of_all(tensors: Sequence[Tensor]) -> float | None:
    """The sum of the squares of all entries of some tensors.

    Args:
        tensors: any number of any shape.

    Returns:
        The sum; None where it cannot be had by this way.
    """
    loops = _loops()
    if any(each.dtype not in _NUMPY or not has_plain_memory(each) or not is_dense(each) for each in tensors):
        return None
    if loops is None or not all(_works(each.dtype) for each in tensors):
        return None
    total = 0.0
    for dtype in {each.dtype for each in tensors}:
        chosen = [each for each in tensors if each.dtype == dtype]
        lengths = np.array([each.numel() for each in chosen], dtype=np.int64)
        total += loops.square_of_all(np.array(_addresses(chosen), dtype=np.int64), lengths, _UNITS[dtype])
    return total


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    if any(map(operator.is_, tensors, itertools.repeat(None))):
        at = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    else:
        at = list(map(Tensor.data_ptr, tensors))  # type: ignore[arg-type]
    if not all(at):
        for address, tensor in zip(at, tensors, strict=True):
            if address == 0 and tensor is not None and has_freed_memory(tensor):
                raise RuntimeError(f"a tensor of shape {tuple(tensor.shape)} has no memory: its storage was freed")
    return at
