"""Hazardous parameters: dtypes, memory layouts, empty, 0-d, tied."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from torch import nn

from strongreg import (
    L1,
    L2,
    MCP,
    AlwaysOpen,
    CoherenceGate,
    Constant,
    Delay,
    ElasticNet,
    GroupL2,
    Refit,
    Regularizer,
    SparseGroup,
)

_PENALTIES = [L1(0.3), L2(0.3), ElasticNet(0.3), GroupL2(0.3), SparseGroup(0.3), MCP(0.3)]
_every_penalty = pytest.mark.parametrize("penalty", _PENALTIES, ids=repr)


def _train(params, penalty, steps=5, **options):
    model = nn.ParameterDict({f"p{i}": p for i, p in enumerate(params)})
    optimizer = torch.optim.SGD(list(params), lr=0.1, momentum=0.5)
    options = {"gate": AlwaysOpen(), "schedule": Refit(3), **options}
    reg = Regularizer(model, {"*": penalty}, **options).attach(optimizer)
    for _ in range(steps):
        for p in params:
            p.grad = 0.1 * p.detach().clone()
        optimizer.step()
    return reg


@_every_penalty
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["proximal", "gradient"])
def test_dtypes_follow_float32(penalty, dtype, mode):
    start = torch.randn(6, 5)
    reference = nn.Parameter(start.clone())
    weight = nn.Parameter(start.to(dtype))
    _train([reference], penalty, mode=mode)
    reg = _train([weight], penalty, mode=mode)
    assert weight.dtype == dtype
    tolerance = {torch.float64: 1e-6, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    assert torch.allclose(weight.detach().float(), reference.detach(), atol=tolerance)
    assert torch.isfinite(torch.tensor(reg.history["coherence"])).all()


@_every_penalty
def test_memory_layout_does_not_matter(penalty):
    start = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    plain = nn.Parameter(start.clone())
    channels_last = nn.Parameter(start.clone(memory_format=torch.channels_last))
    strided = nn.Parameter(torch.zeros(8, 3, 2, 2, dtype=torch.float64)[::2].copy_(start))
    transposed = nn.Parameter(start.transpose(0, 3).contiguous().transpose(0, 3))
    for p in (channels_last, strided, transposed):
        assert not p.is_contiguous()
    regs = [_train([p], penalty) for p in (plain, channels_last, strided, transposed)]
    for p, reg in zip((channels_last, strided, transposed), regs[1:], strict=True):
        assert torch.allclose(p.detach(), plain.detach(), atol=1e-14)
        assert reg.history["coherence"] == pytest.approx(regs[0].history["coherence"], abs=1e-6)


def test_gradient_and_weight_of_different_layouts_are_paired_element_by_element():
    weight = nn.Parameter(torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    reg = Regularizer(nn.ParameterDict({"w": weight}), L2(1.0), gate=AlwaysOpen()).attach(optimizer)
    with torch.no_grad():
        weight.grad = -weight.detach().contiguous()
    weight.grad[0] = 0.0
    expected = (weight.grad.contiguous() * (weight.grad + weight.detach())).sum()
    expected = expected / weight.grad.norm() / (weight.grad + weight.detach()).norm()
    optimizer.step()
    assert reg.history["coherence"][0] == pytest.approx(expected.item(), abs=1e-6)


@_every_penalty
def test_empty_and_zero_dimensional_parameters(penalty):
    empty, scalar, matrix = (
        nn.Parameter(torch.empty(0, 3)),
        nn.Parameter(torch.tensor(0.05)),
        nn.Parameter(torch.randn(2, 2)),
    )
    reg = _train([empty, scalar, matrix], penalty)
    assert reg.summary().total.num_weights == 5
    assert reg.summary().layers[0].compression == 1.0
    assert "-" in str(reg.summary())
    if penalty.has_exact_zeros:
        assert scalar.item() == 0.0


@_every_penalty
def test_only_empty_parameters(penalty):
    reg = _train([nn.Parameter(torch.empty(0, 3))], penalty, gate=CoherenceGate(0.7))
    assert reg.summary().total.num_weights == 0
    assert reg.history["coherence"].tolist() == [1.0] * 5


def test_tied_parameters_are_shrunk_and_counted_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).double()
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    reg = Regularizer(model, L1(0.01), gate=AlwaysOpen()).attach(optimizer)
    before = model[0].weight.detach().clone()
    model[0].weight.grad = torch.zeros(3, 3, dtype=torch.float64)
    optimizer.step()
    assert torch.allclose(model[1].weight.detach(), L1(0.01).prox(before, 0.5), atol=1e-15)
    assert reg.summary().total.num_weights == 9


def test_sparse_gradients_are_refused_by_name():
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    Regularizer(embedding, {"weight": L1(0.1)}).attach(optimizer)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TypeError, match=r"'weight' has a gradient of layout torch.sparse_coo"):
        optimizer.step()


def test_a_step_that_failed_leaves_the_next_one_whole():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    reg = Regularizer(nn.ParameterDict({"w": weight}), L1(0.1), gate=AlwaysOpen()).attach(optimizer)

    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(broken)
    weight.grad = torch.zeros(2, 2)
    optimizer.step()
    assert reg.num_steps == 1
    assert weight.detach().flatten().tolist() == pytest.approx([0.99] * 4)


def test_steps_without_any_gradient_count_and_change_nothing():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    reg = Regularizer(nn.ParameterDict({"w": weight}), L1(0.1), gate=AlwaysOpen()).attach(optimizer)
    optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))
    assert reg.summary().total.open_fraction == 0.0


@pytest.mark.parametrize("gate", [AlwaysOpen(), Delay(0), CoherenceGate(-1.0), CoherenceGate(-1.0, scope="layer")])
def test_no_gate_opens_on_weights_that_are_not_finite(gate):
    """The loss gradient may be finite all the same, as where a mask multiplies the weight."""
    weight = nn.Parameter(torch.tensor([[float("nan"), 1.0]]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    reg = Regularizer(nn.ParameterDict({"w": weight}), L1(0.1), gate=gate).attach(optimizer)
    weight.grad = torch.zeros(1, 2)
    optimizer.step()
    assert reg.history["open"].tolist() == [0.0]
    assert weight[0, 1] == 1.0


@pytest.mark.parametrize("gate", [AlwaysOpen(), CoherenceGate(-1.0)], ids=repr)
@pytest.mark.parametrize("mode", ["proximal", "gradient"])
@_every_penalty
def test_strength_0_does_not_count_as_acting_and_keeps_the_sign_of_a_zero(penalty, gate, mode):
    weight = nn.Parameter(torch.tensor([[-0.0, 1.0], [-1.0, 0.0]]))
    before = weight.detach().clone()
    reg = _train([weight], dataclasses.replace(penalty, strength=0.0), gate=gate, mode=mode, schedule=Constant())
    bare = nn.Parameter(before)
    optimizer = torch.optim.SGD([bare], lr=0.1, momentum=0.5)
    for _ in range(5):
        bare.grad = 0.1 * bare.detach().clone()
        optimizer.step()
    assert torch.equal(weight.detach().view(torch.int32), bare.detach().view(torch.int32))
    assert reg.summary().total.open_fraction == 0.0
    assert reg.summary().advice == ""


@pytest.mark.parametrize("gate", [AlwaysOpen(), CoherenceGate(-1.0)], ids=repr)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_of_a_parameter_that_is_not_penalized_closes_the_gate_too(gate, bad):
    model = nn.Sequential(nn.Linear(3, 2), nn.Embedding(4, 2, sparse=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reg = Regularizer(model, {"0.weight": L1(0.1)}, gate=gate).attach(optimizer)
    good = model[0].weight.detach().clone()
    model[0].weight.grad = torch.zeros(2, 3)
    model[0].bias.grad = torch.tensor([0.0, bad])
    with pytest.warns(RuntimeWarning, match="NaN or infinity"):
        optimizer.step()
    assert (reg.num_nonfinite, reg.history["open"].tolist()) == (1, [0.0])
    assert torch.equal(model[0].weight, good)
    model[0].bias.grad = torch.zeros(2)
    model[1].weight.grad = torch.sparse_coo_tensor(
        [[1, 1]], torch.tensor([[bad, 0.0], [0.0, 0.0]]), (4, 2), check_invariants=True
    )
    optimizer.step()
    assert reg.num_nonfinite == 2


def test_large_but_finite_gradients_elsewhere_do_not_close_the_gate():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-30)
    reg = Regularizer(model, L1(0.1), gate=AlwaysOpen()).attach(optimizer)
    model.weight.grad = torch.ones(2, 3)
    model.bias.grad = torch.full((2,), 3e38)
    optimizer.step()
    assert (reg.num_nonfinite, reg.history["open"].tolist()) == (0, [1.0])


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_learning_rate_tensor_of_one_entry_may_have_any_shape(shape):
    weight = nn.Parameter(torch.tensor(1.0))
    reg = Regularizer(nn.ParameterDict({"w": weight}), {"w": L1(1.0)}, gate=AlwaysOpen())
    reg.attach(torch.optim.SGD([weight], lr=torch.full(shape, 0.25)))
    weight.grad = torch.tensor(1.0)
    reg._attachment.optimizer.step()
    assert weight.item() == 0.5


@pytest.mark.parametrize(
    ("dtype", "strength", "warns"),
    [
        (torch.bfloat16, 1e-3, True),
        (torch.bfloat16, 1.0, False),
        (torch.float16, 1e-4, True),
        (torch.float32, 1e-4, False),
        (torch.bfloat16, 0.0, False),
    ],
)
def test_weights_too_coarse_to_be_shrunk_are_told_once_at_attach(dtype, strength, warns):
    model = nn.Linear(64, 64).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Regularizer(model, L1(strength)).attach(optimizer)
    assert [("keep the weights in float32" in str(w.message)) for w in caught] == [True] * warns


@pytest.mark.parametrize("penalty", [L1(1.0), L2(1.0), ElasticNet(1.0), GroupL2(1.0), SparseGroup(1.0), MCP(1.0)])
def test_the_value_of_many_half_precision_weights_is_finite(penalty):
    model = nn.Linear(600, 600).half()
    nn.init.constant_(model.weight, 1.0)
    expected = penalty.value(torch.ones(600, 600))
    assert penalty.value(model.weight.detach()) == expected
    assert Regularizer(model, penalty).penalty_value() == expected


def test_parametrized_weights_follow_the_layer_they_serve():
    conv = nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(3, 4, 2))
    embedding = nn.utils.parametrizations.weight_norm(nn.Embedding(5, 4))
    model = nn.Sequential(conv, embedding)
    targets = Regularizer(model, GroupL2(0.1)).targets
    assert {t.name.split(".")[0] for t in targets} == {"0"}
    assert {t.penalty.dim for t in targets} == {1}
    assert len(Regularizer(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), L1(0.1)).targets) == 1


def test_tensors_for_the_device_do_not_pile_up_when_gradients_come_and_go():
    params = [nn.Parameter(torch.randn(2, 2)) for _ in range(8)]
    optimizer = torch.optim.SGD(params, lr=0.1)
    reg = Regularizer(nn.ParameterList(params), L1(0.1)).attach(optimizer)
    for step in range(256):
        for i, p in enumerate(params):
            p.grad = torch.randn(2, 2) if step >> i & 1 else None
        optimizer.step()
    assert len(reg._constant) <= 64


def test_an_empty_sparse_gradient_of_a_parameter_that_is_not_penalized_is_no_obstacle():
    """A batch that looks up nothing."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Embedding(4, 2, sparse=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reg = Regularizer(model, {"0.weight": L1(0.1)}, gate=AlwaysOpen()).attach(optimizer)
    (model[0](torch.ones(1, 3)).sum() + model[1](torch.empty(0, dtype=torch.int64)).sum()).backward()
    assert model[1].weight.grad.coalesce().values().numel() == 0
    optimizer.step()
    assert (reg.num_steps, reg.num_nonfinite) == (1, 0)


