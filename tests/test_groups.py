"""Which parameters get which penalty."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn

from strongreg import L1, L2, GroupL2, SparseGroup
from strongreg.groups import Target, inverse_std_scales, select_targets


class Network(nn.Module):
    """Two convolutions with normalization, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, bias=False)
        self.fc = nn.Linear(4, 2)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.second.weight = self.first.weight


def _names(model: nn.Module, penalty: object) -> list[str]:
    return [target.name for target in select_targets(model, penalty)]


def _error(kind: type[Exception], model: nn.Module, penalty: object) -> str:
    with pytest.raises(kind) as caught:
        select_targets(model, penalty)
    return str(caught.value)


# ---------------------------------------------------------------------- one penalty for all weights


def test_by_default_the_weights_are_penalized_and_biases_and_normalization_are_not():
    model = Network()
    targets = select_targets(model, L1(0.1))
    assert [t.name for t in targets] == ["conv1.weight", "conv2.weight", "fc.weight"]
    assert [t.param for t in targets] == [model.conv1.weight, model.conv2.weight, model.fc.weight]
    assert all(t.penalty == L1(0.1) and not t.by_pattern for t in targets)


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(3),
        nn.InstanceNorm2d(3, affine=True),
        nn.SyncBatchNorm(3),
        nn.GroupNorm(1, 3),
        nn.LayerNorm((3, 4)),
        nn.RMSNorm((3, 4)),
        nn.Embedding(5, 3),
        nn.EmbeddingBag(5, 3),
    ],
    ids=lambda module: type(module).__name__,
)
def test_normalization_and_embeddings_are_not_penalized_even_in_two_dimensions(module):
    assert len(list(module.parameters())) > 0
    assert _names(nn.Sequential(module, nn.Linear(3, 3)), L1(0.1)) == ["1.weight"]


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (nn.Linear(3, 2), ["weight"]),
        (nn.Bilinear(2, 3, 4), ["weight"]),
        (nn.Conv1d(2, 3, 1), ["weight"]),
        (nn.Conv3d(2, 3, 1), ["weight"]),
        (nn.LSTM(2, 3), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.MultiheadAttention(4, 2), ["in_proj_weight", "out_proj.weight"]),
        (nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.ReLU()), ["0.0.weight"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_default_names(module, names):
    assert _names(module, L1(0.1)) == names


@pytest.mark.parametrize("embedding_first", [True, False])
def test_a_weight_tied_to_an_embedding_is_an_embedding(embedding_first):
    layers = [nn.Embedding(5, 3), nn.Linear(3, 5)]
    model = Tied(*(layers if embedding_first else reversed(layers)))
    assert "is penalized" in _error(ValueError, model, L1(0.1))


def test_frozen_weights_are_left_out_by_default_but_a_pattern_names_them():
    model = Network()
    model.conv1.requires_grad_(requires_grad=False)
    assert _names(model, L1(0.1)) == ["conv2.weight", "fc.weight"]
    assert _names(model, {"conv1.weight": L1(0.1)}) == ["conv1.weight"]


def test_parameters_of_the_model_itself_have_no_prefix():
    model = nn.Module()
    model.table = nn.Parameter(torch.ones(2, 2))
    model.vector = nn.Parameter(torch.ones(2))
    assert _names(model, L1(0.1)) == ["table"]


@pytest.mark.parametrize(
    "model",
    [nn.ReLU(), nn.BatchNorm1d(3), nn.Embedding(3, 2), nn.Linear(2, 2).requires_grad_(requires_grad=False)],
    ids=["no-parameters", "normalization", "embedding", "frozen"],
)
def test_nothing_to_penalize_is_an_error(model):
    message = _error(ValueError, model, L1(0.1))
    assert f"no parameter of {type(model).__name__} is penalized" in message
    assert "{'*weight': L1(1e-3)}" in message


@pytest.mark.parametrize(
    ("layer", "dim"),
    [(nn.Linear(3, 5), 0), (nn.Conv2d(3, 5, 2), 0), (nn.ConvTranspose1d(3, 5, 2), 1), (nn.ConvTranspose2d(3, 5, 2), 1)],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("make", [GroupL2, SparseGroup])
def test_groups_are_output_channels_also_of_transposed_convolutions(layer, dim, make):
    (target,) = select_targets(layer, make(0.1))
    assert target.penalty == make(0.1, dim=dim)
    assert target.param.shape[dim] == 5
    (by_pattern,) = select_targets(layer, {"weight": make(0.1)})
    assert by_pattern.penalty == make(0.1, dim=dim)
    (explicit,) = select_targets(layer, make(0.1, dim=-1))
    assert explicit.penalty == make(0.1, dim=-1)


@pytest.mark.parametrize("make", [GroupL2, SparseGroup])
def test_output_channels_of_a_transposed_convolution_with_groups_are_an_error(make):
    """A slice along dimension 1 holds the weights of several output channels, so it is not one of them."""
    layer = nn.ConvTranspose2d(4, 6, 1, groups=2, bias=False)
    message = _error(ValueError, layer, make(0.1))
    assert "does not fit parameter 'weight'" in message
    assert "dim=(0, 1)" in message
    (kernels,) = select_targets(layer, make(0.1, dim=(0, 1)))
    assert kernels.penalty.dim == (0, 1)
    assert select_targets(layer, L1(0.1))[0].penalty == L1(0.1)


def test_a_penalty_that_does_not_fit_a_shape_is_an_error():
    message = _error(ValueError, Network(), GroupL2(0.1, dim=3))
    assert "GroupL2(strength=0.1, dim=3, weight_by_size=False) does not fit parameter 'fc.weight'" in message
    assert "dim=3 does not exist in weights of shape (2, 4): choose dims from 0 to 1" in message


def test_an_uninitialized_parameter_is_an_error_that_says_what_to_do():
    model = nn.Sequential(nn.LazyLinear(3))
    message = "parameter '0.weight' is not initialized yet: run one forward pass before building the Regularizer"
    assert _error(TypeError, model, L1(0.1)) == message
    model(torch.ones(1, 2))
    assert _names(model, L1(0.1)) == ["0.weight"]


def test_a_complex_parameter_is_an_error_that_says_how_to_exclude_it():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.complex64))
    message = _error(TypeError, model, L1(0.1))
    assert "parameter '1.weight' has dtype torch.complex64" in message
    assert "{'1.weight': None}" in message
    assert _names(model, {"1.weight": None, "*.weight": L1(0.1)}) == ["0.weight"]


