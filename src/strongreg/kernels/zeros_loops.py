"""The zeros that a refit holds, on a GPU: one launch for all tensors, as in ``multi_tensor_loops``.

Only :mod:`strongreg.gpu.step` imports this file, once it knows that Triton is there. What is remembered of each tensor
(:class:`strongreg.refit.ZeroMasks`) are booleans: the zeros that the penalty had when it last acted, where it does not
act now.
"""

import triton
import triton.language as tl

from strongreg.kernels.decision_loops import NOTHING, REMEMBER


@triton.jit
def remember(pieces, at, changes, ELEMENT: tl.constexpr, BLOCK: tl.constexpr):
    """Remember the zeros that a step at a closed gate is about to set free, and forget those that the penalty has back.

    Args:
        pieces: (tensor, first entry, number of entries) of each piece.
        at: addresses of each tensor's weights before the step, and of what is remembered of it.
        changes: what is to be done for each tensor.
        ELEMENT: type of the weights.
        BLOCK: entries worked on at once.
    """
    i = tl.program_id(0).to(tl.int64)
    k, start, n = tl.load(pieces + 3 * i), tl.load(pieces + 3 * i + 1), tl.load(pieces + 3 * i + 2)
    change = tl.load(changes + k)
    if change != NOTHING:
        weights = tl.load(at + 3 * k).to(tl.pointer_type(ELEMENT)) + start
        remembered = tl.load(at + 3 * k + 1).to(tl.pointer_type(tl.int8)) + start
        for begin in range(0, n, BLOCK):
            entry = begin + tl.arange(0, BLOCK)
            w = tl.load(weights + entry, mask=entry < n, other=1.0)
            zero = tl.where((w == 0) & (change == REMEMBER), 1, 0)
            tl.store(remembered + entry, zero.to(tl.int8), mask=entry < n)


@triton.jit
def mark(pieces, at, held, ELEMENT: tl.constexpr, BLOCK: tl.constexpr):
    """Mark what is to be zero after a step.

    Args:
        pieces: (tensor, first entry, number of entries) of each piece.
        at: addresses of each tensor's weights (0 where it is not penalized), of what is remembered of it, and of its
            marks, which are written.
        held: whether the zeros of each tensor are held.
        ELEMENT: type of the weights.
        BLOCK: entries worked on at once.
    """
    i = tl.program_id(0).to(tl.int64)
    k, start, n = tl.load(pieces + 3 * i), tl.load(pieces + 3 * i + 1), tl.load(pieces + 3 * i + 2)
    w_at = tl.load(at + 3 * k)
    n = tl.where(w_at != 0, n, 0)
    weights = w_at.to(tl.pointer_type(ELEMENT)) + start
    remembered = tl.load(at + 3 * k + 1).to(tl.pointer_type(tl.int8)) + start
    marks = tl.load(at + 3 * k + 2).to(tl.pointer_type(tl.int8)) + start
    is_held = tl.load(held + k)
    for begin in range(0, n, BLOCK):
        entry = begin + tl.arange(0, BLOCK)
        w = tl.load(weights + entry, mask=entry < n, other=1.0)
        known = tl.load(remembered + entry, mask=entry < n, other=0)
        zero = tl.where(((w == 0) | (known != 0)) & (is_held != 0), 1, 0)
        tl.store(marks + entry, zero.to(tl.int8), mask=entry < n)


@triton.jit
def set_marked(pieces, at, ELEMENT: tl.constexpr, BLOCK: tl.constexpr):
    """Set what is marked to zero, in place.

    Args:
        pieces: (tensor, first entry, number of entries) of each piece.
        at: as for :func:`mark`.
        ELEMENT: type of the weights.
        BLOCK: entries worked on at once.
    """
    i = tl.program_id(0).to(tl.int64)
    k, start, n = tl.load(pieces + 3 * i), tl.load(pieces + 3 * i + 1), tl.load(pieces + 3 * i + 2)
    w_at = tl.load(at + 3 * k)
    n = tl.where(w_at != 0, n, 0)
    weights = w_at.to(tl.pointer_type(ELEMENT)) + start
    marks = tl.load(at + 3 * k + 2).to(tl.pointer_type(tl.int8)) + start
    for begin in range(0, n, BLOCK):
        entry = begin + tl.arange(0, BLOCK)
        marked = tl.load(marks + entry, mask=entry < n, other=0)
        tl.store(weights + entry, tl.full((BLOCK,), 0.0, ELEMENT), mask=marked != 0)
