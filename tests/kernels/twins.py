"""A fast way of doing the passes beside the reference: the same tensors, the same questions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from contract.optimizers import same_bits
from strongreg import L1, L2, MCP, ElasticNet, GroupL2, Penalty, SparseGroup
from strongreg.groups import Target
from strongreg.kernels.reference import ReferencePasses

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
PENALTIES = [
    L1(0.3),
    L2(0.2),
    ElasticNet(0.3, l1_ratio=0.4),
    MCP(0.2, cutoff=0.5),
    MCP(2.0, cutoff=0.1),  # a hard threshold
    GroupL2(0.3, dim=0),
    GroupL2(0.05, dim=0, weight_by_size=True),
    SparseGroup(0.3, dim=0),
    SparseGroup(0.3, l1_ratio=0.0, dim=0),
]
every_penalty = pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def target(penalty: Penalty, weights: Tensor) -> Target:
    """A penalized parameter of these weights."""
    return Target("weight", nn.Parameter(weights), penalty, by_pattern=False)


def sizes_of(way, targets, pulls, minus):
    """The products by a way and by the reference, each in units of what rounding is in proportion to."""
    weights = [each.param.detach() for each in targets]
    found, expected = (kind(targets).products(pulls, minus, weights) for kind in (way, ReferencePasses))
    assert found.shape == (len(targets), 4)
    scale = expected.clone()
    scale[:, 1] = (expected[:, 0] * expected[:, 2]).sqrt()
    scale = torch.where((scale > 0) & scale.isfinite(), scale, 1.0)
    return found.double() / scale, expected.double() / scale


def check_products(way, targets, pulls, minus=None, *, tolerance=None):
    """Hold a way's products to the reference's."""
    minus = [None] * len(targets) if minus is None else minus
    found, expected = sizes_of(way, targets, pulls, minus)
    if tolerance is None:
        tolerance = 1e-12 if targets[0].param.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, equal_nan=True)


def check_squares(way, targets, tensors):
    """Hold a way's squared norms to the reference's."""
    found, expected = (kind(targets).squares(tensors) for kind in (way, ReferencePasses))
    tolerance = 1e-12 if targets[0].param.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, expected.to(found), rtol=tolerance, atol=0, equal_nan=True)


def shrunk(kind, targets, factors, step_sizes):
    """The weights after the proximal step by a way."""
    weights = [each.param.detach().clone() for each in targets]
    kind(targets).shrink(weights, factors, step_sizes)
    return weights


def check_shrink(way, targets, factors, step_sizes, *, cuts_off=False, rounded=False):
    """Hold a way's proximal step to the reference's: the same numbers, but for the rounding of the norms of groups.

    ``cuts_off``: the way does not round to bfloat16 as torch does; ``rounded``: thresholds may be rounded otherwise.
    """
    expected = shrunk(ReferencePasses, targets, factors, step_sizes)
    for each, a, b in zip(targets, shrunk(way, targets, factors, step_sizes), expected, strict=True):
        assert a.stride() == b.stride()
        assert torch.equal(a == 0, b == 0)
        w = each.param.detach()
        unit = torch.finfo(w.dtype).eps
        is_rounded = rounded or hasattr(each.penalty, "dim") or (cuts_off and w.dtype == torch.bfloat16)
        slack = 2 * torch.finfo(torch.promote_types(w.dtype, torch.float32)).eps * w.abs() + unit * b.abs()
        off = (a - b).abs() > (slack if is_rounded else 0)
        assert not (off & b.isfinite()).any(), f"{each.penalty!r} on {tuple(a.shape)}"
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.isinf(), b.isinf())


def check_nothing_changes(way, targets, factors, step_sizes):
    """No bit changes."""
    after = shrunk(way, targets, factors, step_sizes)
    assert all(same_bits(a.cpu(), each.param.detach().cpu()) for a, each in zip(after, targets, strict=True))
