"""What only a GPU can show: ``pytest tests/kernels/test_on_cuda.py`` on a machine that has one."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from contract.optimizers import same_bits
from kernels.twins import PENALTIES, check_nothing_changes, check_products, check_shrink, check_squares, every_dtype
from kernels.twins import target as on_cpu
from strongreg import L1, CoherenceGate, Constant, CosineRamp, GroupL2, Refit, Regularizer, SparseGroup
from strongreg.kernels.foreach import ForeachPasses
from strongreg.kernels.multi_tensor import MultiTensorPasses

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

_WAYS = [MultiTensorPasses, ForeachPasses]
_SHAPES = [(5, 7), (2, 3, 3, 3), (3, 300), (0, 4), (1, 1), (40, 1000), (3, 70000)]
_PENALTY = {"0.weight": L1(0.2), "2.weight": SparseGroup(0.2), "*weight": GroupL2(0.2)}
_OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "adamw-fused": lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
    "adamw-capturable": lambda params: torch.optim.AdamW(
        params, lr=torch.tensor(0.01, device=params[0].device), capturable=params[0].is_cuda
    ),
}
every_optimizer = pytest.mark.parametrize("name", _OPTIMIZERS)


def target(penalty, weights):
    return on_cpu(penalty, weights.cuda())


def _mixed(dtype):
    return [
        target(penalty, torch.randn(shape, dtype=torch.float64).to(dtype)) for penalty in PENALTIES for shape in _SHAPES
    ]


def _like(targets):
    return [torch.randn_like(each.param) for each in targets]


class _Run:
    """A small network in training, on any device, with batches that do not depend on it."""

    def __init__(self, name, device, *, dtype=torch.float32, num_layers=3, schedule=None):
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(num_layers)]
        self.model = nn.Sequential(*(module for layer in layers for module in layer)).to(device, dtype)
        self.optimizer = _OPTIMIZERS[name](list(self.model.parameters()))
        self.reg = Regularizer(self.model, _PENALTY, gate=CoherenceGate(0.3), schedule=schedule)
        self.reg.attach(self.optimizer)
        self.is_done_there_alone = []  # of each step
        begin = self.reg._fast_path.begin
        self.reg._fast_path.begin = lambda *a: self._noted(begin(*a))
        self.inputs = torch.zeros(16, 8, device=device, dtype=dtype)

    def batch(self, step):
        torch.manual_seed(step)
        self.inputs.copy_(torch.randn(16, 8, dtype=torch.float64))

    def forward_backward_step(self, around_step=contextlib.nullcontext):
        (self.model(self.inputs) - 0.3).square().mean().backward()
        with around_step():
            self.optimizer.step()

    def train(self, steps, around_step=contextlib.nullcontext):
        for step in steps:
            self.optimizer.zero_grad()
            self.batch(step)
            self.forward_backward_step(around_step)

    def _noted(self, step):
        self.is_done_there_alone.append(step is not None)
        return step

    def weights(self):
        return [param.detach().cpu() for param in self.model.parameters()]


def _assert_close(a, b, tolerance):
    for x, y in zip(a.weights(), b.weights(), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@contextlib.contextmanager
def _waiting_is_an_error():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---------------------------------------------------------------------- the two passes


@every_dtype
@pytest.mark.parametrize("way", _WAYS)
def test_many_tensors_under_many_penalties_at_once(way, dtype):
    targets = _mixed(dtype)
    pulls, minus = _like(targets), _like(targets)
    check_products(way, targets, pulls)
    # the reference rounds the difference to half precision
    rounding = torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else None
    check_products(way, targets, pulls, minus, tolerance=rounding)
    some = [None if i % 4 == 0 else each for i, each in enumerate(pulls)]
    check_products(way, targets, some)
    check_squares(way, targets, some)
    factors = torch.rand(len(targets), dtype=torch.float64, device="cuda").unbind()
    check_shrink(way, targets, factors, [0.4] * len(targets))
    check_shrink(way, targets, factors, [torch.tensor(0.4, dtype=torch.float64, device="cuda")] * len(targets))


@pytest.mark.parametrize("way", _WAYS)
def test_where_the_gate_is_closed_no_bit_changes(way):
    w = torch.tensor([[0.0, -0.0, 1.0], [float("inf"), float("nan"), 1e-6]])
    targets = [on_cpu(penalty, w.cuda()) for penalty in PENALTIES[:4] for _ in range(2)]
    closed = torch.zeros((), dtype=torch.float64, device="cuda")
    check_nothing_changes(way, targets, [closed] * 8, [0.5] * 8)


def test_the_same_numbers_give_the_same_sums():
    targets = _mixed(torch.float32)
    way, weights, pulls = MultiTensorPasses(targets), [each.param.detach() for each in targets], _like(targets)
    first, second = (way.products(pulls, [None] * len(pulls), weights).cpu() for _ in range(2))
    assert same_bits(first, second)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second CUDA device")
def test_tensors_on_another_device_than_the_current_one():
    targets = [on_cpu(penalty, torch.randn(4, 30).to("cuda:1")) for penalty in PENALTIES]
    check_products(MultiTensorPasses, targets, _like(targets))
    check_shrink(MultiTensorPasses, targets, [1.0] * len(targets), [0.3] * len(targets))


# ---------------------------------------------------------------------- whole steps


@every_optimizer
def test_a_step_does_not_wait_for_the_device(name):
    run = _Run(name, "cuda")
    run.train(range(3))
    if not all(run.is_done_there_alone):
        assert {type(way) for _, way in run.reg._passes._parts} == {MultiTensorPasses}
    run.train(range(3, 9), _waiting_is_an_error)


def _launches(run, step):
    profile = torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    )

    @contextlib.contextmanager
    def profiled():
        torch.cuda.synchronize()
        with profile:
            yield
            torch.cuda.synchronize()

    run.train([step], profiled)
    names = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return len([name for name in names if not name.startswith(("Memcpy", "Memset", "Optimizer.step"))])


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")
@pytest.mark.parametrize("schedule", [Constant(), Refit(5)], ids=repr)
@every_optimizer
def test_a_step_launches_as_much_for_few_layers_as_for_many(name, schedule):
    counts = []
    for num_layers in (3, 12):
        run = _Run(name, "cuda", num_layers=num_layers, schedule=schedule)
        run.train(range(3))
        before = _launches(run, 3)
        run.train(range(4, 6))
        later = _launches(run, 6)
        run.reg.detach()
        bare = _launches(run, 7)
        counts.append((before - bare, later - bare))
    assert 0 < counts[1][0] <= counts[0][0]
    if all(run.is_done_there_alone):  # in the general way a refit holds the zeros by launches for each tensor
        assert counts[0][0] <= 12
        assert counts[1][1] <= counts[0][1]


@pytest.mark.parametrize("schedule", [Constant(), Refit(9)], ids=repr)
@every_optimizer
def test_a_step_as_it_mostly_is_is_done_there_alone(name, schedule):
    run = _Run(name, "cuda", schedule=schedule)
    run.train(range(12))
    assert run.is_done_there_alone == [name != "adamw-capturable"] * 12  # whose learning rate is a tensor


@pytest.mark.parametrize("schedule", [Constant(), Refit(14, before=CosineRamp(10))], ids=repr)
@every_optimizer
def test_the_weights_are_those_of_a_run_on_the_cpu(name, schedule):
    runs = [_Run(name, device, dtype=torch.float64, schedule=schedule) for device in ("cpu", "cuda")]
    for run in runs:
        run.train(range(20))
    # a capturable AdamW counts its steps, and corrects by them, in float32
    _assert_close(*runs, tolerance=1e-5 if name == "adamw-capturable" else 1e-9)
    assert runs[0].reg.history["open"].tolist() == runs[1].reg.history["open"].tolist()
    for a, b in zip(runs[0].weights(), runs[1].weights(), strict=True):
        assert torch.equal(a == 0, b == 0)


@pytest.mark.parametrize("name", ["sgd", "adamw-capturable"])
def test_a_captured_step_gives_the_weights_of_a_step_that_is_not(name):
    eager, captured = _Run(name, "cuda"), _Run(name, "cuda")
    eager.train(range(3))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        captured.train(range(3))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    captured.optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        captured.forward_backward_step()

    def replay(steps):
        for step in steps:
            captured.batch(step)
            graph.replay()

    replay(range(3, 8))
    captured.train(range(8, 10))  # gradients elsewhere: the graph has to find its own again
    replay(range(10, 14))
    eager.train(range(3, 14))
    _assert_close(captured, eager, tolerance=1e-5)
    assert captured.reg.num_steps == eager.reg.num_steps == 14
    assert captured.reg.summary().layers == eager.reg.summary().layers
