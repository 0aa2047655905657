"""The loops over weights and gradients on a GPU, compiled by Triton: one launch for any number of tensors.

Only :mod:`strongreg.kernels.multi_tensor` imports this file, once it knows that Triton is there. Tensors come as
addresses in a table on the device, and a program works on one piece of one tensor. What a piece adds to a sum is
written down and then added in the order of the pieces, so that the same numbers give the same sums.

Sums are in float64, whose range holds the square of every float32. NaN goes into the sums. Comparisons are written in
an order that lets NaN through, divisions and roots are rounded as torch rounds them.
"""

import triton
import triton.language as tl

NUMBERS = {"float16": tl.float32, "bfloat16": tl.float32, "float32": tl.float32, "float64": tl.float64}
"""In what the entries of each dtype are computed."""
ELEMENTS = {"float16": tl.float16, "bfloat16": tl.bfloat16, "float32": tl.float32, "float64": tl.float64}


@triton.jit
def _sign(w, HUGE: tl.constexpr):
    """As ``penalties.base.sign``: 0 at 0, NaN at NaN."""
    x = w * HUGE
    x = tl.where(x > 1, 1.0, x)
    return tl.where(x < -1, -1.0, x)


@triton.jit
def _divided(x, y, NUMBER: tl.constexpr):
    return tl.div_rn(x, y) if NUMBER == tl.float32 else x / y


@triton.jit
def _root(x, NUMBER: tl.constexpr):
    return tl.sqrt_rn(x) if NUMBER == tl.float32 else tl.sqrt(x)


@triton.jit
def _soft(x, t):
    """``x`` minus its projection onto [-t, t]; at t = 0 not even the sign of a zero changes."""
    middle = tl.where(x > t, t, x)
    middle = tl.where(middle < -t, -t, middle)
    return tl.where(t > 0, x - middle, x)


@triton.jit
def _difference(pulls, minus, entry, inside, num_pulls, num_minus, NUMBER: tl.constexpr):
    """The pull less what is to be subtracted from it, zeros where there is none."""
    p = tl.load(pulls + entry, mask=inside & (entry < num_pulls), other=0.0).to(NUMBER)
    return p - tl.load(minus + entry, mask=inside & (entry < num_minus), other=0.0).to(NUMBER)


