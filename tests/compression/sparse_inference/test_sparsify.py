"""Sparse inference: the same outputs, and CSR only where a measurement says so. No test here depends on real times."""

from __future__ import annotations

import copy
import io
import math
import pickle
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import strongreg
from strongreg import (
    ExportError,
    ShrinkError,
    SparsifyReport,
    SparsifyRow,
    export_onnx,
    load_packed,
    save_packed,
    shrink,
    sparsify,
    sparsify_and_report,
)
from strongreg.compression import SparseConv1x1, SparseLinear
from strongreg.compression.sparse_inference import layers, trial
from strongreg.experiments.models import build_model

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def make_sparse(model: nn.Module, sparsity: float = 0.9) -> nn.Module:
    """The model, with a share of each weight set to 0."""
    with torch.no_grad():
        for param in model.parameters():
            if param.dim() >= 2:
                size = param.numel()
                param.view(-1)[torch.randperm(size)[: math.ceil(sparsity * size)]] = 0.0
    return model


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, relative to the largest number."""
    assert one.shape == other.shape
    assert one.dtype == other.dtype
    one, other = one.detach(), other.detach()
    return float((one - other).abs().max() / other.abs().max()) if one.numel() else 0.0


@pytest.fixture
def measured(monkeypatch):
    """CSR is twice as fast as dense, or as ``measured.ratio`` says; ``measured.calls`` are the shapes measured."""

    class Measured:
        ratio, calls = 2.0, 0

    def medians(functions, *, seconds):
        assert seconds > 0
        Measured.calls += 1
        dense, sparse = (function() for function in functions)
        assert dense.shape == sparse.shape
        return [Measured.ratio * 1e-3, 1e-3]

    monkeypatch.setattr(trial, "interleaved_medians", medians)
    return Measured


def mlp(**kwargs) -> nn.Module:
    """12-10-8-4, 90 % zeros."""
    return make_sparse(nn.Sequential(nn.Linear(12, 10, **kwargs), nn.ReLU(), nn.Linear(10, 8), nn.Linear(8, 4)))


# ---------------------------------------------------------------------- the layers compute the same


@pytest.mark.parametrize("has_mkl", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2,), (3,), (4,), (65,), (1, 1), (2, 3), (2, 0), (2, 3, 4)])
def test_a_sparse_linear_layer_is_the_dense_one(monkeypatch, shape, bias, dtype, has_mkl):
    monkeypatch.setattr(layers, "_HAS_MKL", has_mkl and layers._HAS_MKL)
    dense = make_sparse(nn.Linear(30, 20, bias=bias, dtype=dtype))
    sparse = SparseLinear(dense.weight, dense.bias)
    x = torch.randn(*shape, 30, dtype=dtype)
    y = sparse(x)
    assert difference(y, dense(x)) <= TOLERANCE[dtype]
    assert y.is_contiguous()
    assert torch.equal(sparse.weight, dense.weight)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(0, 3, 2), (1, 1, 1), (2, 1, 1), (1, 3, 2), (5, 3, 2), (5, 1, 4)])
def test_a_sparse_convolution_is_the_dense_one_in_memory_too(shape, memory_format, bias, dtype):
    dense = make_sparse(nn.Conv2d(30, 20, 1, bias=bias, dtype=dtype))
    sparse = SparseConv1x1(dense.weight, dense.bias)
    num, *size = shape
    x = torch.randn(num, 30, *size, dtype=dtype).contiguous(memory_format=memory_format)
    y, expected = sparse(x), dense(x)
    assert difference(y, expected) <= TOLERANCE[dtype]
    for kind in (torch.contiguous_format, torch.channels_last):
        assert y.is_contiguous(memory_format=kind) == expected.is_contiguous(memory_format=kind)
    assert torch.equal(sparse.weight, dense.weight)
    if num:
        assert difference(sparse(x[0]), dense(x[0])) <= TOLERANCE[dtype]


@pytest.mark.parametrize("num", [1, 2, 7])
def test_inputs_need_not_be_contiguous(num):
    dense, conv = make_sparse(nn.Linear(6, 5)), make_sparse(nn.Conv2d(6, 5, 1))
    sparse, sparse_conv = SparseLinear(dense.weight, dense.bias), SparseConv1x1(conv.weight, conv.bias)
    for x in (torch.randn(6, num).t(), torch.randn(2 * num, 12)[::2, ::2], torch.ones(1).expand(num, 6)):
        assert difference(sparse(x), dense(x)) <= 1e-5
    for x in (torch.randn(6, num, 3, 4).transpose(0, 1), torch.randn(num, 12, 6, 8)[:, ::2, ::2, ::2]):
        assert difference(sparse_conv(x), conv(x)) <= 1e-5


def test_a_weight_may_be_all_zeros_or_hold_what_is_no_number():
    zero = SparseLinear(torch.zeros(4, 3), torch.arange(4.0))
    for num in (1, 2, 9):
        assert torch.equal(zero(torch.randn(num, 3)), torch.arange(4.0).expand(num, 4))
    assert SparseLinear(torch.tensor([[float("nan"), 0.0]]), None)(torch.ones(5, 2)).isnan().all()


def test_zeros_do_not_meet_infinities():
    assert SparseLinear(torch.tensor([[0.0, 1.0]]), None)(torch.tensor([[float("inf"), 2.0]])).item() == 2.0


@pytest.mark.parametrize(
    "layer", [SparseLinear(torch.eye(3), None), SparseConv1x1(torch.eye(3)[:, :, None, None], None)]
)
def test_inputs_that_do_not_fit_are_named(layer):
    name = type(layer).__name__
    for shape in ((), (4,), (2, 3, 4), (2, 4, 3, 4)):
        with pytest.raises(ValueError, match=rf"{name}: input of shape .* must be \(.*3"):
            layer(torch.ones(shape))
    with pytest.raises(TypeError, match=rf"{name}: input is torch.float64, the weight torch.float32: .*x.to"):
        layer(torch.ones(3, 3, 3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradients_reach_the_inputs(dtype):
    dense, conv = make_sparse(nn.Linear(6, 5, dtype=dtype)), make_sparse(nn.Conv2d(6, 5, 1, dtype=dtype))
    pairs = [
        (SparseLinear(dense.weight, dense.bias), dense, torch.randn(7, 6, dtype=dtype)),
        (SparseConv1x1(conv.weight, conv.bias), conv, torch.randn(2, 6, 3, 3, dtype=dtype)),
    ]
    for sparse, other, x in pairs:
        x.requires_grad_()
        (grad,) = torch.autograd.grad(sparse(x).square().sum(), x, create_graph=True)
        (expected,) = torch.autograd.grad(other(x).square().sum(), x)
        assert difference(grad, expected) <= TOLERANCE[dtype]
        grad.sum().backward()
        assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("used", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("built", [nullcontext, torch.no_grad, torch.inference_mode])
def test_layers_work_whether_gradients_are_recorded_or_not(built, used):
    weight = torch.randn(5, 6) * (torch.rand(5, 6) < 0.3)
    with built():
        sparse = SparseLinear(weight, None).double()
        sparse(torch.randn(2, 6).double())
    for num in (1, 2, 7):
        x = torch.randn(num, 6).double()
        with used():
            assert difference(sparse(x), x @ weight.double().t()) <= 1e-12
        x.requires_grad_()
        sparse(x).sum().backward()
        assert torch.allclose(x.grad, weight.double().sum(0).expand(num, 6))


def test_under_autocast_the_output_is_in_its_dtype():
    dense = make_sparse(nn.Linear(30, 20))
    sparse, double = SparseLinear(dense.weight, dense.bias), SparseLinear(dense.weight.double(), None)
    x = torch.randn(7, 30)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = sparse(x), dense(x)
        again = sparse(x.bfloat16())
        assert double(x.double()).dtype == torch.float64
        with pytest.raises(TypeError, match="convert one"):
            sparse(x.double())
    assert y.dtype == again.dtype == expected.dtype == torch.bfloat16
    assert difference(y.float(), dense(x)) <= 2**-8
    assert difference(y.float(), expected.float()) <= 2**-6
    assert sparse(x).dtype == torch.float32


# ---------------------------------------------------------------------- the layers move, copy and are saved


def _layer() -> tuple[SparseLinear, torch.Tensor, torch.Tensor]:
    layer = SparseLinear(torch.randn(5, 6) * (torch.rand(5, 6) < 0.5), torch.randn(5))
    x = torch.randn(4, 6)
    return layer, x, layer(x)


def test_layers_are_copied_and_pickled():
    layer, x, y = _layer()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (
        copy.deepcopy(layer),
        copy.copy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ):
        assert torch.equal(other(x), y)


def test_a_state_dict_is_loaded_in_place_and_by_assignment():
    layer, x, y = _layer()
    for assign in (False, True):
        other = SparseLinear(2 * layer.weight, None if layer.bias is None else 2 * layer.bias)
        assert torch.equal(other(x), 2 * y)
        other.load_state_dict(copy.deepcopy(layer.state_dict()), assign=assign)
        assert torch.equal(other(x), y)


def test_indices_that_were_damaged_are_an_error_and_no_crash():
    layer, x, _ = _layer()
    state = copy.deepcopy(layer.state_dict())
    state["col_indices"] += 1000
    layer.load_state_dict(state)
    with pytest.raises(RuntimeError, match="col_indices"):
        layer(x)


def test_layers_change_their_dtype_and_say_so():
    layer, x, y = _layer()
    assert difference(layer.double()(x.double()), y.double()) <= 1e-6
    assert layer.float().values.dtype == torch.float32
    assert torch.equal(layer(x), y)
    assert layer.crow_indices.dtype == layer.col_indices.dtype == torch.int32
    assert list(layer.parameters()) == []
    assert repr(layer) == f"SparseLinear(6, 5, bias=True, nonzeros={len(layer.values)} of 30)"


@pytest.mark.usefixtures("measured")
def test_packed_files_hold_a_sparse_network(tmp_path):
    fast = sparsify(mlp())
    save_packed(fast, tmp_path / "model.packed")
    other = copy.deepcopy(fast)
    with torch.no_grad():
        for module in other.modules():
            if isinstance(module, SparseLinear):
                module.values.zero_()
    load_packed(tmp_path / "model.packed", other)
    x = torch.randn(3, 12)
    assert torch.equal(other(x), fast(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("measured")
def test_a_sparse_network_may_be_compiled():
    fast = sparsify(mlp())
    compiled = torch.compile(fast, backend="eager")
    for num in (1, 2, 7):
        x = torch.randn(num, 12)
        assert difference(compiled(x), fast(x)) <= 1e-6


# ---------------------------------------------------------------------- what is converted


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num", [1, 64])
@pytest.mark.parametrize("name", ["lenet300", "wide"])
@pytest.mark.usefixtures("measured")
def test_whole_networks_compute_the_same(name, num, dtype):
    wide = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    model = make_sparse(build_model(name, (1, 28, 28), 10) if name == "lenet300" else wide, 0.95).to(dtype)
    x = torch.randn(num, 1, 28, 28, dtype=dtype)
    fast = sparsify(model, x)
    assert sum(isinstance(module, SparseLinear) for module in fast.modules()) == 3
    assert difference(fast(x), model(x)) <= TOLERANCE[dtype]


def test_real_times_decide_without_a_stand_in():
    model = make_sparse(nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 8)), 0.98)
    fast, report = sparsify_and_report(model, batch_size=16)
    x = torch.randn(16, 512)
    assert difference(fast(x), model(x)) <= 1e-5
    for row, module in zip(report.layers, fast, strict=True):
        assert row.dense_seconds > 0
        assert row.sparse_seconds > 0
        assert row.converted == isinstance(module, SparseLinear) == (row.speedup >= 1.05)


@pytest.mark.parametrize(
    ("ratio", "asked", "converted"), [(1.04, 1.05, 0), (1.06, 1.05, 3), (2.0, 2.5, 0), (0.5, 0.4, 3)]
)
def test_layers_that_are_not_faster_stay(measured, ratio, asked, converted):
    measured.ratio = ratio
    model = mlp()
    fast, report = sparsify_and_report(model, min_speedup=asked)
    assert len(report.converted) == converted
    assert sum(isinstance(module, SparseLinear) for module in fast) == converted
    assert all(row.speedup == pytest.approx(ratio) for row in report.layers)
    assert {row.reason for row in report.left} <= {f"not {asked:g} times faster in CSR"}


def test_each_layer_is_decided_by_itself(monkeypatch):
    times = iter([[2e-3, 1e-3], [1e-3, 2e-3], [3e-3, 1e-3]])
    monkeypatch.setattr(trial, "interleaved_medians", lambda functions, seconds: next(times))
    fast, report = sparsify_and_report(mlp())
    assert [type(module) for module in fast] == [SparseLinear, nn.ReLU, nn.Linear, SparseLinear]
    assert [row.name for row in report.converted] == ["0", "3"]
    assert report.speedup == pytest.approx(6 / 3)


def test_below_half_of_zeros_nothing_is_measured(measured):
    model = nn.Linear(10, 10)
    with torch.no_grad():
        model.weight.view(-1)[:49] = 0.0
    _, report = sparsify_and_report(model)
    assert (measured.calls, report.layers[0].reason) == (0, "fewer than 50% zeros")
    with torch.no_grad():
        model.weight.view(-1)[:50] = 0.0
    assert isinstance(sparsify(model), SparseLinear)
    assert measured.calls == 1


@pytest.mark.usefixtures("measured")
def test_the_model_given_is_left_untouched():
    model = mlp().train()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    fast = sparsify(model, torch.randn(2, 12))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear, nn.Linear]
    assert all(module.training for module in model.modules())
    assert [param.requires_grad for param in model.parameters()] == [False, True, True, True, True, True]
    assert not any(module._forward_pre_hooks for module in [*model.modules(), *fast.modules()])
    with torch.no_grad():
        model[0].bias.add_(1.0)
        assert not torch.equal(fast(torch.ones(1, 12)), model(torch.ones(1, 12)))


def test_the_result_is_for_inference(measured):
    measured.ratio = 0.5
    dense = sparsify(mlp().train())
    assert not any(module.training for module in dense.modules())
    assert not any(param.requires_grad for param in dense.parameters())
    measured.ratio = 2.0
    assert not any(module.training for module in sparsify(mlp().train()).modules())


@pytest.mark.usefixtures("measured")
def test_a_model_may_be_one_layer():
    model = make_sparse(nn.Linear(12, 10))
    fast, report = sparsify_and_report(model, batch_size=3)
    assert isinstance(fast, SparseLinear)
    assert report.layers[0].inputs == ((3, 12),)
    assert "(the model)" in str(report)
    x = torch.randn(3, 12)
    assert difference(fast(x), model(x)) <= 1e-5


@pytest.mark.usefixtures("measured")
def test_a_model_without_anything_to_convert_is_copied():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4))
    fast, report = sparsify_and_report(model, torch.randn(2, 4))
    assert fast is not model
    assert report.layers == ()
    assert report.speedup is None
    assert str(report) == "nothing to convert: the model has no linear layer and no convolution"


def test_tied_weights_and_layers_used_twice(measured):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 6)
            self.body = nn.Linear(6, 6)
            self.again = nn.Sequential(self.body, nn.ReLU())
            self.head = nn.Linear(6, 10, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.again(self.body(self.embedding(x))))

    model = make_sparse(Tied(), 0.7)
    x = torch.randint(10, (2, 5))
    fast, report = sparsify_and_report(model, x)
    assert [row.name for row in report.converted] == ["body", "head"]
    assert isinstance(fast.body, SparseLinear)
    assert fast.again[0] is fast.body
    assert torch.equal(fast.embedding.weight, fast.head.weight)
    assert difference(fast(x), model(x)) <= 1e-5
    (body, _) = report.layers
    assert body.inputs == ((2, 5, 6),)
    assert (body.dense_seconds, body.sparse_seconds) == pytest.approx((4e-3, 2e-3))  # called twice, measured once
    assert measured.calls == 2


@pytest.mark.usefixtures("measured")
def test_linear_layers_of_a_sequential_pass_columns_on():
    layers = [nn.Linear(12, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 8), nn.Flatten(), nn.Linear(8, 6), nn.GELU()]
    model = make_sparse(nn.Sequential(*layers, nn.Linear(6, 4)))
    fast = sparsify(model)
    assert [m.contiguous for m in fast if isinstance(m, SparseLinear)] == [False, True, False, True]
    for shape in ((5,), (1,), (2,), (0,), (), (5, 3)):
        x = torch.randn(*shape, 12)
        steps = nn.Sequential(*(m for m in (model if len(shape) == 1 else model[:4])))
        y = (fast if len(shape) == 1 else fast[:4])(x)
        assert difference(y, steps.eval()(x)) <= 1e-5
        assert y.is_contiguous()


@pytest.mark.usefixtures("measured")
def test_columns_are_passed_on_only_where_nothing_else_sees_them():
    class Own(nn.Sequential):
        pass

    shared = nn.Linear(6, 6)
    for model in (
        nn.Sequential(nn.Linear(6, 6), nn.Softmax(1), nn.Linear(6, 6)),
        nn.Sequential(nn.Linear(6, 6), nn.ReLU()),
        nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)]),
        Own(nn.Linear(6, 6), nn.Linear(6, 6)),
        nn.Sequential(nn.Sequential(shared, nn.Linear(6, 6)), shared),
    ):
        fast = sparsify(make_sparse(model))
        assert all(m.contiguous for m in fast.modules() if isinstance(m, SparseLinear))
    assert not sparsify(make_sparse(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))))[0].contiguous


@pytest.mark.usefixtures("measured")
def test_hooks_go_along():
    model = mlp()
    seen = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(type(module)) or 2 * output)
    model[2].register_forward_pre_hook(lambda module, args, kwargs: ((args[0] + 1,), kwargs), with_kwargs=True)
    fast = sparsify(model)
    x = torch.randn(2, 12)
    assert difference(fast(x), model(x)) <= 1e-5
    assert seen == [SparseLinear, nn.Linear]


@pytest.mark.usefixtures("measured")
def test_the_weight_may_be_read():
    """As networks do that ask a layer's weight for its dtype or device, or multiply by it themselves."""
    model = mlp()
    fast = sparsify(model)
    for dense, sparse in zip(model, fast, strict=True):
        if isinstance(dense, nn.Linear):
            assert torch.equal(sparse.weight, dense.weight)
            assert torch.equal(sparse.bias, dense.bias)
            assert (sparse.in_features, sparse.out_features) == (dense.in_features, dense.out_features)


