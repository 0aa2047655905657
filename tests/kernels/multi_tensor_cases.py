"""The loops on a GPU held to the reference, in Triton's interpreter: ``test_multi_tensor.py`` runs this file."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch import nn
from triton.runtime.interpreter import InterpretedFunction

import strongreg
from contract.devices import OPTIMIZERS, launches_of_a_step, take_the_cpu_for_an_accelerator
from contract.optimizers import batch, make_model, make_optimizer
from kernels.twins import (
    PENALTIES,
    check_nothing_changes,
    check_products,
    check_shrink,
    check_squares,
    every_dtype,
    every_penalty,
    shrunk,
    target,
)
from strongreg import L1, L2, MCP, GroupL2, Regularizer, SparseGroup
from strongreg.kernels import multi_tensor, passes
from strongreg.kernels.multi_tensor import MultiTensorPasses
from strongreg.kernels.reference import ReferencePasses

_SHAPES = [(5, 7), (2, 3, 3, 3), (3, 300), (0, 4), (1, 1)]


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """As on a GPU: numbers leave their range without a word, and the reference sums as it does there."""
    monkeypatch.setattr("strongreg.coherence.reading_is_free", lambda device: False)
    with np.errstate(all="ignore"):
        yield


def _mixed(dtype):
    """Every penalty on tensors of two of the shapes."""
    count = len(_SHAPES)
    return [
        target(penalty, torch.randn(shape, dtype=torch.float64).to(dtype))
        for i, penalty in enumerate(PENALTIES)
        for shape in (_SHAPES[i % count], _SHAPES[(i + 1) % count])
    ]


def _like(targets):
    return [torch.randn_like(each.param) for each in targets]


@every_dtype
def test_many_tensors_under_many_penalties_at_once(dtype):
    targets = _mixed(dtype)
    pulls, minus = _like(targets), _like(targets)
    check_products(MultiTensorPasses, targets, pulls)
    # the reference rounds the difference to half precision
    rounding = torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else None
    check_products(MultiTensorPasses, targets, pulls, minus, tolerance=rounding)
    some = [None if i % 3 == 0 else each for i, each in enumerate(pulls)]
    others = [None if i % 2 else each for i, each in enumerate(minus)]
    check_products(MultiTensorPasses, targets, some, others, tolerance=rounding)
    check_squares(MultiTensorPasses, targets, some)
    factors = torch.rand(len(targets), dtype=torch.float64).unbind()
    check_shrink(MultiTensorPasses, targets, factors, [0.4] * len(targets), cuts_off=True)


@pytest.mark.parametrize("penalty", [L1(0.3), GroupL2(0.3, dim=0), SparseGroup(0.3, dim=0)], ids=repr)
@pytest.mark.parametrize("row", [1, 31, 33, 256, 257, 513])
def test_rows_around_the_ends_of_blocks(penalty, row):
    targets = [target(penalty, torch.randn(rows, row)) for rows in (1, 2, 17)]
    check_products(MultiTensorPasses, targets, _like(targets))
    check_shrink(MultiTensorPasses, targets, [1.0] * 3, [row**0.5 / 3] * 3, cuts_off=True)


@pytest.mark.parametrize("size", [1, 511, 512, 513, 8191, 8192, 8193, 20000])
def test_sizes_around_the_ends_of_blocks_and_pieces(size):
    targets = [target(each, torch.randn(size)) for each in (L1(0.3), MCP(0.2, cutoff=0.5), GroupL2(0.1))]
    targets[2] = target(GroupL2(0.1, dim=0), torch.randn(2, size))
    check_products(MultiTensorPasses, targets, _like(targets))
    check_squares(MultiTensorPasses, targets, _like(targets))
    check_shrink(MultiTensorPasses, targets, [1.0] * 3, [1.0] * 3, cuts_off=True)


@hypothesis.settings(max_examples=15)
@hypothesis.given(
    penalty=st.sampled_from(PENALTIES),
    shape=st.lists(st.integers(0, 9), min_size=2, max_size=4),
    order=st.randoms(use_true_random=False),
    scale=st.sampled_from([1e-25, 1e-3, 1.0, 1e12]),
)
def test_random_shapes_layouts_and_sizes(penalty, shape, order, scale):
    inner = list(range(1, len(shape)))
    order.shuffle(inner)
    back = [inner.index(i) + 1 for i in range(1, len(shape))]
    w = torch.randn([shape[0], *(shape[i] for i in inner)]).permute(0, *back)
    targets = [target(penalty, w), target(penalty, torch.randn(shape))]
    with np.errstate(all="ignore"):
        check_products(MultiTensorPasses, targets, [torch.randn(shape) * scale, torch.randn(shape)])
        check_shrink(MultiTensorPasses, targets, [1.0, 0.5], [0.3, 0.3], cuts_off=True)


@every_penalty
def test_every_memory_layout_and_pulls_of_another_layout_and_dtype(penalty):
    w = torch.randn(4, 3, 5, 2)
    channels_last = w.to(memory_format=torch.channels_last)
    targets = [target(penalty, channels_last), target(penalty, w), target(penalty, torch.randn(3, 6, 1, 1))]
    pulls = [torch.randn(4, 3, 5, 2), torch.randn(4, 3, 5, 2).to(memory_format=torch.channels_last)]
    pulls.append(torch.randn(3, 6, 1, 1, dtype=torch.float64))
    check_products(MultiTensorPasses, targets, pulls)
    check_squares(MultiTensorPasses, targets, pulls)
    check_shrink(MultiTensorPasses, targets, [1.0] * 3, [0.5] * 3, cuts_off=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_where_the_gate_is_closed_no_bit_changes(dtype):
    w = torch.tensor([[0.0, -0.0, 1.0], [float("inf"), float("nan"), 1e-6]], dtype=dtype)
    targets = [target(penalty, w.clone()) for penalty in PENALTIES]
    count, closed = len(targets), torch.zeros((), dtype=torch.float64)
    off = [target(each.penalty.__class__(0.0), w.clone()) for each in targets[:4]]
    for factor, step_size in [
        (closed, 0.5),
        (0.0, 0.5),
        (closed * float("nan"), 0.5),
        (closed + 1, 0.0),
        (closed + 1, -1e-20),
        (closed + 1, torch.tensor(-1e-20)),
    ]:
        check_nothing_changes(MultiTensorPasses, targets, [factor] * count, [step_size] * count)
    check_nothing_changes(MultiTensorPasses, off, [closed + 1] * 4, [0.5] * 4)


@every_dtype
def test_an_open_gate_beside_a_closed_one(dtype):
    targets = [target(penalty, torch.randn(3, 4).to(dtype)) for penalty in PENALTIES]
    factors = [torch.tensor(float(i % 2), dtype=torch.float64) for i in range(len(targets))]
    check_shrink(MultiTensorPasses, targets, factors, [0.4] * len(targets), cuts_off=True)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64, torch.bfloat16])
def test_factors_and_step_sizes_are_numbers_or_tensors_of_any_dtype(dtype):
    targets = [target(penalty, torch.randn(4, 5)) for penalty in PENALTIES]
    step_size = 0.25 if dtype is None else torch.tensor(0.25, dtype=dtype)
    numbers = [] if dtype == torch.bfloat16 else [0.75, torch.tensor(0.75)]  # they would be rounded to bfloat16
    for factor in (torch.tensor(0.75, dtype=torch.float64), *numbers):
        check_shrink(MultiTensorPasses, targets, [factor] * len(targets), [step_size] * len(targets), rounded=True)


@every_penalty
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_goes_into_the_sums_and_spoils_its_own_group_only(penalty, odd):
    w, pull = torch.randn(3, 40), torch.randn(3, 40)
    spoiled, spoiled_pull = w.clone(), pull.clone()
    spoiled[1, 7], spoiled_pull[2, 3] = odd, odd
    for each, moved in ((spoiled, pull), (w, spoiled_pull)):
        targets = [target(penalty, each)]
        expected = ReferencePasses(targets).products([moved], [None], [each])
        found = MultiTensorPasses(targets).products([moved], [None], [each])
        assert torch.equal(found.isfinite(), expected.isfinite())
        check_shrink(MultiTensorPasses, targets, [1.0], [0.5], cuts_off=True)


@every_penalty
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_tiny_and_huge_gradients_keep_their_squares(penalty, scale):
    targets = [target(penalty, torch.randn(3, 40))]
    check_products(MultiTensorPasses, targets, [torch.randn(3, 40) * scale])
    check_squares(MultiTensorPasses, targets, [torch.randn(3, 40) * scale])


def test_tiny_weights_have_directions():
    targets = [target(penalty, torch.randn(3, 40) * 1e-25) for penalty in PENALTIES[-4:]]
    check_products(MultiTensorPasses, targets, _like(targets))


def test_the_same_numbers_give_the_same_sums():
    targets = [target(penalty, torch.randn(30, 600)) for penalty in (L1(0.3), SparseGroup(0.3, dim=0))]
    pulls, weights = _like(targets), [each.param.detach() for each in targets]
    way = MultiTensorPasses(targets)
    first = way.products(pulls, [None] * len(pulls), weights)
    assert torch.equal(first, way.products(pulls, [None] * len(pulls), weights))


def test_a_table_is_sent_again_only_when_it_has_changed():
    targets = [target(L1(0.3), torch.randn(4, 5)), target(L2(0.3), torch.randn(4, 5))]
    way, pulls = MultiTensorPasses(targets), _like(targets)
    weights = [each.param.detach() for each in targets]
    tables = []
    for moved in (pulls, pulls, _like(targets)):
        way.products(moved, [None, None], weights)
        tables.append(way._of_products._kept)
    assert tables[0] is tables[1]
    assert tables[1] is not tables[2]


def test_autograd_sees_that_the_weights_have_changed():
    targets = [target(L1(0.3), torch.randn(4, 5)), target(GroupL2(0.3, dim=0), torch.randn(4, 5))]
    weights = [each.param.detach() for each in targets]
    before = [each.param._version for each in targets]
    MultiTensorPasses(targets).shrink(weights, [torch.ones((), dtype=torch.float64), 0.0], [0.1, 0.1])
    assert [each.param._version - version for each, version in zip(targets, before, strict=True)] == [1, 0]


def test_nothing_at_all_and_only_empty_tensors():
    targets = [target(L1(0.3), torch.randn(0, 5)), target(GroupL2(0.3, dim=0), torch.randn(3, 0))]
    assert torch.equal(MultiTensorPasses(targets).squares(_like(targets)), torch.zeros(2, dtype=torch.float64))
    check_products(MultiTensorPasses, targets, _like(targets))
    assert [tuple(w.shape) for w in shrunk(MultiTensorPasses, targets, [1.0] * 2, [1.0] * 2)] == [(0, 5), (3, 0)]


# ---------------------------------------------------------------------- which parameters, and in a whole step


def test_it_takes_dense_tensors_of_known_terms_where_it_runs(monkeypatch):
    monkeypatch.setattr(multi_tensor, "DEVICES", ("cpu",))
    dense, gaps = torch.randn(4, 6), torch.randn(4, 12)[:, ::2]
    assert all(MultiTensorPasses.accepts(target(penalty, dense)) for penalty in PENALTIES)
    assert not MultiTensorPasses.accepts(target(L1(0.1), gaps))
    assert not MultiTensorPasses.accepts(target(GroupL2(0.1, dim=1), dense))
    assert not MultiTensorPasses.accepts(target(GroupL2(0.1, dim=0), dense.T))
    monkeypatch.undo()
    assert not MultiTensorPasses.accepts(target(L1(0.1), dense))


def _train(name, penalty, monkeypatch, *, ways):
    monkeypatch.setattr(passes, "_WAYS", ways)
    model = make_model(name)
    optimizer = make_optimizer(name, model.parameters())
    reg = Regularizer(model, penalty, gate=strongreg.CoherenceGate(0.8)).attach(optimizer)
    for step in range(4):
        optimizer.zero_grad()
        inputs, labels = batch(step)
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()], reg


@pytest.mark.parametrize(
    ("name", "penalty"), [("sgd-momentum", L1(0.1)), ("adamw", MCP(0.1)), ("adamw", SparseGroup(0.1))]
)
def test_whole_steps_are_those_of_the_reference(name, penalty, monkeypatch):
    expected, expected_reg = _train(name, penalty, monkeypatch, ways=(ReferencePasses,))
    monkeypatch.setattr(multi_tensor, "DEVICES", ("cpu",))
    take_the_cpu_for_an_accelerator(monkeypatch)
    found, reg = _train(name, penalty, monkeypatch, ways=(MultiTensorPasses,))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)
        assert torch.equal(a == 0, b == 0)
    assert reg.history["open"].tolist() == expected_reg.history["open"].tolist()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_launches_as_much_for_few_layers_as_for_many(name, monkeypatch):
    monkeypatch.setattr(passes, "_WAYS", (MultiTensorPasses,))
    monkeypatch.setattr(multi_tensor, "DEVICES", ("cpu",))
    take_the_cpu_for_an_accelerator(monkeypatch)
    launched, run = [], InterpretedFunction.run
    monkeypatch.setattr(InterpretedFunction, "run", lambda self, *a, **k: (launched.append(self), run(self, *a, **k)))
    penalties = {"0.weight": L1(0.1), "*weight": GroupL2(0.1)}
    few, many = launches_of_a_step(3, penalties, name), len(launched)
    assert launches_of_a_step(9, penalties, name) == few
    assert len(launched) == 2 * many
