"""The strength that is lowered until it is coherent: the largest one that is."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def share_of():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from limited_strength import coherent_share
    finally:
        sys.path.remove(str(BENCHMARKS))

    def of_vectors(g, r, threshold):
        return coherent_share(float(g @ g), float(g @ r), float(r @ r), threshold)

    return of_vectors


def _cosine(g, r, share):
    total = g + share * r
    return float(g @ total / (g.norm() * total.norm()))


@given(
    seed=st.integers(0, 10**6), size=st.sampled_from([2, 3, 20]), log=st.floats(-3, 3), threshold=st.floats(-1, 0.99)
)
def test_the_share_is_coherent_and_no_larger_one_is(share_of, seed, size, log, threshold):
    generator = torch.Generator().manual_seed(seed)
    g, r = torch.randn(2, size, dtype=torch.float64, generator=generator)
    r = r * 10**log
    share = share_of(g, r, threshold)
    assert 0 <= share <= 1
    assert all(_cosine(g, r, i / 20 * share) >= threshold - 1e-6 for i in range(20))
    if share < 1:
        assert _cosine(g, r, share) == pytest.approx(threshold, abs=1e-5)
        assert _cosine(g, r, share * 1.01) < threshold + 1e-9


@pytest.mark.parametrize(
    ("g", "r", "share"),
    [
        ((1.0, 0.0), (0.0, 0.0), 1.0),
        ((0.0, 0.0), (1.0, 0.0), 0.0),
        ((1.0, 0.0), (5.0, 0.0), 1.0),
        ((1.0, 0.0), (-4.0, 0.0), 0.25),
        ((1.0, 0.0), (0.0, 2.0), 0.5),
    ],
)
def test_gradients_along_across_and_without_one_another(share_of, g, r, share):
    g, r = torch.tensor(g, dtype=torch.float64), torch.tensor(r, dtype=torch.float64)
    assert share_of(g, r, math.sqrt(0.5)) == pytest.approx(share)
