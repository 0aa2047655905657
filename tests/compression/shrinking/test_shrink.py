"""A shrunk network computes what the given one does, and is an ordinary network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compression.shrinking.networks import NETWORKS, inputs_of, outputs_of, with_zeros, zero
from strongreg.compression import ShrinkError, shrink, shrink_and_report
from strongreg.compression.shrinking.capture import capture
from strongreg.compression.shrinking.check import Check
from strongreg.compression.shrinking.shrink import _Work
from strongreg.experiments.models import MODELS, build_model
from strongreg.experiments.models.inputs import example_inputs

_BETWEEN_SMALLER_AND_LARGER = ("vgg13", "vgg16", "resnet32")  # of the same code


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("seed", range(2))
def test_a_shrunk_network_computes_the_same(name, silent, dtype, tolerance, seed):
    generator = torch.Generator().manual_seed(seed)
    model = with_zeros(NETWORKS[name][0](), generator, 0.4, silent=silent).to(dtype)

    def inputs():
        drawn = inputs_of(name, generator)
        return drawn.to(dtype) if drawn.is_floating_point() else drawn

    shrunk, report = shrink_and_report(model, inputs())
    # where a layer is used twice, its outputs are its inputs: an index goes only if all is zero there
    assert name == "twice" or report.num_parameters[1] < report.num_parameters[0]
    # where one head is left, its dimensions seem to be free, and are not
    assert name == "gated" or not [x for x in report.left if "code" in x.reason], report
    fresh = inputs()
    expected = outputs_of(model, fresh)
    torch.testing.assert_close(
        outputs_of(shrunk, fresh), expected, rtol=0, atol=tolerance * float(expected.abs().max())
    )


def test_weights_of_a_layer_used_twice_and_of_a_tied_one_go_together():
    model = NETWORKS["twice"][0]()
    with torch.no_grad():
        for layer in (model.first, model.again, model.other):
            layer.weight[2:5] = 0
            layer.bias[2:5] = 0
    inputs = torch.randn(4, 6)
    shrunk, report = shrink_and_report(model.eval(), inputs)
    assert shrunk.again.weight.shape == (7, 7)
    assert shrunk.other.weight is shrunk.again.weight
    assert shrunk.unused.weight.shape == (9, 9)
    torch.testing.assert_close(outputs_of(shrunk, inputs), outputs_of(model, inputs))
    assert report.left == ()


def test_gradients_of_the_kept_weights_are_the_same():
    """With no constant but 0 left behind, each kept weight has the gradient that it had."""
    for name in ("residual", "dense", "gated", "series"):
        generator = torch.Generator().manual_seed(3)
        model = with_zeros(NETWORKS[name][0](), generator, 0.4, silent=True).double()
        inputs = inputs_of(name, generator)
        inputs = inputs.double() if inputs.is_floating_point() else inputs
        check = Check(model, (inputs,))
        work = _Work(model, check.model, capture(model, (inputs,)), check, (inputs,))
        step = work.best()
        shrunk = step.model
        assert step.going
        assert not step.failed
        gone = {member for i in step.going for member in work.plan.classes[i]}
        for network in (model, shrunk):
            network.zero_grad()
            outputs = network(inputs)
            outputs.backward(torch.randn(outputs.shape, generator=torch.Generator().manual_seed(4)).double())
        for node, parameter_name in work.program.names.items():
            if parameter_name not in dict(model.named_parameters()):
                continue
            expected = model.get_parameter(parameter_name).grad
            for dim, axis in enumerate(work.coupling.axes[node]):
                stays = torch.tensor([i for i in range(axis.size) if (axis.root, i) not in gone])
                expected = expected.index_select(dim, stays)
            torch.testing.assert_close(shrunk.get_parameter(parameter_name).grad, expected, rtol=1e-10, atol=1e-12)


def test_heads_of_attention_without_outgoing_weights_go():
    torch.manual_seed(0)
    model = build_model("vit_tiny", (3, 8, 8), 5).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.out.weight[:, 64:128] = 0  # the second of three heads
    images = torch.randn(2, 3, 8, 8)
    shrunk, _ = shrink_and_report(model, images)
    assert all(block.attention.query_key_value.weight.shape == (384, 192) for block in shrunk.blocks)
    torch.testing.assert_close(outputs_of(shrunk, images), outputs_of(model, images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in _BETWEEN_SMALLER_AND_LARGER])
def test_every_network_of_the_experiments_shrinks(name):
    generator = torch.Generator().manual_seed(0)
    shape = (3, 32, 32) if name == "alexnet" or name.startswith("vgg") else (3, 16, 16)
    if MODELS[name].reads == "text":
        shape = (24,)
    model = build_model(name, shape, 10)
    model = with_zeros(model, generator, 0.3, silent=False)
    images = example_inputs(2, shape, 10, generator)
    shrunk, report = shrink_and_report(model, images[:1])
    assert report.num_parameters[1] < report.num_parameters[0]
    assert report.flops[1] < report.flops[0]
    assert not [x for x in report.left if "code" in x.reason]
    assert type(shrunk) is type(model)
    assert report.num_parameters == tuple(sum(p.numel() for p in m.parameters()) for m in (model, shrunk))
    expected = outputs_of(model, images)
    torch.testing.assert_close(outputs_of(shrunk, images), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


# ---------------------------------------------------------------------- what is given, and what comes back


def test_the_network_given_is_not_changed_and_mode_and_training_flags_are_kept():
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3))
    zero(model[0].weight[:2], model[0].bias[:2])
    model[0].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    shrunk = shrink(model, torch.zeros(1, 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model[0].out_features == 6
    assert (shrunk[0].in_features, shrunk[0].out_features, shrunk[2].in_features) == (4, 4, 4)
    assert shrunk.training
    assert shrunk[1].training
    assert [p.requires_grad for p in shrunk.parameters()] == [True, False, True, True]
    shrunk(torch.randn(8, 4)).sum().backward()
    torch.optim.SGD(shrunk.parameters(), 0.1).step()


def test_the_numbers_of_every_kind_of_layer_say_what_it_is():
    for name in ("mobile", "unet", "gated"):
        generator = torch.Generator().manual_seed(0)
        model = with_zeros(NETWORKS[name][0](), generator, 0.5, silent=True)
        for module in shrink(model, inputs_of(name, generator)).modules():
            if isinstance(module, nn.modules.conv._ConvNd):
                outputs, inputs = module.weight.shape[:2]
                if isinstance(module, nn.ConvTranspose2d):
                    outputs, inputs = inputs, outputs
                assert (module.out_channels, module.in_channels) == (outputs, inputs * module.groups)
            elif isinstance(module, nn.Linear):
                assert (module.out_features, module.in_features) == tuple(module.weight.shape)
            elif isinstance(module, nn.BatchNorm2d | nn.PReLU):
                assert len(module.weight) in (
                    getattr(module, "num_features", -1),
                    getattr(module, "num_parameters", -1),
                )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_of_other_dtypes_keep_them(dtype):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4, 3)).to(dtype)
    zero(model[0].weight[:2])
    images = torch.randn(2, 1, 4, 4).to(dtype)
    shrunk = shrink(model, images)
    assert {p.dtype for p in shrunk.parameters()} == {dtype}
    assert shrunk[0].weight.shape[0] == 2
    torch.testing.assert_close(shrunk(images), model(images), rtol=0, atol=1e-2 if dtype is torch.bfloat16 else 1e-12)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(2, 6), nn.Linear(6, 2)

    def forward(self, pair, scale):
        first, second = pair
        return self.c((self.a(first) + self.b(second)).relu() * scale)


def test_several_and_nested_inputs():
    model = Two().eval()
    zero(model.a.weight[:2], model.b.weight[:3], model.a.bias, model.b.bias)
    inputs = ((torch.randn(4, 3), torch.randn(4, 2)), torch.tensor(3.0))
    shrunk, _ = shrink_and_report(model, inputs)
    assert shrunk.a.weight.shape == (4, 3)
    torch.testing.assert_close(shrunk(*inputs), model(*inputs))


def test_a_network_that_cannot_be_followed_is_an_error_that_says_why():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ShrinkError, match=r"torch\.export cannot follow Branches on these inputs: "):
        shrink(Branches(), torch.zeros(1, 4))
    with pytest.raises(ShrinkError, match=r"torch\.export cannot follow Linear"):
        shrink(nn.Linear(4, 2), torch.zeros(1, 5))
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    with pytest.raises(ShrinkError, match="weight holds NaN or infinity"):
        shrink(model, torch.zeros(1, 4))


def test_one_example_without_an_axis_for_the_batch():
    for model, inputs in (
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(4)),
        (nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(0), nn.Linear(24, 2)), torch.randn(3, 4, 4)),
    ):
        zero(model[0].weight[2:4], model[0].bias[2:3])
        shrunk = shrink(model.eval(), inputs)
        assert len(shrunk[0].weight) == len(model[0].weight) - 2
        torch.testing.assert_close(outputs_of(shrunk, inputs), outputs_of(model, inputs))


@pytest.mark.parametrize("outputs", [True, False])
def test_heads_of_causal_attention_go(outputs):
    """With rotary positions; by zeros of what reads a head, or of what makes its values."""
    torch.manual_seed(0)
    model = build_model("decoder", (16,), 256, width=96, depth=2).eval()
    with torch.no_grad():
        for block in model.blocks:
            if outputs:
                block.attention.out.weight[:, 32:64] = 0  # the second of three heads
            else:
                block.attention.query_key_value.weight[2 * 96 + 32 : 2 * 96 + 64] = 0
    tokens = torch.randint(256, (2, 16))
    shrunk, report = shrink_and_report(model, tokens)
    assert all(block.attention.query_key_value.weight.shape == (192, 96) for block in shrunk.blocks), report
    assert all(block.attention.out.weight.shape == (96, 64) for block in shrunk.blocks)
    torch.testing.assert_close(outputs_of(shrunk, tokens), outputs_of(model, tokens), rtol=0, atol=1e-5)
    longer = torch.randint(256, (3, 9))
    torch.testing.assert_close(outputs_of(shrunk, longer), outputs_of(model, longer), rtol=0, atol=1e-5)
