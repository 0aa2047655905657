"""What all networks share: outputs, gradients, initial weights, options and errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from strongreg import L1
from strongreg.experiments.errors import UserError
from strongreg.experiments.models import MODELS, build_model
from strongreg.groups import select_targets

PLAIN = ["plain_cnn", "lenet300", "lenet5", "alexnet", "vgg11", "vgg13", "vgg16", "vgg19", "vgg_narrow"]
RESIDUAL = ["resnet18", "resnet20", "resnet32", "resnet56", "wrn28_2"]
VGGS = ["vgg11", "vgg13", "vgg16", "vgg19"]
WITH_DROPOUT = [*VGGS, "vgg_narrow"]
OF_IMAGES = [name for name, network in MODELS.items() if network.reads == "images"]  # the others: test_decoder.py
WITHOUT_NORM = [name for name in MODELS if name not in VGGS]
WITHOUT_DROPOUT = [name for name in OF_IMAGES if name not in WITH_DROPOUT]
OF_EVERY_FAMILY = ["plain_cnn", "lenet5", "alexnet", "vgg_narrow", "resnet18", "resnet20", "wrn28_2", "vit_tiny"]
LARGE_ENOUGH = {"lenet5": 16} | dict.fromkeys(["alexnet", *VGGS], 17)  # for the others 8x8 is
NORMS = nn.BatchNorm2d | nn.LayerNorm


def _build_small(name, channels=1, **options) -> tuple[nn.Module, tuple[int, int, int]]:
    """A network on small images, and their shape."""
    size = LARGE_ENOUGH.get(name, 8)
    return build_model(name, (channels, size, size), 10, **options), (channels, size, size)


# ---------------------------------------------------------------------- outputs and gradients


def test_the_lists_of_these_tests_hold_every_network():
    assert {*PLAIN, *RESIDUAL, "vit_tiny"} == set(OF_IMAGES)


@pytest.mark.parametrize("name", OF_IMAGES)
@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 32), (3, 64, 32)])
def test_a_network_has_one_output_per_class(name, image_shape):
    with torch.device("meta"):  # shapes alone
        assert build_model(name, image_shape, 7)(torch.rand(5, *image_shape)).shape == (5, 7)


@pytest.mark.parametrize("name", OF_EVERY_FAMILY)
@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 32)])
def test_outputs_are_finite_and_depend_on_the_image(name, image_shape):
    outputs = build_model(name, image_shape, 10).eval()(torch.rand(3, *image_shape))
    assert outputs.shape == (3, 10)
    assert outputs.isfinite().all()
    assert outputs.std(dim=0).min() > 0


@pytest.mark.parametrize(("name", "options"), [(name, {}) for name in OF_IMAGES] + [("vgg16", {"norm": "batch"})])
def test_one_backward_pass_gives_finite_gradients_everywhere(name, options):
    model, image_shape = _build_small(name, channels=3, **options)
    functional.cross_entropy(model(torch.rand(8, *image_shape)), torch.arange(8)).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.count_nonzero() > 0, parameter_name


@pytest.mark.parametrize("name", OF_EVERY_FAMILY)
def test_channels_last_gives_the_same_outputs(name):
    model, image_shape = _build_small(name, channels=3)
    images = torch.rand(4, *image_shape)
    expected = model.double().eval()(images.double())
    actual = model.to(memory_format=torch.channels_last)(images.double().to(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", OF_EVERY_FAMILY)
def test_a_network_trains_under_autocast(name):
    model, image_shape = _build_small(name)
    with torch.autocast("cpu", torch.bfloat16):
        loss = functional.cross_entropy(model(torch.rand(8, *image_shape)), torch.arange(8))
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ["vgg_narrow", "resnet20", "wrn28_2", "vit_tiny"])
def test_a_network_is_one_graph_without_breaks(name):
    """What torch.compile needs; the compiler behind the graph is torch's own affair."""
    model, image_shape = _build_small(name)
    torch.compiler.reset()
    compiled = torch.compile(model.eval(), backend="eager", fullgraph=True)
    images = torch.rand(4, *image_shape)
    torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.parametrize("name", OF_IMAGES)
def test_images_are_left_as_they_are(name):
    model, image_shape = _build_small(name)
    images = torch.rand(2, *image_shape) - 0.5
    before = images.clone()
    model(images)
    assert torch.equal(images, before)


# ---------------------------------------------------------------------- initial weights


def _assert_spread(weight: torch.Tensor, fan: int) -> None:
    error = (2 / weight.numel()) ** 0.5  # two relative standard errors of a standard deviation, doubled
    assert weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=2 * error)


@pytest.mark.parametrize("name", PLAIN)
def test_weights_of_plain_networks_are_he_normal_and_biases_zero(name):
    for module in _build_small(name)[0].modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            _assert_spread(module.weight, module.weight[0].numel())
            assert (module.bias == 0).all()


@pytest.mark.parametrize(("name", "options"), [(name, {}) for name in RESIDUAL] + [("vgg11", {"norm": "batch"})])
def test_convolutions_of_networks_with_batch_normalization_are_he_normal_by_outputs(name, options):
    for module in _build_small(name, **options)[0].modules():
        if isinstance(module, nn.Conv2d):
            _assert_spread(module.weight, module.weight[:, 0].numel())
        elif isinstance(module, nn.Linear):
            _assert_spread(module.weight, module.in_features)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
        if getattr(module, "bias", None) is not None:
            assert (module.bias == 0).all()