@pytest.mark.parametrize("penalty", [0.1, None, "l1", L1, [L1(0.1)]])
def test_something_else_than_a_penalty_is_an_error(penalty):
    message = _error(TypeError, Network(), penalty)
    assert "penalty must be a strongreg penalty such as L1(5e-3), or a mapping from name pattern to penalty" in message
    assert repr(penalty) in message


# ---------------------------------------------------------------------- patterns on names


def test_the_first_match_wins_and_targets_keep_the_order_of_the_model():
    penalties = {"fc.*": L2(0.5), "conv1.weight": L1(0.2), "*.weight": L1(0.1)}
    targets = select_targets(Network(), penalties)
    assert [(t.name, t.penalty) for t in targets] == [
        ("conv1.weight", L1(0.2)),
        ("norm1.weight", L1(0.1)),
        ("conv2.weight", L1(0.1)),
        ("fc.weight", L2(0.5)),
        ("fc.bias", L2(0.5)),
    ]
    assert all(t.by_pattern for t in targets)


def test_none_excludes_and_what_nothing_matches_is_left_out():
    assert _names(Network(), {"conv1.*": None, "conv?.weight": L1(0.1)}) == ["conv2.weight"]


def test_patterns_see_case_and_the_full_name():
    assert "'weight' matches no parameter" in _error(ValueError, Network(), {"weight": L1(0.1)})
    assert "'FC.weight' matches no parameter" in _error(ValueError, Network(), {"FC.weight": L1(0.1)})


def test_a_regular_expression_matches_the_full_name():
    assert _names(Network(), {re.compile(r"conv\d\.weight"): L1(0.1)}) == ["conv1.weight", "conv2.weight"]
    assert _names(Network(), {re.compile(r"CONV1\.WEIGHT", re.IGNORECASE): L1(0.1)}) == ["conv1.weight"]
    message = _error(ValueError, Network(), {re.compile(r"conv\d"): L1(0.1)})
    assert r"pattern 'conv\\d' matches no parameter; close names are" in message


def test_a_pattern_that_matches_nothing_names_the_close_ones():
    message = _error(ValueError, Network(), {"*.weight": L1(0.1), "conv3.weight": L1(0.2)})
    assert "pattern 'conv3.weight' matches no parameter; close names are 'conv" in message
    assert "'conv1.weight'" in message
    assert "'conv2.weight'" in message


def test_a_regular_expression_written_as_a_string_gets_a_hint():
    message = _error(ValueError, Network(), {r"conv\d\.weight": L1(0.1)})
    assert r"for a regular expression write re.compile('conv\\d\\.weight')" in message


@pytest.mark.parametrize("pattern", ["conv[", "(", "*", ""])
def test_a_string_that_is_no_regular_expression_is_still_a_clear_error(pattern):
    assert f"pattern {pattern!r} matches no parameter" in _error(ValueError, nn.ReLU(), {pattern: L1(0.1)})


def test_a_pattern_on_a_model_without_parameters_is_an_error():
    assert "the model has none" in _error(ValueError, nn.ReLU(), {"*.weight": L1(0.1)})


