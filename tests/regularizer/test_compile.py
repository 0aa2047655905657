"""torch.compile: of the model, of the optimizer's step and of the whole step; the result is that of plain Python."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from strongreg import L1, CoherenceGate, Refit, Regularizer

STEPS = 12

# of torch's own code, which it traces; any warning of ours is an error, such as of what dynamo cannot trace
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated:DeprecationWarning")


class _Run:
    def __init__(self, optimizer, mode, compiled="nothing"):
        torch.compiler.reset()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4)).double()
        if optimizer == "sgd":
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        else:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.reg = Regularizer(
            self.model, L1(0.02), gate=CoherenceGate(0.5), mode=mode, schedule=Refit(STEPS - 3)
        ).attach(self.optimizer)
        self.counter = CompileCounter()
        self.num_frames = []
        inputs, labels = torch.randn(64, 20, dtype=torch.float64), torch.randint(0, 4, (64,))
        forward = self.model
        if compiled == "model":
            forward = torch.compile(self.model, backend=self.counter, fullgraph=True)
        if compiled == "optimizer":
            self.optimizer.step = torch.compile(self.optimizer.step, backend=self.counter)

        def step():
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(forward(inputs), labels).backward()
            self.optimizer.step()

        if compiled == "step":
            step = torch.compile(step, backend=self.counter)
        for _ in range(STEPS):
            step()
            self.num_frames.append(self.counter.frame_count)


@pytest.mark.parametrize("compiled", ["model", "optimizer", "step"])
@pytest.mark.parametrize("mode", ["proximal", "gradient"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_is_compiled_gives_the_same_and_is_not_compiled_anew_at_each_step(optimizer, mode, compiled):
    plain, run = _Run(optimizer, mode), _Run(optimizer, mode, compiled)
    assert run.num_frames[0] >= 1
    assert len(set(run.num_frames[1:])) == 1
    # where it is compiled torch itself computes AdamW's bias correction in another precision, and torch 2.8 rounds
    # SGD in another order
    tolerance = 0 if compiled == "model" else 1e-5 if optimizer == "adamw" else 1e-15
    for ours, theirs in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=tolerance)
    assert run.reg.num_steps == plain.reg.num_steps == STEPS
    assert run.reg.history["open"].tolist() == plain.reg.history["open"].tolist()
    assert run.reg.summary().total == plain.reg.summary().total
    assert set(plain.reg.history["open"].tolist()) == {0.0, 1.0}


class _Nested(torch.optim.SGD):
    """Its step calls that of SGD, so that torch calls the hooks twice; it can fail in between."""

    fails = False

    def step(self, closure=None):
        super().step(closure)
        if self.fails:
            raise RuntimeError("between the steps")


@pytest.mark.parametrize("compiles", [False, True], ids=["plain", "compiled"])
def test_steps_within_steps_and_steps_that_failed_are_told_apart(compiles):
    torch.compiler.reset()
    model = nn.Linear(4, 3)
    optimizer = _Nested(model.parameters(), lr=0.1)
    reg = Regularizer(model, L1(0.02)).attach(optimizer)
    step = torch.compile(lambda: optimizer.step(), backend="eager") if compiles else optimizer.step
    for fails in (False, True, False, True, False):
        optimizer.fails = fails
        model(torch.ones(2, 4)).sum().backward()
        if fails:
            with pytest.raises(RuntimeError, match="between the steps"):
                step()
        else:
            step()
    assert reg.num_steps == 3