@pytest.mark.parametrize("name", [*OF_EVERY_FAMILY, "lenet300", "vgg11"])
def test_the_same_seed_builds_the_same_network(name):
    def built(seed):
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(_build_small(name)[0].parameters())

    first = built(3)
    assert torch.equal(first, built(3))
    assert not torch.equal(first, built(4))


# ---------------------------------------------------------------------- what a penalty acts on


@pytest.mark.parametrize(("name", "options"), [(name, {}) for name in OF_IMAGES] + [("vgg11", {"norm": "batch"})])
def test_penalties_act_on_the_weights_of_convolutions_and_linear_layers_alone(name, options):
    with torch.device("meta"):
        model = build_model(name, (3, 32, 32), 10, **options)
    modules = model.named_modules()
    weights = [f"{prefix}.weight" for prefix, module in modules if isinstance(module, nn.Conv2d | nn.Linear)]
    assert sorted(target.name for target in select_targets(model, L1(1e-3))) == sorted(weights)


# ---------------------------------------------------------------------- options


def _kinds(model: nn.Module) -> list[type[nn.Module]]:
    return [type(module) for module in model.modules()]


@pytest.mark.parametrize("name", VGGS)
@pytest.mark.parametrize("norm", [None, "none", "batch"])
def test_normalization_is_there_as_asked_and_absent_by_default(name, norm):
    with torch.device("meta"):
        kinds = _kinds(build_model(name, (3, 32, 32), 10, norm=norm))
    assert kinds.count(nn.BatchNorm2d) == (kinds.count(nn.Conv2d) if norm == "batch" else 0)
    if norm == "batch":
        assert all(kinds[i + 1 : i + 3] == [nn.BatchNorm2d, nn.ReLU] for i, k in enumerate(kinds) if k is nn.Conv2d)


@pytest.mark.parametrize("name", WITH_DROPOUT)
@pytest.mark.parametrize("dropout", [None, 0.0, 0.25])
def test_dropout_is_there_as_asked(name, dropout):
    expected = (0.3 if name == "vgg_narrow" else 0.5) if dropout is None else dropout
    with torch.device("meta"):
        model = build_model(name, (3, 32, 32), 10, dropout=dropout)
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [expected, expected]


@pytest.mark.parametrize("name", WITHOUT_DROPOUT)
def test_other_networks_have_no_dropout(name):
    with torch.device("meta"):
        assert nn.Dropout not in _kinds(build_model(name, (3, 32, 32), 10))


@pytest.mark.parametrize("name", ["vgg11", "vgg_narrow"])
def test_dropout_acts_in_training_alone(name):
    model, image_shape = _build_small(name)
    images = torch.rand(4, *image_shape)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("name", WITHOUT_NORM)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_norm_that_a_network_does_not_take_is_an_error(name, norm):
    with pytest.raises(UserError, match=rf"norm='{norm}': {name} does not take it; .* vgg11, vgg13, vgg16, vgg19$"):
        build_model(name, (3, 32, 32), 10, norm=norm)


@pytest.mark.parametrize("name", [*WITHOUT_DROPOUT, "nets.mine:build"])
def test_a_dropout_that_a_network_does_not_take_is_an_error(name):
    with pytest.raises(UserError, match=rf"dropout=0\.0: {name} does not take it; .* vgg11, .*, vgg_narrow, decoder$"):
        build_model(name, (3, 32, 32), 10, dropout=0.0)


def test_an_unknown_norm_is_an_error_that_suggests_the_nearest():
    with pytest.raises(UserError, match=r"unknown norm 'bach': did you mean 'batch'\? choose one of batch, none"):
        build_model("vgg11", (3, 32, 32), 10, norm="bach")


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_dropout_out_of_range_is_an_error(dropout):
    with pytest.raises(UserError, match=rf"dropout={dropout}: must be >= 0 and < 1"):
        build_model("vgg11", (3, 32, 32), 10, dropout=dropout)


# ---------------------------------------------------------------------- names and sizes

SMALLEST = {
    "plain_cnn": 4,
    "lenet300": 1,
    "lenet5": 16,
    "alexnet": 17,
    **dict.fromkeys(VGGS, 17),
    "vgg_narrow": 4,
    "resnet18": 5,
    **dict.fromkeys(["resnet20", "resnet32", "resnet56", "wrn28_2"], 3),
    "vit_tiny": 4,
}


@pytest.mark.parametrize("name", OF_IMAGES)
def test_the_smallest_images_are_enough(name):
    size = SMALLEST[name]
    with torch.device("meta"):
        assert build_model(name, (1, size, size), 2)(torch.rand(3, 1, size, size)).shape == (3, 2)


@pytest.mark.parametrize("name", [name for name in OF_IMAGES if name not in {"lenet300", "vit_tiny"}])
def test_smaller_images_are_an_error_that_names_their_size(name):
    smallest = SMALLEST[name]
    for height, width in ((smallest - 1, 40), (40, smallest - 1), (1, 1)):
        message = rf"{name} .* needs at least {smallest}x{smallest} pixels, got {height}x{width}; lenet300 takes"
        with pytest.raises(UserError, match=message):
            build_model(name, (1, height, width), 10)


def test_an_unknown_model_is_an_error_that_suggests_the_nearest():
    with pytest.raises(UserError, match=r"unknown model 'plaincnn': did you mean 'plain_cnn'\? .* or package\.module:"):
        build_model("plaincnn", (1, 8, 8), 10)
