"""A penalty takes tensors of every kind, refuses bad hyper-parameters, and is an immutable value."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from contract.penalties import CASES, SHAPE, every_case, weights
from strongreg import MCP, ElasticNet, GroupL2, Penalty, SparseGroup


def _all_results(penalty: Penalty, w: Tensor, grad: Tensor) -> dict[str, Tensor]:
    return {
        "value": penalty.value(w),
        "subgradient": penalty.subgradient(w),
        "prox": penalty.prox(w, 0.5),
        "critical_strength": penalty.critical_strength(grad),
        "optimality_gap": penalty.optimality_gap(w, grad),
    }


@every_case
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (2, 0, 3), (5,), (1, 1), (3, 4), (2, 3, 2, 2)])
def test_every_shape_gives_finite_results_of_the_right_shape(case, shape):
    dim = getattr(case.penalty, "dim", None)
    if shape and max(dim if isinstance(dim, tuple) else (dim or 0,)) >= len(shape):
        with pytest.raises(ValueError, match=r"dim=.* does not exist in weights of shape"):
            case.penalty.check_shape(torch.Size(shape))
        return
    w = torch.randn(shape)
    case.penalty.check_shape(w.shape)
    for name, result in _all_results(case.penalty, w, torch.randn(shape)).items():
        assert result.shape == (w.shape if name in ("prox", "subgradient") else ())
        assert result.isfinite().all() or (name == "critical_strength" and not case.penalty.has_exact_zeros)


@every_case
def test_memory_layout_does_not_matter(case):
    w, grad = torch.randn(2, 4, 3, 2, 3, dtype=torch.float64).unbind()
    expected = _all_results(case.penalty, w, grad)
    strided = torch.randn(4, 3, 2, 6, dtype=torch.float64)[..., ::2].copy_(w)
    for layout in (w.to(memory_format=torch.channels_last), w.mT.contiguous().mT, strided):
        assert not layout.is_contiguous()
        for name, result in _all_results(case.penalty, layout, grad).items():
            torch.testing.assert_close(result, expected[name], rtol=1e-13, atol=1e-15)


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_is_kept(case, dtype):
    w, grad = weights().to(dtype), weights().to(dtype)
    for name, result in _all_results(case.penalty, w, grad).items():
        # a sum over many weights of half precision would leave their range
        assert result.dtype == (torch.promote_types(dtype, torch.float32) if name == "value" else dtype)
    assert case.penalty.prox(w, torch.tensor(0.5, dtype=torch.float64)).dtype == dtype
    if dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(case.penalty.prox(w, 0.5), case.penalty.prox(w.float(), 0.5).to(dtype))


@every_case
@pytest.mark.parametrize("method", ["value", "subgradient", "prox", "optimality_gap"])
def test_a_nan_weight_gives_nan(case, method):
    w = weights()
    w[1, 1, 1] = math.nan
    result = _all_results(case.penalty, w, torch.zeros_like(w))[method]
    assert (result[1, 1, 1] if result.dim() else result).isnan()


@every_case
def test_a_nan_weight_spoils_only_its_own_group(case):
    w = weights()
    w[1, 1, 1] = math.nan
    spoiled = case.penalty.prox(w, 0.5).isnan()
    assert spoiled.sum() == math.prod(SHAPE[d] for d in case.within)


@every_case
@pytest.mark.parametrize("method", ["critical_strength", "optimality_gap"])
def test_a_nan_gradient_gives_nan(case, method):
    grad = weights()
    grad[1, 1, 1] = math.nan
    assert _all_results(case.penalty, weights(), grad)[method].isnan()


@every_case
def test_an_infinite_weight_stays_infinite_and_spoils_no_other(case):
    w = weights()
    w[1, 1, 1] = -math.inf
    shrunk = case.penalty.prox(w, 0.5)
    assert shrunk[1, 1, 1] == -math.inf
    assert shrunk.isfinite().sum() == w.numel() - 1


@every_case
def test_nothing_given_is_changed_and_the_prox_is_new_storage(case):
    w, grad = weights(), weights()
    before = w.clone(), grad.clone()
    for result in _all_results(case.penalty, w, grad).values():
        assert result.untyped_storage().data_ptr() != w.untyped_storage().data_ptr()
    assert torch.equal(w, before[0])
    assert torch.equal(grad, before[1])


@every_case
def test_no_method_waits_for_the_device(case):
    """Meta tensors have no values: a method that looks at one fails."""
    w = torch.empty(SHAPE, device="meta")
    for result in _all_results(case.penalty, w, w).values():
        assert result.device.type == "meta"
    assert case.penalty.prox(w, torch.empty((), device="meta")).shape == SHAPE


# ---------------------------------------------------------------------- the object


@every_case
def test_strength_0_is_no_penalty(case):
    off, w = dataclasses.replace(case.penalty, strength=0), weights()
    assert torch.equal(off.prox(w, 5.0), w)
    assert off.value(w) == 0
    assert torch.equal(off.subgradient(w), torch.zeros_like(w))
    assert off.optimality_gap(w, torch.zeros_like(w)) == 0


@every_case
def test_a_penalty_is_immutable_and_a_dictionary_key(case):
    copy = dataclasses.replace(case.penalty)
    assert copy == case.penalty
    assert {case.penalty: 1}[copy] == 1
    assert dataclasses.replace(case.penalty, strength=0.123) != case.penalty
    with pytest.raises(dataclasses.FrozenInstanceError):
        case.penalty.strength = 1.0


@every_case
def test_only_penalties_on_groups_follow_the_output_dimension(case):
    bound = case.penalty.for_output_dim(1)
    if getattr(case.penalty, "dim", 0) is None:
        assert bound == dataclasses.replace(case.penalty, dim=1)
    else:
        assert bound is case.penalty


@every_case
@pytest.mark.parametrize("step", [-1.0, -1, math.nan])
def test_a_negative_step_is_an_error(case, step):
    with pytest.raises(ValueError, match=rf"step must be >= 0, got {step}"):
        case.penalty.prox(weights(), step)


@pytest.mark.parametrize("make", [type(c.penalty) for c in CASES.values()])
@pytest.mark.parametrize(
    ("strength", "error"),
    [
        (-0.1, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        ("1", TypeError),
        (True, TypeError),
        (None, TypeError),
    ],
)
def test_a_bad_strength_is_an_error(make, strength, error):
    with pytest.raises(error, match=rf"{make.__name__}\(strength={strength!r}\): strength must be"):
        make(strength)


@pytest.mark.parametrize(
    ("make", "options", "error", "rule"),
    [
        *((make, {"l1_ratio": v}, ValueError, "finite and between 0 and 1")
          for make in (ElasticNet, SparseGroup) for v in (-0.1, 1.1, math.nan)),
        *((make, {"l1_ratio": v}, TypeError, "a number") for make in (ElasticNet, SparseGroup) for v in ("0.5", False)),
        (MCP, {"cutoff": 0}, ValueError, "> 0"),
        (MCP, {"cutoff": -0.3}, ValueError, "finite and > 0"),
        (MCP, {"cutoff": math.inf}, ValueError, "finite"),
        *((make, {"dim": v}, ValueError, "at least one dimension, each once")
          for make in (GroupL2, SparseGroup) for v in ((), (0, 0))),
        *((make, {"dim": v}, TypeError, "an int, a tuple of ints or None")
          for make in (GroupL2, SparseGroup) for v in ("0", 1.0, True, [0, 1], (0, 1.0), (0, True))),
    ],
)  # fmt: skip
def test_a_bad_option_is_an_error_that_names_it(make, options, error, rule):
    ((name, value),) = options.items()
    with pytest.raises(error) as caught:
        make(1.0, **options)
    assert f"{make.__name__}({name}={value!r}): {name} must" in str(caught.value)
    assert rule in str(caught.value)