@pytest.mark.parametrize("mode", ["proximal", "gradient"])
def test_a_gradient_whose_entries_share_memory_is_like_any_other(mode):
    """What the backward of a sum leaves where nothing is done to it."""
    results = []
    for expanded in (False, True):
        weight = nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3))
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        reg = Regularizer(nn.ParameterDict({"w": weight}), L1(0.1), mode=mode).attach(optimizer)
        for _ in range(3):
            grad = torch.ones(1, 1).expand(2, 3)
            weight.grad = grad if expanded else grad.clone()
            optimizer.step()
            assert torch.equal(grad, torch.ones(2, 3))
        results.append((weight.detach(), reg.history["coherence"].tolist()))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="torch older than 2.9: both dtypes are the same")
@pytest.mark.parametrize("mode", ["proximal", "gradient"])
@pytest.mark.parametrize(
    ("dtype", "grad_dtype"), [(torch.float32, torch.bfloat16), (torch.float64, torch.float32)], ids=str
)
def test_a_gradient_may_have_another_dtype_than_the_weight(dtype, grad_dtype, mode):
    weight = nn.Parameter(torch.ones(2, 3, dtype=dtype))
    weight.grad_dtype = grad_dtype
    optimizer = torch.optim.SGD([weight], lr=0.5, foreach=False)
    reg = Regularizer(nn.ParameterDict({"w": weight}), L1(0.25), gate=AlwaysOpen(), mode=mode).attach(optimizer)
    weight.grad = torch.ones(2, 3, dtype=grad_dtype)
    optimizer.step()
    assert weight.detach().flatten().tolist() == pytest.approx([1 - 0.5 * 1.25] * 6)
    assert reg.history["coherence"].tolist() == [1.0]


def test_a_strength_that_half_precision_cannot_hold_still_shrinks_its_weights():
    weight = nn.Parameter(torch.full((2, 2), 4.0, dtype=torch.float16))
    optimizer = torch.optim.SGD([weight], lr=1e-5)
    reg = Regularizer(nn.ParameterDict({"w": weight}), L1(1e5), gate=AlwaysOpen()).attach(optimizer)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert weight.detach().flatten().tolist() == [3.0] * 4
    assert reg.history["open"].tolist() == [1.0]