# ---------------------------------------------------------------------- what is left, and why


class _Own(nn.Linear):
    pass


def _with_own_forward() -> nn.Module:
    layer = nn.Linear(6, 6)
    layer.forward = lambda x: x
    return layer


LEFT = {
    "of class _Own": lambda: _Own(6, 6),
    "of class NonDynamicallyQuantizableLinear": lambda: nn.MultiheadAttention(6, 1).out_proj,
    "parametrized (torch.nn.utils.parametrize.remove_parametrizations first)": lambda: parametrizations.weight_norm(
        nn.Linear(6, 6)
    ),
    "its forward replaced": _with_own_forward,
    "in torch.float16 (CSR computes in float32 and float64 only)": lambda: nn.Linear(6, 6).half(),
    "in torch.bfloat16 (CSR computes in float32 and float64 only)": lambda: nn.Linear(6, 6).bfloat16(),
    "its weight a Parameter of layout torch.strided on meta": lambda: nn.Linear(6, 6, device="meta"),
}
NOT_POINTWISE = [
    nn.Conv2d(6, 6, 3),
    nn.Conv2d(6, 6, 1, stride=2),
    nn.Conv2d(6, 6, 1, padding=1),
    nn.Conv2d(6, 6, 1, groups=2),
]


@pytest.mark.parametrize("reason", LEFT)
@pytest.mark.usefixtures("measured")
def test_layers_of_other_kinds_are_left_with_the_reason(reason):
    layer = LEFT[reason]()
    with torch.no_grad():
        for param in layer.parameters():
            param.zero_()
    model = nn.Sequential(layer)
    fast, report = sparsify_and_report(model)
    assert [row.reason for row in report.layers] == [reason]
    assert type(fast[0]) is type(layer) or parametrize.is_parametrized(fast[0])
    assert f"dense, {reason}: 0" in str(report)


