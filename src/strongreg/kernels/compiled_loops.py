"""The loops over weights and gradients on the CPU, compiled by numba: each reads and writes the memory once.

Only :mod:`strongreg.kernels.compiled` imports this file, once it knows that numba is there. Tensors come as addresses,
so that one call does any number of them. They are cut into pieces, and a piece is worked on in blocks that stay in the
first-level cache: the penalty gradient of a block is written to a small buffer, then the sums run over it.

Sums are in float64, whose range holds the square of every float32. NaN goes into the sums.
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK = 256
_AHEAD = 512  # entries; the processor's own prefetching falls behind where two arrays are read side by side
_CACHE_LINE = 64  # bytes

_EIGHT_FLAGS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").view(np.uint64)[:, 0]
_SUMS = {"reassoc", "contract", "nsz"}  # sums may be taken in any order; NaN and infinity keep their meaning


@intrinsic
def _pointer(_context, address, like):
    """The address as a pointer to numbers of the type of ``like``."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return numba.types.CPointer(like)(address, like), generate


@intrinsic
def _prefetch(_context, address):
    """Ask for the cache line at an address, which may lie beyond any array."""

    def generate(context, builder, _signature, arguments):
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, keep, data = word(0), word(3), word(1)
        builder.call(function, [builder.inttoptr(arguments[0], byte), read, keep, data])
        return context.get_dummy_value()

    return numba.types.void(address), generate


@intrinsic
def _as(_context, like, number):
    """The number in the type of ``like``."""

    def generate(context, builder, signature, arguments):
        return context.cast(builder, arguments[1], number, signature.return_type)

    return like(like, number), generate


@numba.njit(inline="always", error_model="numpy")
def _array(address, start, length, one, width):
    return numba.carray(_pointer(address + start * width, one), length)


@numba.njit(inline="always", error_model="numpy")
def _sign(w, one, huge):
    """As ``penalties.base.sign``: 0 at 0, NaN at NaN; in an order of comparisons that lets NaN through."""
    x = w * huge
    x = one if x > one else x
    return -one if x < -one else x


