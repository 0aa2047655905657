"""The vision transformer: size, attention, positions and initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from strongreg.experiments.errors import UserError
from strongreg.experiments.models import build_model


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_model("vit_tiny", (3, 32, 32), 10).eval()


@pytest.mark.parametrize(
    ("image_shape", "num_classes"), [((3, 32, 32), 10), ((1, 28, 28), 10), ((3, 32, 32), 100), ((3, 8, 12), 10)]
)
def test_it_has_the_parameters_counted_by_hand(image_shape, num_classes):
    channels, height, width = image_shape
    tokens = (channels * 16 * 192 + 192) + 192 + (1 + height * width // 16) * 192  # patches, class token, positions
    attention = (192 * 3 * 192 + 3 * 192) + (192 * 192 + 192)
    mlp = (192 * 768 + 768) + (768 * 192 + 192)
    expected = tokens + 12 * (attention + mlp + 2 * (2 * 192)) + 2 * 192 + (192 * num_classes + num_classes)
    with torch.device("meta"):
        model = build_model("vit_tiny", image_shape, num_classes)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_the_size_in_the_documentation_is_right(model):
    # blocks of 5.34 M as in DeiT-Ti (5.7 M with its larger patches and 1000 classes), arXiv 2012.12877, table 1
    assert sum(p.numel() for p in model.parameters()) == 5_362_762
    assert sum(p.numel() for p in model.get_submodule("blocks").parameters()) == 12 * 444_864


def test_attention_is_that_of_torch(model):
    ours = model.get_submodule("blocks.0.attention")
    theirs = nn.MultiheadAttention(192, 3, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.query_key_value.weight,
            "in_proj_bias": ours.query_key_value.bias,
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    x = torch.randn(2, 5, 192)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


def test_positions_matter(model):
    images = torch.rand(1, 3, 32, 32)
    moved = images.roll(4, dims=3)  # the same patches in another order
    assert not torch.allclose(model(images), model(moved), atol=1e-6)
    positions = model.get_parameter("positions.weight")
    before = positions.detach().clone()
    with torch.no_grad():
        positions[1:] = 0
        torch.testing.assert_close(model(images), model(moved))
        positions.copy_(before)


def test_weights_are_truncated_normal_biases_zero_and_normalizations_one(model):
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            error = (2 / module.weight.numel()) ** 0.5
            assert module.weight.std().item() == pytest.approx(0.02, rel=2 * error)
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
        if getattr(module, "bias", None) is not None:
            assert (module.bias == 0).all()
    assert 0 < model.get_parameter("class_token").std() < 0.03


@pytest.mark.parametrize("size", [(14, 28), (28, 30), (3, 3), (0, 4)])
def test_images_that_cannot_be_cut_into_patches_are_an_error_that_names_their_size(size):
    with pytest.raises(UserError, match=rf"vit_tiny .* multiples of 4, got {size[0]}x{size[1]}; choose .* vgg_narrow"):
        build_model("vit_tiny", (1, *size), 10)