@pytest.mark.parametrize("layer", NOT_POINTWISE, ids=str)
@pytest.mark.usefixtures("measured")
def test_other_convolutions_are_left(layer):
    _, report = sparsify_and_report(make_sparse(layer), torch.randn(1, 6, 4, 4))
    assert report.left[0].reason == "not a 1x1 convolution with stride 1, no padding and one group"
    assert report.left[0].sparsity >= 0.9


@pytest.mark.usefixtures("measured")
def test_1x1_convolutions_are_measured_with_images():
    model = make_sparse(nn.Sequential(nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1, padding="same", bias=False)))
    x = torch.randn(3, 6, 4, 5)
    fast, report = sparsify_and_report(model, x)
    assert [row.inputs for row in report.layers] == [((3, 6, 4, 5),), ((3, 8, 4, 5),)]
    assert [type(module) for module in fast] == [SparseConv1x1, nn.ReLU, SparseConv1x1]
    assert difference(fast(x), model(x)) <= 1e-5
    _, report = sparsify_and_report(model)
    assert {row.reason for row in report.layers} == {"a convolution, measured only with example_inputs"}


@pytest.mark.usefixtures("measured")
def test_a_pruned_layer_says_what_to_do_and_is_converted_after_that():
    model = mlp()
    prune.l1_unstructured(model[0], "weight", 0.8)
    with pytest.raises(ValueError, match=r"model cannot be copied.*prune.remove\(module, 'weight'\)"):
        sparsify(model)
    with torch.no_grad():
        model(torch.ones(1, 12))  # computes the weight again, without a gradient: now it can be copied
    _, report = sparsify_and_report(model)
    assert report.layers[0].reason.startswith("its weight or bias computed by a hook")
    prune.remove(model[0], "weight")
    assert isinstance(sparsify(model)[0], SparseLinear)