@numba.njit(fastmath=_SUMS, nogil=True, cache=True, error_model="numpy")
def products(first, last, pieces, at, row, terms, adam, units, out):
    """Inner products of pieces: <p, p>, <p, r>, <r, r>, <w, w>, with the penalty gradient r at strength 1.

    Args:
        first: the first piece.
        last: one beyond the last piece.
        pieces: (tensor, first entry, number of entries) of each piece.
        at: addresses of each tensor's weights w, of its pull p (0 for none), and of what is to be subtracted from that
            (0 for nothing); for a step of Adam of the gradient (0 for none) and the running means of gradients and
            squares (0 for both).
        row: number of entries of a group, for penalties on groups.
        terms: (l1, l2, cutoff, group) of each tensor.
        adam: constants of a step of Adam, one row for each tensor; no rows where the pull is not such a step.
        units: 1 and the largest number, in the dtype of the tensors, shape (2,).
        out: (number of pieces, 5), written; the last are the squares of the gradients, for a step of Adam.
    """
    one, huge, width = units[0], units[1], units.itemsize
    is_adam = len(adam) > 0
    buffer, difference = np.empty(BLOCK, units.dtype), np.empty(BLOCK, units.dtype)
    for i in range(first, last):
        k, start, n = pieces[i]
        has_pull, has_minus = at[k, 1] != 0, at[k, 2] != 0
        weights = _array(at[k, 0], start, n, one, width)
        pulls = _array(at[k, 1] if has_pull else at[k, 0], start, n, one, width)
        minus = _array(at[k, 2] if has_minus else at[k, 0], start, n, one, width)
        weight_next = at[k, 0] + (start + _AHEAD) * width
        pull_next = at[k, 1] + (start + _AHEAD) * width
        l1, l2, cutoff, group = _as(one, terms[k, 0]), _as(one, terms[k, 1]), _as(one, terms[k, 2]), terms[k, 3]
        aa, bb, cc, dd, ee = 0.0, 0.0, 0.0, 0.0, 0.0
        if is_adam:
            squares = _array(at[k, 3] if has_minus else at[k, 0], start, n, one, width)
            sign, within, eps, beside = (
                _as(one, adam[k, 0]),
                _as(one, adam[k, 1]),
                _as(one, adam[k, 6]),
                _as(one, adam[k, 7]),
            )
            in_mean, of_mean = _as(one, adam[k, 2]), _as(one, adam[k, 3])
            in_square, of_square = _as(one, adam[k, 4]), _as(one, adam[k, 5])
        along = row[k] if group > 0 else max(n, 1)
        for begin in range(0, n, along):
            row_pw, row_abs = 0.0, 0.0  # <p, w> and the sum of absolute values of this row
            row_ww = 0.0
            for s in range(begin, begin + along, BLOCK):
                m = min(BLOCK, begin + along - s)
                for ahead in range(0, m * width, _CACHE_LINE):
                    _prefetch(weight_next + s * width + ahead)
                    if has_pull:
                        _prefetch(pull_next + s * width + ahead)
                w, p, r = weights[s : s + m], pulls[s : s + m], buffer[:m]
                if is_adam and has_pull:
                    d, e = difference[:m], 0.0
                    q, v = minus[s : s + m], squares[s : s + m]
                    if has_minus:
                        for j in range(m):
                            g = sign * p[j] + within * w[j]
                            root = np.sqrt(in_square * g * g + of_square * v[j])
                            d[j] = (in_mean * g + of_mean * q[j]) / (root + eps) + beside * w[j]
                    else:
                        for j in range(m):
                            g = sign * p[j] + within * w[j]
                            d[j] = in_mean * g / (np.sqrt(in_square * g * g) + eps) + beside * w[j]
                    for j in range(m):
                        e += np.float64(p[j]) * np.float64(p[j])
                    ee += e
                    p = d
                elif has_minus:
                    q, d = minus[s : s + m], difference[:m]
                    for j in range(m):
                        d[j] = p[j] - q[j]
                    p = d
                if l2 == 0 and cutoff > huge:
                    for j in range(m):
                        r[j] = _sign(w[j], one, huge)
                elif l1 == 0:
                    for j in range(m):
                        r[j] = w[j]
                elif l2 == 0:
                    for j in range(m):
                        x = w[j] / cutoff
                        x = one if x > one else x
                        r[j] = _sign(w[j], one, huge) - (-one if x < -one else x)
                else:
                    for j in range(m):
                        r[j] = l1 * _sign(w[j], one, huge) + l2 * w[j]
                a, b, c, d2 = 0.0, 0.0, 0.0, 0.0
                if has_pull:
                    for j in range(m):
                        pj, rj, wj = np.float64(p[j]), np.float64(r[j]), np.float64(w[j])
                        a += pj * pj
                        b += pj * rj
                        c += rj * rj
                        d2 += wj * wj
                else:
                    for j in range(m):
                        rj, wj = np.float64(r[j]), np.float64(w[j])
                        c += rj * rj
                        d2 += wj * wj
                if group > 0:
                    pw, absolute = 0.0, 0.0
                    for j in range(m):
                        wj = np.float64(w[j])
                        pw += np.float64(p[j]) * wj
                        absolute += abs(wj)
                    row_pw += pw
                    row_abs += absolute
                    row_ww += d2
                    b, c = b * l1, c * l1 * l1
                aa += a
                bb += b
                cc += c
                dd += d2
            if group > 0 and row_ww != 0:  # NaN is not 0
                norm = np.sqrt(row_ww)
                bb += group * row_pw / norm
                cc += 2 * l1 * group * row_abs / norm + group * group
        out[i, 0], out[i, 1], out[i, 2], out[i, 3], out[i, 4] = aa, bb, cc, dd, ee


@numba.njit(fastmath=_SUMS, nogil=True)
def _square(w):
    total = 0.0
    for j in range(w.size):
        total += np.float64(w[j]) * np.float64(w[j])
    return total


@numba.njit(cache=True)
def square_of_all(at, lengths, units):
    """The sum of the squares of all entries of some tensors.

    Args:
        at: address of each.
        lengths: its number of entries.
        units: 1 and the largest number, in the dtype of the tensors, shape (2,).

    Returns:
        The sum.
    """
    total = 0.0
    for k in range(at.size):
        total += _square(_array(at[k], 0, lengths[k], units[0], units.itemsize))
    return total


