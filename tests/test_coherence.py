"""The coherence of a loss gradient and a penalty gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from strongreg.coherence import coherence, inner_products, squared_norm


def _measured(gradient: Tensor, penalty_gradient: Tensor) -> float:
    """As the library measures: inner products of the tensors, then the cosine in float64."""
    products = inner_products(gradient, penalty_gradient)
    return coherence(*(product.double() for product in products)).item()


def _cosine(gradient: list[float], penalty_gradient: list[float]) -> float:
    """The literal cosine of g and g + r, in a loop."""
    dot = norm = total = 0.0
    for g, r in zip(gradient, penalty_gradient, strict=True):
        dot += g * (g + r)
        norm += g * g
        total += (g + r) * (g + r)
    return dot / (math.sqrt(norm) * math.sqrt(total))


def _pair(g: float, r: float) -> Tensor:
    """The coherence of two parallel gradients of these lengths."""
    return coherence(*(torch.tensor(x, dtype=torch.float64) for x in (g * g, g * r, r * r)))


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=1, max_size=20))
def test_coherence_is_the_literal_cosine(pairs):
    gradient, penalty_gradient = (list(column) for column in zip(*pairs, strict=True))
    g_sq, r_sq = (sum(x * x for x in v) for v in (gradient, penalty_gradient))
    total_sq = sum((g + r) ** 2 for g, r in pairs)
    measured = _measured(
        torch.tensor(gradient, dtype=torch.float64), torch.tensor(penalty_gradient, dtype=torch.float64)
    )
    assert -1 <= measured <= 1
    # where g + r nearly cancels, three inner products cannot know its direction
    if min(g_sq, total_sq) > 1e-6 * (g_sq + r_sq) and g_sq > 1e-100:
        assert measured == pytest.approx(_cosine(gradient, penalty_gradient), abs=1e-9)


def test_coherence_is_precise_in_float64():
    gradient = torch.randn(1000, dtype=torch.float64)
    penalty_gradient = 1e-4 * torch.randn(1000, dtype=torch.float64)
    expected = _cosine(gradient.tolist(), penalty_gradient.tolist())
    assert expected < 1
    assert abs(_measured(gradient, penalty_gradient) - expected) < 1e-14


def test_coherence_is_elementwise():
    gradient, penalty_gradient = torch.randn(2, 3, 7, dtype=torch.float64).unbind()
    products = [inner_products(g, r) for g, r in zip(gradient, penalty_gradient, strict=True)]
    together = coherence(*(torch.stack(column) for column in zip(*products, strict=True)))
    expected = [_cosine(g.tolist(), r.tolist()) for g, r in zip(gradient, penalty_gradient, strict=True)]
    torch.testing.assert_close(together, torch.tensor(expected, dtype=torch.float64))
    assert together.shape == (3,)


@pytest.mark.parametrize(
    ("g", "r", "expected"),
    [
        pytest.param(2.0, 0.0, 1.0, id="no-penalty"),
        pytest.param(0.0, 2.0, 0.0, id="no-gradient"),
        pytest.param(0.0, 0.0, 1.0, id="neither"),
        pytest.param(2.0, -2.0, 0.0, id="they-cancel"),
        pytest.param(2.0, 5.0, 1.0, id="parallel"),
        pytest.param(2.0, -1.0, 1.0, id="opposed-and-weaker"),
        pytest.param(2.0, -3.0, -1.0, id="opposed-and-stronger"),
    ],
)
def test_coherence_of_parallel_gradients(g, r, expected):
    assert _pair(g, r) == expected


def test_orthogonal_gradients_of_equal_length_are_at_45_degrees():
    measured = _measured(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0]))
    assert measured == pytest.approx(math.sqrt(0.5), rel=1e-15)


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("others", [0.0, 1.0])
def test_a_product_that_is_not_finite_gives_nan(position, value, others):
    products = [torch.tensor(others, dtype=torch.float64) for _ in range(3)]
    products[position] = torch.tensor(value, dtype=torch.float64)
    assert coherence(*products).isnan()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_gives_nan(bad):
    gradient, penalty_gradient = torch.randn(2, 5).unbind()
    gradient[2] = bad
    assert math.isnan(_measured(gradient, penalty_gradient))
    assert math.isnan(_measured(gradient, torch.zeros(5)))
    assert math.isnan(_measured(penalty_gradient, gradient))


def test_one_bad_entry_spoils_no_other():
    products = torch.tensor([[1.0, math.nan, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    measured = coherence(*products)
    assert measured.isnan().tolist() == [False, True, False]
    assert measured[0] == 1


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e-12, 1.0, 1e12, 1e15])
@pytest.mark.parametrize("penalty_size", [0.1, 1.0, 10.0])
def test_the_common_size_of_both_gradients_does_not_matter_in_float32(size, penalty_size):
    """Norms from 1e-30, where a dying network passes through, to 1e15; their squares leave the range of float32."""
    gradient, penalty_gradient = torch.randn(2, 50).unbind()
    gradient, penalty_gradient = gradient / gradient.norm(), penalty_size * penalty_gradient / penalty_gradient.norm()
    expected = _cosine(gradient.tolist(), penalty_gradient.tolist())
    assert _measured(gradient * size, penalty_gradient * size) == pytest.approx(expected, abs=1e-5)


def test_sizes_far_apart():
    """A penalty gradient 1e15 times the loss gradient, and the reverse: products of two squares stay in range."""
    gradient, penalty_gradient = torch.tensor([1e-12, 0.0]), torch.tensor([0.0, 1e3])
    assert _measured(gradient, penalty_gradient) == pytest.approx(1e-15, rel=1e-5)
    assert _measured(penalty_gradient, gradient) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_double_precision(dtype):
    """1000 squares of 100 are beyond float16 and lose digits in bfloat16."""
    gradient = torch.full((1000,), 100.0, dtype=dtype)
    products = inner_products(gradient, -2 * gradient)
    assert [product.dtype for product in products] == [torch.float64] * 3
    assert [product.item() for product in products] == pytest.approx([1e7, -2e7, 4e7], rel=1e-6)
    assert squared_norm(gradient).item() == pytest.approx(1e7, rel=1e-12)
    assert squared_norm(gradient).dtype == torch.float64


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (7,), (3, 4), (2, 3, 4, 5)])
def test_inner_products_of_every_shape(shape):
    gradient, penalty_gradient = torch.randn(2, *shape, dtype=torch.float64).unbind()
    products = inner_products(gradient, penalty_gradient)
    expected = [(gradient**2).sum(), (gradient * penalty_gradient).sum(), (penalty_gradient**2).sum()]
    for product, by_hand in zip(products, expected, strict=True):
        torch.testing.assert_close(product, by_hand)
        assert product.shape == ()
    torch.testing.assert_close(squared_norm(gradient), expected[0])


def test_gradients_in_different_memory_layouts_are_matched_by_position():
    gradient, penalty_gradient = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64).unbind()
    expected = inner_products(gradient, penalty_gradient)
    layouts = inner_products(gradient.to(memory_format=torch.channels_last), penalty_gradient.mT.contiguous().mT)
    torch.testing.assert_close(layouts, expected)


def test_no_gradient_at_all_is_coherent():
    assert _measured(torch.empty(0), torch.empty(0)) == 1


def test_coherence_stays_on_the_device():
    """Meta tensors have no values: a function that looks at one fails."""
    products = inner_products(torch.empty(3, 2, device="meta"), torch.empty(3, 2, device="meta"))
    assert coherence(*products).device.type == "meta"