@pytest.mark.usefixtures("measured")
def test_parametrizations_that_were_removed_are_no_hindrance():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(12, 10)))
    parametrize.remove_parametrizations(model[0], "weight")
    assert isinstance(sparsify(make_sparse(model))[0], SparseLinear)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.usefixtures("measured")
def test_transformers_whose_fast_path_reads_the_weights_are_left():
    model = make_sparse(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    x = torch.randn(2, 3, 8)
    for example in (None, x):
        fast, report = sparsify_and_report(model, example)
        reasons = {row.name: row.reason for row in report.layers}
        assert reasons["linear1"] == reasons["linear2"] == "read, not called, by nn.TransformerEncoderLayer"
        with torch.no_grad():
            assert difference(fast(x), model.eval()(x)) <= 1e-5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("measured")
def test_what_is_compiled_already_is_left():
    compiled = torch.compile(make_sparse(nn.Linear(12, 10)), backend="eager")
    _, report = sparsify_and_report(nn.Sequential(compiled))
    assert [row.reason for row in report.layers] == ["compiled (sparsify before torch.compile)"]


@pytest.mark.usefixtures("measured")
def test_a_layer_that_the_examples_do_not_reach_is_left():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.used(input=x)

    fast, report = sparsify_and_report(make_sparse(Partly()), torch.randn(2, 6))
    assert isinstance(fast.used, SparseLinear)
    assert [row.reason for row in report.left] == ["not called with these example_inputs"]


def test_where_torch_has_no_kernel_layers_are_left(measured, monkeypatch):
    def missing(*_, **__):
        raise NotImplementedError("Calling addmm on a sparse CPU tensor requires MKL\nsecond line")

    monkeypatch.setattr(layers, "_rows_times", missing)
    for example in (None, torch.randn(1, 12)):
        fast, report = sparsify_and_report(mlp(), example)
        assert {row.reason for row in report.layers} == {
            "CSR fails here (Calling addmm on a sparse CPU tensor requires MKL)"
        }
        assert measured.calls == 0
        assert fast(torch.ones(2, 12)).shape == (2, 4)


# ---------------------------------------------------------------------- example inputs


@pytest.mark.usefixtures("measured")
def test_examples_are_a_tensor_a_tuple_or_a_mapping():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x, scale):
            return self.layer(x.flatten(1)) * scale

    model = make_sparse(Two())
    x = torch.randn(4, 2, 3)
    for example in ((x, 2.0), {"x": x, "scale": 2.0}):
        _, report = sparsify_and_report(model, example)
        assert report.layers[0].inputs == ((4, 6),)
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'scale'"):
        sparsify(model, x)