def test_a_shadowed_pattern_is_an_error():
    message = _error(ValueError, Network(), {"*.weight": L1(0.1), "fc.weight": L2(0.1)})
    assert "pattern 'fc.weight' decides for no parameter" in message
    assert "put the narrower pattern first" in message
    assert "decides for no parameter" in _error(ValueError, Network(), {"*": None, "fc.*": L1(0.1)})


@pytest.mark.parametrize("penalties", [{}, {"*": None}])
def test_a_mapping_that_penalizes_nothing_is_an_error(penalties):
    assert "no parameter of Network is penalized" in _error(ValueError, Network(), penalties)


@pytest.mark.parametrize("penalty", [0.1, "l1", L1])
def test_a_pattern_for_something_else_than_a_penalty_is_an_error(penalty):
    message = _error(TypeError, Network(), {"fc.*": penalty})
    assert f"the penalty for pattern 'fc.*' must be a strongreg penalty or None, got {penalty!r}" in message


@pytest.mark.parametrize("pattern", [1, None, ("fc", "conv1"), b"fc.weight"])
def test_a_pattern_that_is_no_string_is_an_error(pattern):
    message = _error(TypeError, Network(), {pattern: L1(0.1)})
    assert "a name pattern must be a string such as 'features.*.weight' or a compiled regular expression" in message
    assert repr(pattern) in message


# ---------------------------------------------------------------------- tied parameters


def test_tied_parameters_count_once_and_answer_to_both_names():
    model = Tied(nn.Linear(3, 3), nn.Linear(3, 3))
    assert _names(model, L1(0.1)) == ["first.weight"]
    for pattern in ("first.weight", "second.weight", "*.weight", re.compile(r"second\..*t")):
        (target,) = select_targets(model, {pattern: L1(0.1)})
        assert target.param is model.first.weight
        assert (target.name, target.penalty, target.by_pattern) == ("first.weight", L1(0.1), True)


def test_two_patterns_for_one_tied_parameter_conflict():
    model = Tied(nn.Linear(3, 3), nn.Linear(3, 3))
    message = _error(ValueError, model, {"first.weight": L1(0.1), "second.weight": L1(0.2)})
    assert "pattern 'second.weight' decides for no parameter" in message


def test_a_module_used_twice_counts_once():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert _names(model, L1(0.1)) == ["0.weight"]
    assert _names(model, {"2.weight": L1(0.1)}) == ["0.weight"]


# ---------------------------------------------------------------------- strengths relative to the weights' scale


def _targets(*params: torch.Tensor) -> list[Target]:
    return [Target(f"w{i}", nn.Parameter(p), L1(0.1), by_pattern=False) for i, p in enumerate(params)]


def test_inverse_std_by_hand():
    """Standard deviations 1 and 2 over 2 and 6 weights: 1/std has the weighted mean (2 * 1 + 6 * 0.5) / 8."""
    one, two = torch.tensor([0.0, 2**0.5]), 2 * torch.tensor([1.0, -1.0, 1.0, -1.0, 0.5**0.5, -(0.5**0.5)])
    scales = inverse_std_scales(_targets(one, two))
    assert scales == pytest.approx([1 / 0.625, 0.5 / 0.625], rel=1e-6)
    assert (2 * scales[0] + 6 * scales[1]) / 8 == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_inverse_std_has_weighted_mean_1_and_equalizes_the_spreads(dtype):
    targets = _targets(*(scale * torch.randn(n, n) for n, scale in ((20, 0.01), (30, 1.0), (5, 3.0))))
    targets = [Target(t.name, nn.Parameter(t.param.detach().to(dtype)), t.penalty, t.by_pattern) for t in targets]
    scales = inverse_std_scales(targets)
    sizes = [400, 900, 25]
    assert sum(n * s for n, s in zip(sizes, scales, strict=True)) / sum(sizes) == pytest.approx(1.0)
    products = [s * t.param.detach().double().std().item() for t, s in zip(targets, scales, strict=True)]
    assert products == pytest.approx([products[0]] * 3)


@pytest.mark.parametrize(
    "spreadless",
    [torch.zeros(3, 3), torch.full((2, 2), 0.5), torch.ones(1), torch.empty(0), torch.tensor([1, torch.nan])],
)
def test_weights_without_spread_keep_factor_1_with_a_warning(spreadless):
    normal = torch.randn(4, 4)
    with pytest.warns(UserWarning, match=r"strength_scale='inverse_std': \['w1'\] have no spread of weights"):
        scales = inverse_std_scales(_targets(normal, spreadless, 10 * normal))
    assert scales[1] == 1.0
    assert scales[0] == pytest.approx(10 * scales[2])
    assert (scales[0] + scales[2]) / 2 == pytest.approx(1.0)


def test_inverse_std_of_one_tensor_is_1_and_needs_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inverse_std_scales(_targets(torch.randn(5, 5))) == pytest.approx([1.0])
