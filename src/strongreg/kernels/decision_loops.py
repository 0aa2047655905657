"""The decision of a step on a GPU as one launch: :func:`strongreg.decision.decide` and what is counted and recorded.

Only :mod:`strongreg.gpu.step` imports this file, once it knows that Triton is there. One program works on the
few numbers that there are for each tensor, in float64, in the order of the tensors. NaN goes through as there.
"""

import triton
import triton.language as tl

ALWAYS_OPEN, COHERENCE, DELAY = (tl.constexpr(i) for i in range(3))
"""Kinds of gates."""
CONSTANT, LINEAR, COSINE = (tl.constexpr(i) for i in range(3))
"""Kinds of schedules."""
NOTHING, CLEAR, REMEMBER = (tl.constexpr(i) for i in range(3))
"""What a step does to the zeros that are remembered of a tensor."""


@triton.jit
def _coherence(gradient_sq, cross, penalty_sq):
    """As :func:`strongreg.coherence.coherence`."""
    aligned = gradient_sq + cross
    total_sq = aligned + cross + penalty_sq
    total_sq = tl.where(total_sq < 0, 0.0, total_sq)
    lengths = tl.sqrt(gradient_sq) * tl.sqrt(total_sq)
    cosine = aligned / tl.where(lengths > 0, lengths, 1.0)
    cosine = tl.where(cosine > 1, 1.0, cosine)
    cosine = tl.where(cosine < -1, -1.0, cosine)
    cosine = tl.where(lengths > 0, cosine, 0.0)
    cosine = tl.where(penalty_sq == 0, 1.0, cosine)
    return cosine + (aligned + penalty_sq) * 0  # x * 0 is NaN where x is not finite


@triton.jit
def _factor(step, settings, SCHEDULE: tl.constexpr):
    """As :meth:`strongreg.schedules.Schedule.factor` of the three kinds."""
    steps, initial, final = tl.load(settings + 1), tl.load(settings + 2), tl.load(settings + 3)
    progress = (step - tl.load(settings + 4)) / steps
    progress = tl.where(progress > 1, 1.0, tl.where(progress < 0, 0.0, progress))
    if SCHEDULE == COSINE:
        progress = (1 - tl.cos(3.141592653589793 * progress)) / 2
    factor = initial + (final - initial) * progress
    if SCHEDULE == CONSTANT:
        factor = factor * 0 + 1
    return factor


@triton.jit
def _products(k, penalized, sums, unit, scales, factor):
    """The inner products of some tensors, and the factor on the strength of each; a penalty that is off has none."""
    scale = tl.load(scales + k, mask=penalized, other=0.0)
    multiplier = factor * scale
    pull_sq = tl.load(sums + 4 * k, mask=penalized, other=0.0) * (unit * unit)
    cross = tl.load(sums + 4 * k + 1, mask=penalized, other=0.0) * unit * multiplier
    penalty_sq = tl.load(sums + 4 * k + 2, mask=penalized, other=0.0) * multiplier * multiplier
    return pull_sq, tl.where(scale > 0, cross, 0.0), tl.where(scale > 0, penalty_sq, 0.0), multiplier


@triton.jit
def _record(out, coherence, share, gradient_sq, penalty_sq, weight_sq, mask):
    tl.store(out, coherence.to(tl.float32), mask=mask)
    tl.store(out + 1, share.to(tl.float32), mask=mask)
    tl.store(out + 2, tl.sqrt(gradient_sq).to(tl.float32), mask=mask)
    tl.store(out + 3, tl.sqrt(penalty_sq).to(tl.float32), mask=mask)
    tl.store(out + 4, tl.sqrt(weight_sq).to(tl.float32), mask=mask)