def test_inputs_of_many_shapes_are_weighed_by_how_often_they_come(monkeypatch):
    times = {1: [1e-3, 5e-3], 2: [9e-3, 1e-3], 3: [1e-3, 1e-3], 4: [1e-3, 1e-3]}
    seen = []

    def medians(functions, **_):
        seen.append(len(functions[0]()))
        return times[seen[-1]]

    monkeypatch.setattr(trial, "interleaved_medians", medians)

    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return sum(self.layer(x[:num]).sum() for num in (1, 1, 2, 3, 4, 5, 6, 1))

    _, report = sparsify_and_report(make_sparse(Unrolled()), torch.randn(6, 6))
    assert seen == [1, 2, 3, 4]
    (row,) = report.layers
    assert (row.dense_seconds, row.sparse_seconds) == pytest.approx((14e-3, 18e-3))
    assert not row.converted


@pytest.mark.usefixtures("measured")
def test_what_a_network_remembers_is_not_that_of_the_example():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.layer(x)

    assert sparsify(make_sparse(Counts()), torch.randn(2, 6)).calls == 0


@pytest.mark.usefixtures("measured")
def test_measuring_draws_no_random_numbers():
    model = mlp()
    state = torch.get_rng_state()
    sparsify(model)
    sparsify(model, torch.ones(2, 12))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"model": {"w": torch.ones(1)}}, TypeError, "model must be a torch.nn.Module, got dict"),
        ({"example_inputs": [torch.ones(1, 12)]}, TypeError, "example_inputs must be a tensor, a tuple .* got list"),
        ({"batch_size": 0}, ValueError, "batch_size=0 must be >= 1"),
        ({"batch_size": 1.5}, TypeError, "batch_size=1.5 must be an int: rows per call"),
        ({"batch_size": True}, TypeError, "batch_size=True must be an int"),
        ({"batch_size": 2, "example_inputs": torch.ones(1, 12)}, ValueError, "batch_size=2 is that of example_inputs"),
        ({"min_speedup": 0}, ValueError, "min_speedup=0 must be finite and > 0"),
        ({"min_speedup": math.nan}, ValueError, "min_speedup=nan must be finite"),
        ({"min_speedup": "2"}, TypeError, "min_speedup='2' must be a number"),
    ],
)
def test_mistakes_are_named(arguments, kind, message):
    model = arguments.pop("model", None) or mlp()
    for function in (sparsify, sparsify_and_report):
        with pytest.raises(kind, match=message):
            function(model, **arguments)