@triton.jit(do_not_specialize=["first"])
def products(
    pieces,
    first,
    at,
    terms,
    by_piece,
    ELEMENT: tl.constexpr,
    NUMBER: tl.constexpr,
    HUGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Inner products of pieces under separable penalties: <p, p>, <p, r>, <r, r>, <w, w>, r at strength 1.

    Args:
        pieces: (tensor, first entry, number of entries) of each piece.
        first: the piece of the first program.
        at: addresses of each tensor's weights w (0 where they do not matter), of its pull p (0 for none), and of what
            is to be subtracted from that (0 for nothing).
        terms: (l1, l2, cutoff, group) of each tensor.
        by_piece: (number of pieces, 4), written.
        ELEMENT: type of the entries.
        NUMBER: type they are computed in.
        HUGE: the largest number of that type.
        BLOCK: entries worked on at once.
    """
    i = tl.program_id(0).to(tl.int64) + first
    k, start, n = tl.load(pieces + 3 * i), tl.load(pieces + 3 * i + 1), tl.load(pieces + 3 * i + 2)
    w_at, p_at, q_at = tl.load(at + 3 * k), tl.load(at + 3 * k + 1), tl.load(at + 3 * k + 2)
    weights = w_at.to(tl.pointer_type(ELEMENT)) + start
    pulls = p_at.to(tl.pointer_type(ELEMENT)) + start
    minus = q_at.to(tl.pointer_type(ELEMENT)) + start
    num_weights = tl.where(w_at != 0, n, 0)
    num_pulls = tl.where(p_at != 0, n, 0)
    num_minus = tl.where(q_at != 0, num_pulls, 0)
    l1, l2 = tl.load(terms + 4 * k).to(NUMBER), tl.load(terms + 4 * k + 1).to(NUMBER)
    cutoff = tl.load(terms + 4 * k + 2).to(NUMBER)
    pp = tl.full((BLOCK,), 0.0, tl.float64)
    pr = tl.full((BLOCK,), 0.0, tl.float64)
    rr = tl.full((BLOCK,), 0.0, tl.float64)
    ww = tl.full((BLOCK,), 0.0, tl.float64)
    for begin in range(0, n, BLOCK):
        entry = begin + tl.arange(0, BLOCK)
        inside = entry < n
        w = tl.load(weights + entry, mask=inside & (entry < num_weights), other=0.0).to(NUMBER)
        p = _difference(pulls, minus, entry, inside, num_pulls, num_minus, NUMBER)
        r = _sign(w, HUGE)
        if cutoff <= HUGE:
            faded = _divided(w, cutoff, NUMBER)
            faded = tl.where(faded > 1, 1.0, faded)
            r = r - tl.where(faded < -1, -1.0, faded)
        r = l1 * r
        if l2 != 0:
            r = r + l2 * w
        p, r, w = p.to(tl.float64), r.to(tl.float64), w.to(tl.float64)
        pp = tl.fma(p, p, pp)
        pr = tl.fma(p, r, pr)
        rr = tl.fma(r, r, rr)
        ww = tl.fma(w, w, ww)
    tl.store(by_piece + 4 * i, tl.sum(pp, 0))
    tl.store(by_piece + 4 * i + 1, tl.sum(pr, 0))
    tl.store(by_piece + 4 * i + 2, tl.sum(rr, 0))
    tl.store(by_piece + 4 * i + 3, tl.sum(ww, 0))


@triton.jit
def copy(pieces, at, ELEMENT: tl.constexpr, BLOCK: tl.constexpr):
    """Copies of tensors.

    Args:
        pieces: (tensor, first entry, number of entries) of each piece.
        at: addresses of the copy of each tensor (0 for none), in the last of three columns of the tensor.
        ELEMENT: type of the entries.
        BLOCK: entries worked on at once.
    """
    i = tl.program_id(0).to(tl.int64)
    k, start, n = tl.load(pieces + 3 * i), tl.load(pieces + 3 * i + 1), tl.load(pieces + 3 * i + 2)
    to, source = tl.load(at + 3 * k), tl.load(at + 3 * k + 2)
    n = tl.where(to != 0, n, 0)
    to, source = to.to(tl.pointer_type(ELEMENT)) + start, source.to(tl.pointer_type(ELEMENT)) + start
    for begin in range(0, n, BLOCK):
        entry = begin + tl.arange(0, BLOCK)
        tl.store(to + entry, tl.load(source + entry, mask=entry < n), mask=entry < n)


@triton.jit
def squares(pieces, at, by_piece, ELEMENT: tl.constexpr, BLOCK: tl.constexpr):
    """Squared norms of pieces, in the last of four columns.

    Args:
        pieces: (tensor, first entry, number of entries) of each piece.
        at: address of each tensor in the first of three columns, 0 for none.
        by_piece: (number of pieces, 4), written.
        ELEMENT: type of the entries.
        BLOCK: entries worked on at once.
    """
    i = tl.program_id(0).to(tl.int64)
    k, start, n = tl.load(pieces + 3 * i), tl.load(pieces + 3 * i + 1), tl.load(pieces + 3 * i + 2)
    w_at = tl.load(at + 3 * k)
    weights = w_at.to(tl.pointer_type(ELEMENT)) + start
    n = tl.where(w_at != 0, n, 0)
    ww = tl.full((BLOCK,), 0.0, tl.float64)
    for begin in range(0, n, BLOCK):
        entry = begin + tl.arange(0, BLOCK)
        w = tl.load(weights + entry, mask=entry < n, other=0.0).to(tl.float64)
        ww = tl.fma(w, w, ww)
    tl.store(by_piece + 4 * i, 0.0)
    tl.store(by_piece + 4 * i + 1, 0.0)
    tl.store(by_piece + 4 * i + 2, 0.0)
    tl.store(by_piece + 4 * i + 3, tl.sum(ww, 0))


@triton.jit(do_not_specialize=["first"])
def products_of_groups(
    pieces,
    first,
    at,
    row,
    terms,
    by_piece,
    ELEMENT: tl.constexpr,
    NUMBER: tl.constexpr,
    HUGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Inner products of pieces under penalties on groups, as :func:`products`.

    Args:
        pieces: (tensor, first entry, number of entries) of each piece, whole groups.
        first: the piece of the first program.
        at: addresses of each tensor's weights, of its pull, and of what is to be subtracted from that.
        row: number of entries of a group of each tensor.
        terms: (l1, l2, cutoff, group) of each tensor.
        by_piece: (number of pieces, 4), written.
        ELEMENT: type of the entries.
        NUMBER: type they are computed in.
        HUGE: the largest number of that type.
        BLOCK: entries worked on at once.
    """
    i = tl.program_id(0).to(tl.int64) + first
    k, start, n = tl.load(pieces + 3 * i), tl.load(pieces + 3 * i + 1), tl.load(pieces + 3 * i + 2)
    length = tl.load(row + k)
    w_at, p_at, q_at = tl.load(at + 3 * k), tl.load(at + 3 * k + 1), tl.load(at + 3 * k + 2)
    weights = w_at.to(tl.pointer_type(ELEMENT)) + start
    pulls = p_at.to(tl.pointer_type(ELEMENT)) + start
    minus = q_at.to(tl.pointer_type(ELEMENT)) + start
    num_pulls = tl.where(p_at != 0, n, 0)
    num_minus = tl.where(q_at != 0, num_pulls, 0)
    out = by_piece + 4 * i
    l1, group = tl.load(terms + 4 * k), tl.load(terms + 4 * k + 3)
    # short rows side by side, long ones along the whole block
    if length <= 32:
        _products_of_rows(
            weights, pulls, minus, num_pulls, num_minus, n, length, l1, group, out, NUMBER, HUGE, BLOCK // 32, 32
        )
    elif length <= 256:
        _products_of_rows(
            weights, pulls, minus, num_pulls, num_minus, n, length, l1, group, out, NUMBER, HUGE, BLOCK // 256, 256
        )
    else:
        _products_of_rows(
            weights, pulls, minus, num_pulls, num_minus, n, length, l1, group, out, NUMBER, HUGE, 1, BLOCK
        )


@triton.jit
def _products_of_rows(
    weights,
    pulls,
    minus,
    num_pulls,
    num_minus,
    n,
    length,
    l1,
    group,
    out,
    NUMBER: tl.constexpr,
    HUGE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    num_rows = n // length
    pp = tl.full((ROWS, COLUMNS), 0.0, tl.float64)
    ps = tl.full((ROWS, COLUMNS), 0.0, tl.float64)
    ss = tl.full((ROWS, COLUMNS), 0.0, tl.float64)
    cross = tl.full((ROWS,), 0.0, tl.float64)
    penalty = tl.full((ROWS,), 0.0, tl.float64)
    total = tl.full((ROWS,), 0.0, tl.float64)
    for begin in range(0, num_rows, ROWS):
        r = begin + tl.arange(0, ROWS)
        pw = tl.full((ROWS, COLUMNS), 0.0, tl.float64)
        ww = tl.full((ROWS, COLUMNS), 0.0, tl.float64)
        absolute = tl.full((ROWS, COLUMNS), 0.0, tl.float64)
        for left in range(0, length, COLUMNS):
            c = left + tl.arange(0, COLUMNS)
            inside = (r < num_rows)[:, None] & (c < length)[None, :]
            entry = r[:, None] * length + c[None, :]
            w = tl.load(weights + entry, mask=inside, other=0.0).to(NUMBER)
            p = _difference(pulls, minus, entry, inside, num_pulls, num_minus, NUMBER).to(tl.float64)
            s = _sign(w, HUGE).to(tl.float64)
            w = w.to(tl.float64)
            pp = tl.fma(p, p, pp)
            ps = tl.fma(p, s, ps)
            ss = tl.fma(s, s, ss)
            pw = tl.fma(p, w, pw)
            ww = tl.fma(w, w, ww)
            absolute += tl.abs(w)
        square = tl.sum(ww, 1)
        there = square != 0  # NaN is not 0
        norm = tl.where(there, tl.sqrt(square), 1.0)
        cross += tl.where(there, group * tl.sum(pw, 1) / norm, 0.0)
        penalty += tl.where(there, 2 * l1 * group * tl.sum(absolute, 1) / norm + group * group, 0.0)
        total += square
    tl.store(out, tl.sum(tl.sum(pp, 1), 0))
    tl.store(out + 1, l1 * tl.sum(tl.sum(ps, 1), 0) + tl.sum(cross, 0))
    tl.store(out + 2, l1 * l1 * tl.sum(tl.sum(ss, 1), 0) + tl.sum(penalty, 0))
    tl.store(out + 3, tl.sum(total, 0))


@triton.jit
def sums(spans, at, strengths, by_piece, out, BLOCK: tl.constexpr):
    """The sums of each tensor over its pieces, in their order, at the tensor's strength.

    Args:
        spans: the first piece of each tensor, and one beyond its last.
        at: addresses as for :func:`products`: without a pull the first three sums are 0.
        strengths: of each tensor.
        by_piece: (number of pieces, 4).
        out: (number of tensors, 4), written.
        BLOCK: pieces worked on at once.
    """
    k = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(spans + 2 * k), tl.load(spans + 2 * k + 1)
    pp = tl.full((BLOCK,), 0.0, tl.float64)
    pr = tl.full((BLOCK,), 0.0, tl.float64)
    rr = tl.full((BLOCK,), 0.0, tl.float64)
    ww = tl.full((BLOCK,), 0.0, tl.float64)
    for i in range(begin, end, BLOCK):
        piece = i + tl.arange(0, BLOCK)
        inside = piece < end
        pp += tl.load(by_piece + 4 * piece, mask=inside, other=0.0)
        pr += tl.load(by_piece + 4 * piece + 1, mask=inside, other=0.0)
        rr += tl.load(by_piece + 4 * piece + 2, mask=inside, other=0.0)
        ww += tl.load(by_piece + 4 * piece + 3, mask=inside, other=0.0)
    has_pull = tl.load(at + 3 * k + 1) != 0
    strength = tl.load(strengths + k)
    tl.store(out + 4 * k, tl.where(has_pull, tl.sum(pp, 0), 0.0))
    tl.store(out + 4 * k + 1, tl.where(has_pull, strength * tl.sum(pr, 0), 0.0))
    tl.store(out + 4 * k + 2, tl.where(has_pull, strength * strength * tl.sum(rr, 0), 0.0))
    tl.store(out + 4 * k + 3, tl.sum(ww, 0))


@triton.jit
def _threshold(k, at, strengths, common):
    """Step size times strength of a tensor: numbers of the host, times what lies at the addresses that are not 0."""
    t = tl.load(at + 5 * k + 1).to(tl.float64, bitcast=True) * common.to(tl.float64, bitcast=True)
    factor, wide, narrow = tl.load(at + 5 * k + 2), tl.load(at + 5 * k + 3), tl.load(at + 5 * k + 4)
    if factor != 0:
        t = t * tl.load(factor.to(tl.pointer_type(tl.float64)))
    if wide != 0:
        t = t * tl.load(wide.to(tl.pointer_type(tl.float64)))
    if narrow != 0:
        t = t * tl.load(narrow.to(tl.pointer_type(tl.float32))).to(tl.float64)
    return t * tl.load(strengths + k)


@triton.jit(do_not_specialize=["first", "common"])
def shrink(
    pieces,
    first,
    at,
    terms,
    strengths,
    common,
    ELEMENT: tl.constexpr,
    NUMBER: tl.constexpr,
    HUGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The proximal step of separable penalties in place, with the arithmetic of their own ``prox``.

    Args:
        pieces: (tensor, first entry, number of entries) of each piece.
        first: the piece of the first program.
        at: of each tensor the address of its weights; a float64 in the bits of an integer; the addresses of two float64
            and a float32, or 0. The product of these numbers is the factor on the strength: nothing is done where it is
            not above 0.
        terms: (l1, l2, cutoff, group) of each tensor.
        strengths: of each tensor.
        common: a factor on all of these, a float64 in the bits of an integer.
        ELEMENT: type of the entries.
        NUMBER: type they are computed in.
        HUGE: the largest number of that type.
        BLOCK: entries worked on at once.
    """
    i = tl.program_id(0).to(tl.int64) + first
    k, start, n = tl.load(pieces + 3 * i), tl.load(pieces + 3 * i + 1), tl.load(pieces + 3 * i + 2)
    threshold = _threshold(k, at, strengths, common)
    if threshold > 0:
        weights = tl.load(at + 5 * k).to(tl.pointer_type(ELEMENT)) + start
        t = (threshold * tl.load(terms + 4 * k)).to(NUMBER)
        ridge = tl.load(terms + 4 * k + 1)
        slope = (1 + threshold * ridge).to(NUMBER)
        cutoff = tl.load(terms + 4 * k + 2).to(NUMBER)
        for begin in range(0, n, BLOCK):
            entry = begin + tl.arange(0, BLOCK)
            inside = entry < n
            x = tl.load(weights + entry, mask=inside, other=0.0).to(NUMBER)
            if cutoff <= HUGE:
                size = tl.abs(x)
                dead_zone = tl.where(t < cutoff, t, _root(t * cutoff, NUMBER))
                y = _divided(_sign(x, HUGE) * (size - t), 1 - _divided(t, cutoff, NUMBER), NUMBER)
                y = tl.where(size <= cutoff, y, x)
                x = tl.where(size <= dead_zone, 0.0, y)
            else:
                x = _soft(x, t)
                if ridge != 0:
                    x = _divided(x, slope, NUMBER)
            tl.store(weights + entry, x.to(ELEMENT), mask=inside)


@triton.jit(do_not_specialize=["first", "common"])
def shrink_groups(
    pieces,
    first,
    at,
    row,
    terms,
    strengths,
    common,
    ELEMENT: tl.constexpr,
    NUMBER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The proximal step of penalties on groups in place, as :func:`shrink`.

    Args:
        pieces: (tensor, first entry, number of entries) of each piece, whole groups.
        first: the piece of the first program.
        at: as for :func:`shrink`.
        row: number of entries of a group of each tensor.
        terms: (l1, l2, cutoff, group) of each tensor.
        strengths: of each tensor.
        common: as for :func:`shrink`.
        ELEMENT: type of the entries.
        NUMBER: type they are computed in.
        BLOCK: entries worked on at once.
    """
    i = tl.program_id(0).to(tl.int64) + first
    k, start, n = tl.load(pieces + 3 * i), tl.load(pieces + 3 * i + 1), tl.load(pieces + 3 * i + 2)
    threshold = _threshold(k, at, strengths, common)
    if threshold > 0:
        weights = tl.load(at + 5 * k).to(tl.pointer_type(ELEMENT)) + start
        length = tl.load(row + k)
        by_entry = (threshold * tl.load(terms + 4 * k)).to(NUMBER)
        by_group = (threshold * tl.load(terms + 4 * k + 3)).to(NUMBER)
        if length <= 32:
            _shrink_rows(weights, n, length, by_entry, by_group, ELEMENT, NUMBER, BLOCK // 32, 32)
        elif length <= 256:
            _shrink_rows(weights, n, length, by_entry, by_group, ELEMENT, NUMBER, BLOCK // 256, 256)
        else:
            _shrink_rows(weights, n, length, by_entry, by_group, ELEMENT, NUMBER, 1, BLOCK)


@triton.jit
def _shrink_rows(
    weights,
    n,
    length,
    by_entry,
    by_group,
    ELEMENT: tl.constexpr,
    NUMBER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    num_rows = n // length
    for begin in range(0, num_rows, ROWS):
        r = begin + tl.arange(0, ROWS)
        square = tl.full((ROWS, COLUMNS), 0.0, tl.float64)
        for left in range(0, length, COLUMNS):
            c = left + tl.arange(0, COLUMNS)
            inside = (r < num_rows)[:, None] & (c < length)[None, :]
            w = tl.load(weights + (r[:, None] * length + c[None, :]), mask=inside, other=0.0).to(NUMBER)
            w = _soft(w, by_entry).to(tl.float64)
            square = tl.fma(w, w, square)
        norm = tl.sqrt(tl.sum(square, 1)).to(NUMBER)
        gone = norm <= by_group  # a NaN norm falls through to NaN weights
        kept = 1 - _divided(by_group, tl.where(gone, 1.0, norm), NUMBER)
        for left in range(0, length, COLUMNS):
            c = left + tl.arange(0, COLUMNS)
            inside = (r < num_rows)[:, None] & (c < length)[None, :]
            entry = r[:, None] * length + c[None, :]
            w = _soft(tl.load(weights + entry, mask=inside, other=0.0).to(NUMBER), by_entry)
            w = tl.where(gone[:, None], 0.0, w * kept[:, None])
            tl.store(weights + entry, w.to(ELEMENT), mask=inside)


IS_INTERPRETED = not isinstance(products, triton.JITFunction)
"""Whether the loops run on the CPU, in the interpreter that the environment variable TRITON_INTERPRET asks for."""
