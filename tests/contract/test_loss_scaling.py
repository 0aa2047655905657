"""GradScaler, gradient accumulation and clipping need nothing special."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from contract.optimizers import FUSED, SPECS, batch, make_model, make_optimizer, same_bits
from strongreg import L1, CoherenceGate, Delay, Refit, Regularizer

_SCALABLE = [name for name in SPECS if not name.startswith("lbfgs")]


def _run(name, *, scaler, gate, mode="proximal", overflow_at=(), steps=12):
    """Train; at the steps of overflow_at the scaled gradient overflows. A run without scaler leaves these steps out."""
    model = make_model(name)
    optimizer = make_optimizer(name, model.parameters())
    reg = Regularizer(model, L1(0.05), gate=gate, schedule=Refit(8), mode=mode).attach(optimizer)
    sign = -1.0 if optimizer.param_groups[0].get("maximize", False) else 1.0
    for step in range(steps):
        if scaler is None and step in overflow_at:
            continue
        optimizer.zero_grad()
        inputs, labels = batch(step)
        loss = sign * nn.functional.cross_entropy(model(inputs), labels)
        if scaler is None:
            loss.backward()
            optimizer.step()
            continue
        scaler.scale(loss).backward()
        if step in overflow_at:
            model[0].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
    return model, reg


@pytest.mark.parametrize("name", _SCALABLE)
@pytest.mark.parametrize("mode", ["proximal", "gradient"])
# not at step 0: torch 2.13's fused SGD leaves its momentum buffer uninitialized when its first step is skipped
@pytest.mark.parametrize("overflow_at", [(), (1, 3, 4)], ids=["no-skip", "skipped-steps"])
@pytest.mark.parametrize("gate", [CoherenceGate(0.9), CoherenceGate(0.8, scope="layer"), Delay(4)], ids=repr)
def test_grad_scaler_gives_the_decisions_of_full_precision(name, mode, overflow_at, gate):
    # a power of two scales exactly; halving after an overflow keeps it one
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=10**6)
    model, reg = _run(name, scaler=scaler, gate=gate, mode=mode, overflow_at=overflow_at)
    plain_model, plain = _run(name, scaler=None, gate=gate, mode=mode, overflow_at=overflow_at)
    assert reg.num_steps == plain.num_steps == 12 - len(overflow_at)
    assert reg.history["open"].tolist() == plain.history["open"].tolist()
    assert reg.history.steps.tolist() == plain.history.steps.tolist()
    assert reg.history["gradient_norm"] == pytest.approx(plain.history["gradient_norm"], rel=1e-5)
    assert reg.history["coherence"] == pytest.approx(plain.history["coherence"], abs=1e-5)
    assert reg.num_nonfinite == 0
    for p, q in zip(model.parameters(), plain_model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)
        assert torch.equal(p == 0, q == 0)


def test_the_list_of_fused_optimizers_is_not_empty():
    assert len(FUSED) >= 4


@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("name", ["sgd-momentum", "sgd-fused", "adamw-fused"])
def test_clipping_of_unscaled_gradients_is_seen(name, unscale_first):
    norms = []
    for scaled in (True, False):
        model = make_model(name)
        optimizer = make_optimizer(name, model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        reg = Regularizer(model, L1(0.05)).attach(optimizer)
        for step in range(3):
            optimizer.zero_grad()
            inputs, labels = batch(step)
            scaler.scale(nn.functional.cross_entropy(model(inputs), labels)).backward()
            if unscale_first:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update()
        norms.append(reg.history["gradient_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    if unscale_first:
        assert (norms[0] <= 0.0100001).all()


@pytest.mark.parametrize("name", ["sgd-momentum", "adamw"])
def test_accumulated_gradients_are_one_step(name):
    results = []
    for accumulate in (1, 4):
        model = make_model(name).double()
        optimizer = make_optimizer(name, model.parameters())
        reg = Regularizer(model, L1(0.05), gate=CoherenceGate(0.9)).attach(optimizer)
        for step in range(6):
            optimizer.zero_grad()
            inputs, labels = batch(step)
            for part, label in zip(inputs.double().chunk(accumulate), labels.chunk(accumulate), strict=True):
                (nn.functional.cross_entropy(model(part), label) / accumulate).backward()
            optimizer.step()
        results.append((model, reg))
    (once, reg_once), (accumulated, reg_accumulated) = results
    assert reg_once.num_steps == reg_accumulated.num_steps == 6
    assert same_bits(reg_once.history["open"].tolist(), reg_accumulated.history["open"].tolist())
    for p, q in zip(once.parameters(), accumulated.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-12)