# ---------------------------------------------------------------------- the report


def test_the_report_says_everything():
    report = SparsifyReport(
        (
            SparsifyRow("body", (1024, 784), 762_675, 802_816, ((64, 784),), 1.2e-3, 2e-4),
            SparsifyRow("head", (10, 1024), 9_728, 10_240, ((64, 1024),), 1e-5, 2e-5, "not 1.05 times faster in CSR"),
            SparsifyRow("stem", (8, 1, 3, 3), 0, 72, reason="fewer than 50% zeros"),
        ),
        num_threads=1,
    )
    assert [row.converted for row in report.layers] == [True, False, False]
    assert report.layers[0].speedup == pytest.approx(6.0)
    assert report.layers[2].speedup is None
    assert report.speedup == pytest.approx(1210 / 210)
    assert str(report).splitlines() == [
        "layer  weight    kept as  input    zeros  dense, us  CSR, us  times faster",
        "--------------------------------------------------------------------------",
        "body   1024x784  CSR      64x784   95.0%    1,200.0    200.0          6.00",
        "head   10x1024   dense    64x1024  95.0%       10.0     20.0          0.50",
        "stem   8x1x3x3   dense    -         0.0%          -        -             -",
        "--------------------------------------------------------------------------",
        "total                              95.0%    1,210.0    210.0          5.76",
        "1 of 3 in CSR, measured with 1 thread; total: as kept",
        "dense, not 1.05 times faster in CSR: head",
        "dense, fewer than 50% zeros: stem",
    ]


