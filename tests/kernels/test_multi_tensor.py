"""The loops on a GPU without one: run in Triton's interpreter, and compiled for GPUs that are not there."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kernels.twins import target
from strongreg import L1, CoherenceGate, CosineRamp, Delay, GroupL2, Refit, Regularizer
from strongreg.gpu.step import GpuStep
from strongreg.kernels import multi_tensor

triton = pytest.importorskip("triton")

_TYPES = {
    "first": "i32",
    "common": "i64",
    "pieces": "*i64",
    "at": "*i64",
    "row": "*i64",
    "spans": "*i64",
}  # the others: float64
_LOOPS = ["products", "products_of_groups", "squares", "copy", "sums", "shrink", "shrink_groups"]


@pytest.mark.skipif(
    triton.__version__.startswith("3.4.") and np.lib.NumpyVersion(np.__version__) >= "2.4.0",
    reason="Triton 3.4's interpreter makes numbers of arrays of one element, which NumPy 2.4 refuses",
)
@pytest.mark.parametrize("cases", ["multi_tensor_cases.py", "gpu_step_cases.py"])
def test_the_interpreter_gives_what_the_reference_gives(cases):
    """In a process of its own: the interpreter is chosen when Triton is imported."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", cases]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", _LOOPS)
def test_the_loops_compile_for_a_gpu(name, dtype, capability, tmp_path, monkeypatch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    loops = importlib.import_module("strongreg.kernels.multi_tensor_loops")
    passes = multi_tensor.MultiTensorPasses([target(L1(1.0), torch.zeros(2, dtype=dtype))])
    loop = getattr(loops, name)
    arguments = [param.name for param in loop.params]
    constants = {key: value for key, value in passes._huge.items() if key in arguments}
    signature = {key: "constexpr" if key in constants else _TYPES.get(key, "*fp64") for key in arguments}
    options = {key: value for key, value in passes._huge.items() if key not in constants and key.islower()}
    source = ASTSource(loop, signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    code = compiled.asm["ptx"]
    assert f"sm_{capability}" in code
    assert "atom" not in code  # sums do not depend on the order in which the programs run
    assert "div.full" not in code
    assert "approx" not in code
    if name.startswith("shrink") and dtype == torch.bfloat16:
        assert "cvt.rn.bf16" in code


class _DriverOfNoGpu:
    """What Triton asks of a driver before it compiles."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return device


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """All but the launches themselves: the arguments are taken apart, and what they ask for is compiled."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    launched, run = [], JITFunction.run

    def warm_up(loop, *arguments, grid, **options):
        launched.append((loop.__name__, *grid))
        return run(loop, *arguments, grid=grid, **{**options, "warmup": True})

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(JITFunction, "run", warm_up)
    place = "_active" if hasattr(driver, "_active") else "active"  # the latter in Triton 3.4
    monkeypatch.setattr(driver, place, _DriverOfNoGpu())
    return launched


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_launches_of_a_step_compile_as_they_are_made(dtype, launched):
    targets = [target(penalty, torch.randn(4, 5).to(dtype)) for penalty in (L1(0.1), GroupL2(0.1, dim=0))]
    weights = [each.param.detach() for each in targets]
    passes = multi_tensor.MultiTensorPasses(targets)
    passes.products(weights, weights, weights)
    passes.squares(weights)
    passes.shrink(weights, [torch.ones((), dtype=torch.float64)] * 2, [0.1, torch.tensor(0.1)])
    assert launched == [
        ("products", 1), ("products_of_groups", 1), ("sums", 2), ("squares", 2), ("sums", 2), ("shrink", 1),
        ("shrink_groups", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("by_layer", [False, True], ids=["global", "layer"])
@pytest.mark.parametrize(("of_step", "count"), [(False, 8), (True, 11)], ids=["gradient", "step"])
def test_the_launches_of_a_step_that_is_done_there_alone_compile_too(of_step, count, by_layer, launched):
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gate, schedule = CoherenceGate(0.7, "layer") if by_layer else Delay(1), Refit(1, before=CosineRamp(3))
    reg = Regularizer(model, {"0.weight": L1(0.1), "*weight": L1(0.2)}, gate=gate, schedule=schedule)
    factors = torch.ones(2, dtype=torch.float64)
    step = GpuStep(reg.targets, optimizer, gate, schedule, factors, of_step=of_step)
    for num_steps in range(2):
        launched.clear()
        assert step.before_step(optimizer, reg._counts, reg._zero_masks, num_steps)
        step.after_step(optimizer, reg._counts, reg.history, records=num_steps == 0)
    assert len(launched) == count
    assert {name for name, *_ in launched} >= {"decide", "mark", "remember", "set_marked", "shrink"}


def test_a_captured_graph_keeps_a_table_of_its_own(monkeypatch):
    """On the CPU as if a graph were captured; that it is replayed well, ``test_on_cuda.py`` shows."""
    sent = multi_tensor.Sent((2, 3), torch.device("cpu"))
    eager, in_graph = np.arange(6).reshape(2, 3), np.arange(6, 12).reshape(2, 3)
    kept = sent(eager)
    sent._spare = [torch.empty(2, 3, dtype=torch.int64)]
    monkeypatch.setattr(multi_tensor, "is_captured", lambda device: True)
    captured = sent(in_graph)
    monkeypatch.undo()
    assert sent(eager.copy()) is kept
    assert captured.tolist() == in_graph.tolist()
    assert len(sent._in_graphs) == 1


def test_without_triton_there_are_no_loops(monkeypatch):
    monkeypatch.setenv("STRONGREG_COMPILED", "0")
    multi_tensor._loops.cache_clear()
    assert multi_tensor._loops() is None
    monkeypatch.undo()
    multi_tensor._loops.cache_clear()
    assert multi_tensor._loops() is not None
    assert not multi_tensor._run_on(torch.device("cpu"), torch.float32)  # not interpreted: they are for a GPU
