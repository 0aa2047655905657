"""The Regularizer against a literal, slow, loop-written twin of SGD with each gate and mode."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from strongreg import L1, L2, AlwaysOpen, CoherenceGate, Delay, LinearRamp, Refit, Regularizer

_LR, _MOMENTUM, _STRENGTH, _RAMP, _REFIT = 0.1, 0.9, 0.2, 10, 60


def _sign(x):
    return 0.0 if x == 0 else math.copysign(1.0, x)


def _twin_step(weights, grads, velocity, zeros, was_open, t, *, penalty, gate, mode, momentum, dampening, nesterov):
    """One step on nested Python lists, one weight at a time; returns the decisions per tensor."""
    refit = t >= _REFIT
    strength = 0.0 if refit else _STRENGTH * min(t / _RAMP, 1.0)
    subgradient = {"l1": _sign, "l2": lambda x: x}[penalty]
    shrink = {"l1": lambda x, s: _sign(x) * max(abs(x) - s, 0.0), "l2": lambda x, s: x / (1 + s)}[penalty]
    coherences, total = [], [0.0, 0.0, 0.0]
    for w, g in zip(weights, grads, strict=True):
        a = sum(gi * gi for gi in g)
        b = sum(gi * (gi + strength * subgradient(wi)) for gi, wi in zip(g, w, strict=True))
        c = sum((gi + strength * subgradient(wi)) ** 2 for gi, wi in zip(g, w, strict=True))
        coherences.append(b / math.sqrt(a * c))
        total = [x + y for x, y in zip(total, (a, b, c), strict=True)]
    overall = total[1] / math.sqrt(total[0] * total[2])
    if gate == "always":
        opened = [True] * len(weights)
    elif gate == "delay":
        opened = [t >= 20] * len(weights)
    elif gate == "global":
        opened = [overall >= 0.7] * len(weights)
    else:
        opened = [c >= 0.7 for c in coherences]
    opened = [o and strength > 0 for o in opened]  # in the refit it is 0
    step_size = _LR * ((1 - dampening) / (1 - momentum) if momentum else 1.0)
    for k, (w, g, v, o) in enumerate(zip(weights, grads, velocity, opened, strict=True)):
        if refit:
            zero_before = [x == 0.0 or kept for x, kept in zip(w, zeros[k], strict=True)]
        elif o:
            zeros[k] = [False] * len(w)
        elif was_open[k]:
            zeros[k] = [x == 0.0 for x in w]
        for i in range(len(w)):
            gi = g[i] + (strength * subgradient(w[i]) if o and mode == "gradient" else 0.0)
            v[i] = gi if v[i] is None else momentum * v[i] + (1 - dampening) * gi
            direction = (gi + momentum * v[i] if nesterov else v[i]) if momentum else gi
            w[i] -= _LR * direction
            if o and mode == "proximal":
                w[i] = shrink(w[i], step_size * strength)
            if refit and zero_before[i]:
                w[i] = 0.0
    if not refit:
        was_open[:] = opened
    return opened, overall


@pytest.mark.parametrize("penalty", ["l1", "l2"])
@pytest.mark.parametrize("mode", ["proximal", "gradient"])
@pytest.mark.parametrize("gate", ["always", "delay", "global", "layer"])
@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"),
    [(0.0, 0.0, False), (_MOMENTUM, 0.0, False), (_MOMENTUM, 0.5, False), (_MOMENTUM, 0.0, True)],
    ids=["plain", "momentum", "dampening", "nesterov"],
)
def test_a_hundred_steps_equal_the_twin(penalty, mode, gate, momentum, dampening, nesterov):
    model = nn.ParameterDict(
        {name: nn.Parameter(torch.randn(shape, dtype=torch.float64)) for name, shape in (("a", (3, 4)), ("b", (5, 2)))}
    )
    params = list(model.values())
    gates = {
        "always": AlwaysOpen(),
        "delay": Delay(20),
        "global": CoherenceGate(0.7),
        "layer": CoherenceGate(0.7, scope="layer"),
    }
    optimizer = torch.optim.SGD(params, lr=_LR, momentum=momentum, dampening=dampening, nesterov=nesterov)
    schedule = Refit(_REFIT, before=LinearRamp(_RAMP))
    reg = Regularizer(
        model, {"l1": L1, "l2": L2}[penalty](_STRENGTH), gate=gates[gate], schedule=schedule, mode=mode
    ).attach(optimizer)
    weights = [p.detach().flatten().tolist() for p in params]
    velocity = [[None] * len(w) for w in weights]
    optimum = [torch.randn_like(p) for p in params]
    zeros, was_open = [[False] * len(w) for w in weights], [False] * len(weights)
    num_open = 0
    for t in range(100):
        for p, target in zip(params, optimum, strict=True):
            p.grad = 0.3 * (p.detach() - target) + 0.05 * torch.randn_like(p)
        grads = [p.grad.flatten().tolist() for p in params]
        opened, overall = _twin_step(
            weights, grads, velocity, zeros, was_open, t,
            penalty=penalty, gate=gate, mode=mode, momentum=momentum, dampening=dampening, nesterov=nesterov,
        )  # fmt: skip
        optimizer.step()
        assert reg.history.per_layer("open")[-1].tolist() == [float(o) for o in opened]
        assert reg.history["coherence"][-1] == pytest.approx(overall, abs=1e-6)
        for p, w in zip(params, weights, strict=True):
            assert p.detach().flatten().tolist() == pytest.approx(w, abs=1e-12)
        num_open += sum(opened)
    assert 0 < num_open < 200