_QUIET = """
import torch, strongreg
model = torch.nn.Linear(64, 64)
with torch.no_grad():
    model.weight *= torch.rand(64, 64) < 0.02
fast = strongreg.sparsify(model, min_speedup=1e-6)
assert type(fast).__name__ == "SparseLinear"
for num in (1, 2, 9):
    fast(torch.ones(num, 64))
fast.double()(torch.ones(1, 64).double())
fast.weight
"""


def test_nothing_warns_of_sparse_tensors_being_in_beta():
    done = subprocess.run([sys.executable, "-W", "error", "-c", _QUIET], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_layers_are_public_where_they_are_documented():
    assert {"sparsify", "sparsify_and_report", "SparsifyReport", "SparsifyRow"} <= set(strongreg.__all__)


def test_a_sparsified_network_is_neither_shrunk_nor_exported(tmp_path):
    model = nn.Sequential(SparseLinear(torch.eye(4), None))
    with pytest.raises(ShrinkError, match=r"0 is a SparseLinear: shrink the network before it is sparsified"):
        shrink(model, torch.zeros(2, 4))
    with pytest.raises(ExportError, match=r"0 is a SparseLinear: export the network before it is sparsified"):
        export_onnx(model, torch.zeros(2, 4), tmp_path / "model.onnx")