@triton.jit(do_not_specialize=["unit", "num_penalized", "num_tensors", "row"])
def decide(
    squares,
    sums,
    unit,
    at,
    scales,
    sizes,
    settings,
    step,
    num_nonfinite,
    num_open,
    num_allowed,
    last_open,
    multipliers,
    changes,
    held,
    records,
    record_steps,
    num_penalized,
    num_tensors,
    row,
    COLUMN: tl.constexpr,
    GATE: tl.constexpr,
    BY_LAYER: tl.constexpr,
    SCHEDULE: tl.constexpr,
    COUNTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Whether the penalty acts on each tensor, what is counted of the step, and its record.

    Args:
        squares: (number of tensors, 4), in a column the squared norms of the gradients; the penalized tensors come
            first.
        sums: (number of tensors, 4), as ``multi_tensor_loops.sums`` writes them for what moves the weights.
        unit: by what that is multiplied, a float64 in the bits of an integer.
        at: (number of tensors, 3) addresses: in the second column of what moves the weights, 0 where nothing does.
        scales: relative strength of each penalized tensor, 0 where its penalty has strength 0.
        sizes: number of weights of each penalized tensor.
        settings: threshold or number of steps of the gate; steps, initial, final and start of the schedule; the first
            step of the refit.
        step: steps done before this one; counted on.
        num_nonfinite: as in :class:`strongreg.counts.StepCounts`, counted on.
        num_open: likewise.
        num_allowed: likewise.
        last_open: likewise.
        multipliers: factor on the strength of each tensor, 0 where it is not penalized or its gate is closed, written.
        changes: what the step does to the zeros that are remembered of each tensor (``zeros_loops``), written.
        held: whether its zeros are held over the step, written.
        records: history, (rows, number of penalized tensors + 1, 5), written in one row.
        record_steps: the numbers of its steps, written in one row.
        num_penalized: number of penalized tensors.
        num_tensors: number of tensors.
        row: where in the history; negative for nowhere.
        COLUMN: that of the squared norms.
        GATE: kind of the gate.
        BY_LAYER: whether each tensor has a gate of its own.
        SCHEDULE: kind of the schedule.
        COUNTS: whether the step is counted, and not only decided on.
        BLOCK: tensors worked on at once.
    """
    now = tl.load(step)
    refit_start = tl.load(settings + 5)
    before_refit = tl.where(now.to(tl.float64) < refit_start, 1.0, 0.0)
    factor = _factor(now.to(tl.float64), settings, SCHEDULE) * before_refit
    u = unit.to(tl.float64, bitcast=True)
    of_all = tl.full((BLOCK,), 0.0, tl.float64)
    gradient = tl.full((BLOCK,), 0.0, tl.float64)
    pull = tl.full((BLOCK,), 0.0, tl.float64)
    cross = tl.full((BLOCK,), 0.0, tl.float64)
    penalty = tl.full((BLOCK,), 0.0, tl.float64)
    weight = tl.full((BLOCK,), 0.0, tl.float64)
    num_weights = tl.full((BLOCK,), 0, tl.int64)
    for begin in range(0, num_tensors, BLOCK):
        k = begin + tl.arange(0, BLOCK)
        penalized = k < num_penalized
        square = tl.load(squares + 4 * k + COLUMN, mask=k < num_tensors, other=0.0)
        a, b, c, _ = _products(k, penalized, sums, u, scales, factor)
        of_all += square
        gradient += tl.where(penalized, square, 0.0)
        pull += a
        cross += b
        penalty += c
        weight += tl.load(sums + 4 * k + 3, mask=penalized, other=0.0)
        num_weights += tl.load(sizes + k, mask=penalized, other=0)
    whole = tl.sum(of_all, 0)
    nothing = whole - whole  # NaN where a gradient is not finite, otherwise 0
    penalty_sq = tl.sum(penalty, 0)
    coherence = _coherence(tl.sum(pull, 0), tl.sum(cross, 0), penalty_sq)

    records += row.to(tl.int64) * (5 * (num_penalized + 1))
    num_weights_open = tl.full((BLOCK,), 0, tl.int64)
    for begin in range(0, num_tensors, BLOCK):
        k = begin + tl.arange(0, BLOCK)
        penalized = k < num_penalized
        a, b, c, multiplier = _products(k, penalized, sums, u, scales, factor)
        own = _coherence(a, b, c)
        deciding = own if BY_LAYER else tl.where(k >= 0, coherence, 0.0)
        opened = deciding == deciding  # where it is NaN there is nothing to decide by
        if GATE == COHERENCE:
            opened = opened & (deciding >= tl.load(settings))
        elif GATE == DELAY:
            opened = opened & (tl.where(k >= 0, now.to(tl.float64), 0.0) >= tl.load(settings))
        allowed = (tl.load(at + 3 * k + 1, mask=penalized, other=0) != 0) & (tl.where(k >= 0, before_refit, 0.0) > 0)
        opened = opened & (multiplier + nothing > 0) & allowed
        tl.store(multipliers + k, tl.where(opened, multiplier, 0.0), mask=k < num_tensors)
        num_weights_open += tl.where(opened, tl.load(sizes + k, mask=penalized, other=0), 0)
        if row >= 0:
            square = tl.load(squares + 4 * k + COLUMN, mask=penalized, other=0.0)
            weight_sq = tl.load(sums + 4 * k + 3, mask=penalized, other=0.0)
            _record(records + 5 * k, own, opened.to(tl.float64), square, c, weight_sq, penalized)
        was_open = tl.load(last_open + k, mask=penalized, other=0) != 0
        change = tl.where(opened & ~was_open, CLEAR, tl.where(was_open & ~opened, REMEMBER, NOTHING))
        tl.store(changes + k, tl.where(allowed, change, NOTHING).to(tl.int8), mask=k < num_tensors)
        num_opened = tl.load(num_open + k, mask=penalized, other=0)
        # from the first step on there was no step at which the penalty might have had a part in them
        is_able = (num_opened > 0) | (
            (tl.where(k >= 0, refit_start, 0.0) == 0) & (tl.load(scales + k, mask=penalized, other=0.0) > 0)
        )
        is_held = is_able & (tl.where(k >= 0, before_refit, 0.0) == 0)
        tl.store(held + k, tl.where(is_held, 1, 0).to(tl.int8), mask=k < num_tensors)
        if COUNTS:
            tl.store(num_open + k, num_opened + opened.to(tl.int64), mask=penalized)
            counted = tl.load(num_allowed + k, mask=penalized, other=0)
            tl.store(num_allowed + k, counted + allowed.to(tl.int64), mask=penalized)
            tl.store(last_open + k, opened, mask=penalized & allowed)
    if row >= 0:
        total = tl.maximum(tl.sum(num_weights, 0), 1)
        share = tl.sum(num_weights_open, 0).to(tl.float64) / total.to(tl.float64)
        out = records + 5 * num_penalized
        _record(out, coherence, share, tl.sum(gradient, 0), penalty_sq, tl.sum(weight, 0), row >= 0)
        tl.store(record_steps + row, now)
    if COUNTS:
        tl.store(num_nonfinite, tl.load(num_nonfinite) + tl.where(nothing == 0, 0, 1).to(tl.int64))
        tl.store(step, now + 1)