@numba.njit(nogil=True, cache=True, error_model="numpy")
def shrink(first, last, pieces, at, row, terms, thresholds, units):
    """The proximal step in place, with the arithmetic of the penalties' own ``prox``, rounding by rounding.

    Args:
        first: the first piece.
        last: one beyond the last piece.
        pieces: (tensor, first entry, number of entries) of each piece.
        at: address of each tensor's weights.
        row: number of entries of a group, for penalties on groups.
        terms: (l1, l2, cutoff, group) of each tensor.
        thresholds: step size times strength of each tensor; nothing is done where it is not above 0.
        units: 1 and the largest number, in the dtype of the tensors, shape (2,).
    """
    one, huge, width = units[0], units[1], units.itemsize
    zero = one - one
    for i in range(first, last):
        k, start, n = pieces[i]
        if not thresholds[k] > 0:
            continue
        w = _array(at[k], start, n, one, width)
        ridge, group = terms[k, 1], terms[k, 3]
        t = _as(one, thresholds[k] * terms[k, 0])
        cutoff = _as(one, terms[k, 2])
        if cutoff <= huge:
            dead_zone = t if t < cutoff else np.sqrt(t * cutoff)
            slope = one - t / cutoff
            for j in range(n):
                x = w[j]
                size = abs(x)
                inside = zero if size <= dead_zone else _sign(x, one, huge) * (size - t) / slope
                w[j] = inside if size <= cutoff or size <= dead_zone else x
        elif ridge == 0:
            if t > 0:
                for j in range(n):
                    x = w[j]
                    middle = t if x > t else x
                    w[j] = x - (-t if middle < -t else middle)
        else:
            factor = _as(one, 1 + thresholds[k] * ridge)
            for j in range(n):
                x = w[j]
                middle = t if x > t else x
                w[j] = (x - (-t if middle < -t else middle)) / factor
        if group > 0:
            t = _as(one, thresholds[k] * group)
            for begin in range(0, n, row[k]):
                norm = _as(one, np.sqrt(_square(w[begin : begin + row[k]])))
                if norm <= t:
                    for j in range(begin, begin + row[k]):
                        w[j] = zero
                else:
                    kept = one - (one / norm) * t  # as torch divides a number by a tensor
                    for j in range(begin, begin + row[k]):
                        w[j] = w[j] * kept


@numba.njit(nogil=True, cache=True, error_model="numpy")
def mark_zeros(first, last, pieces, at, bits_at, units, bits):
    """Note which entries are 0, one bit for each.

    Args:
        first: the first piece.
        last: one beyond the last piece.
        pieces: (tensor, first entry, number of entries) of each piece; the first entry a multiple of 8.
        at: address of each tensor's weights.
        bits_at: where each tensor's bits begin, in bytes.
        units: 1 and the largest number, in the dtype of the tensors, shape (2,).
        bits: written; the entries of a byte from its lowest bit on.
    """
    one, width = units[0], units.itemsize
    flags = np.zeros(BLOCK, np.uint8)
    eights = flags.view(np.uint64)
    for i in range(first, last):
        k, start, n = pieces[i]
        w = _array(at[k], start, n, one, width)
        byte = bits_at[k] + start // 8
        for s in range(0, n, BLOCK):
            m = min(BLOCK, n - s)
            v = w[s : s + m]
            for j in range(m):
                flags[j] = v[j] == 0
            for j in range(m, BLOCK):
                flags[j] = 0
            for j in range((m + 7) // 8):
                # gathers the lowest bits of eight bytes in the highest byte
                bits[byte + s // 8 + j] = (eights[j] * np.uint64(0x0102040810204080)) >> np.uint64(56)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def set_zeros(first, last, pieces, at, bits_at, units, bits):
    """Set the marked entries to 0.

    Args:
        first: the first piece.
        last: one beyond the last piece.
        pieces: (tensor, first entry, number of entries) of each piece; the first entry a multiple of 8.
        at: address of each tensor's weights; 0 for one to be left alone.
        bits_at: where each tensor's bits begin, in bytes.
        units: 1 and the largest number, in the dtype of the tensors, shape (2,).
        bits: what :func:`mark_zeros` wrote.
    """
    one, width = units[0], units.itemsize
    zero = one - one
    flags = np.empty(BLOCK, np.uint8)
    eights = flags.view(np.uint64)
    for i in range(first, last):
        k, start, n = pieces[i]
        if at[k] == 0:
            continue
        w = _array(at[k], start, n, one, width)
        byte = bits_at[k] + start // 8
        for s in range(0, n, BLOCK):
            m = min(BLOCK, n - s)
            for j in range((m + 7) // 8):
                eights[j] = _EIGHT_FLAGS[bits[byte + s // 8 + j]]
            v = w[s : s + m]
            for j in range(m):
                v[j] = v[j] if flags[j] == 0 else zero
