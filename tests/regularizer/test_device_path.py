"""On an accelerator the host never looks at a decision: the same path, run on the CPU with looking forbidden."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import strongreg
from contract.devices import take_the_cpu_for_an_accelerator
from contract.optimizers import batch, make_model, make_optimizer, same_bits
from strongreg import (
    L1,
    MCP,
    AlwaysOpen,
    CoherenceGate,
    CosineRamp,
    Delay,
    ElasticNet,
    GroupL2,
    Refit,
    Regularizer,
    SparseGroup,
)
from strongreg.kernels import passes
from strongreg.kernels.foreach import ForeachPasses
from strongreg.kernels.reference import ReferencePasses

_PENALTIES = [L1(0.1), strongreg.L2(0.1), ElasticNet(0.1), GroupL2(0.1), SparseGroup(0.1), MCP(0.1)]


class _NoLooking(TorchDispatchMode):
    """Fails where a tensor's value would be moved to the host, which on an accelerator waits for it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        assert name not in {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal"}, name
        return func(*args, **(kwargs or {}))


def _blind(monkeypatch):
    """Let the library take the CPU for an accelerator without Triton."""
    take_the_cpu_for_an_accelerator(monkeypatch)
    monkeypatch.setattr(passes, "_WAYS", (ForeachPasses, ReferencePasses))


def _run(name, monkeypatch, *, blind, penalty, gate, schedule, mode, nan_at=None, steps=9):
    if blind:
        _blind(monkeypatch)
    model = make_model(name)
    optimizer = make_optimizer(name, model.parameters())
    reg = Regularizer(model, penalty, gate=gate, schedule=schedule, mode=mode).attach(optimizer)
    for step in range(steps):
        optimizer.zero_grad()
        inputs, labels = batch(step)
        nn.functional.cross_entropy(model(inputs), labels).backward()
        if step == nan_at:
            model[0].weight.grad[0, 0] = float("nan")
        if blind:
            # our two hooks only: torch's own CPU optimizers may look
            with _NoLooking():
                reg._before_step(optimizer, (optimizer,), {})
            hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
            saved = [dict(h) for h in hooks]
            for h in hooks:
                h.clear()
            optimizer.step()
            for h, s in zip(hooks, saved, strict=True):
                h.update(s)
            with _NoLooking():
                reg._after_step(optimizer, (optimizer,), {})
        else:
            optimizer.step()
    return [p.detach().clone() for p in model.parameters()], reg


@pytest.mark.parametrize("penalty", _PENALTIES, ids=repr)
@pytest.mark.parametrize("mode", ["proximal", "gradient"])
@pytest.mark.parametrize(
    ("gate", "schedule"),
    [
        (CoherenceGate(0.9), None),
        (CoherenceGate(0.8, scope="layer"), Refit(6)),
        (Delay(4), CosineRamp(8)),
        (Delay(10), Refit(4)),
        (CoherenceGate(0.9), Refit(0)),
    ],
    ids=["global", "layer-refit", "delay-ramp", "never-refit", "refit-at-once"],
)
@pytest.mark.parametrize("name", ["sgd-momentum", "adamw"])
def test_the_device_path_never_looks_and_gives_the_same_bits(name, monkeypatch, penalty, gate, schedule, mode):
    options = {"penalty": penalty, "gate": gate, "schedule": schedule, "mode": mode}
    seen, reg = _run(name, monkeypatch, blind=False, **options)
    blind, blind_reg = _run(name, monkeypatch, blind=True, **options)
    for a, b in zip(seen, blind, strict=True):
        # a threshold in the weights' float32 on the device, in double on the host
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
        assert torch.equal(a == 0, b == 0)
    assert blind_reg.history["open"].tolist() == reg.history["open"].tolist()
    assert blind_reg.summary().layers == reg.summary().layers


def test_a_closed_gate_on_the_device_path_keeps_every_bit_and_the_sign_of_zero(monkeypatch):
    _blind(monkeypatch)
    weight = nn.Parameter(torch.tensor([[0.0, -0.0, 1.0], [float("inf"), -2.0, 1e-30]]))
    model = nn.ParameterDict({"weight": weight})
    optimizer = torch.optim.SGD([weight], lr=0.1)
    Regularizer(model, L1(0.5), gate=Delay(10)).attach(optimizer)
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    reference = nn.Parameter(before.clone())
    reference.grad = torch.zeros_like(weight)
    torch.optim.SGD([reference], lr=0.1).step()
    optimizer.step()
    assert same_bits(weight.detach(), reference.detach())


def test_non_finite_gradients_are_counted_on_the_device_and_found_when_someone_looks(monkeypatch):
    options = {"penalty": L1(0.1), "gate": AlwaysOpen(), "schedule": None, "mode": "proximal"}
    _, reg = _run("sgd-momentum", monkeypatch, blind=True, nan_at=8, **options)
    assert reg.num_nonfinite == 1
    assert reg.history["open"].tolist()[-1] == 0.0
