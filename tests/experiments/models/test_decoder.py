"""The decoder: size, attention to what came before, positions, and initial weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from strongreg import L1
from strongreg.experiments.errors import UserError
from strongreg.experiments.models import MODELS, build_model
from strongreg.groups import select_targets

CONTEXT, NUM_TOKENS = 24, 50


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return build_model("decoder", (CONTEXT,), NUM_TOKENS, width=64, depth=2).eval().requires_grad_(False)


def _tokens(batch_size: int = 3, length: int = CONTEXT) -> torch.Tensor:
    return torch.randint(NUM_TOKENS, (batch_size, length))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("width", "depth", "hidden"), [(128, 4, 344), (32, 1, 88), (96, 3, 256)])
def test_it_has_the_parameters_counted_by_hand(width, depth, hidden, tied):
    model = build_model("decoder", (CONTEXT,), 256, width=width, depth=depth, tied=tied)
    block = 4 * width**2 + 3 * width * hidden + 2 * width
    expected = depth * block + width + (1 if tied else 2) * 256 * width
    assert sum(p.numel() for p in model.parameters()) == expected


def test_the_sizes_in_the_documentation_are_right():
    sizes = [sum(p.numel() for p in build_model("decoder", (8,), 256, tied=x).parameters()) for x in (False, True)]
    assert sizes == [857_216, 824_448]


def test_it_foretells_each_token_from_those_before(model):
    tokens = _tokens()
    outputs = model(tokens)
    assert outputs.shape == (3, CONTEXT, NUM_TOKENS)
    for place in (0, 7, CONTEXT - 1):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % NUM_TOKENS
        others = model(changed)
        torch.testing.assert_close(others[:, :place], outputs[:, :place])
        assert (others[:, place:] - outputs[:, place:]).abs().amax(dim=2).min() > 0


def test_a_shorter_text_is_answered_as_the_beginning_of_a_longer_one(model):
    tokens = _tokens()
    torch.testing.assert_close(model(tokens[:, :10]), model(tokens)[:, :10])


def _rotated(x: torch.Tensor, place: int) -> torch.Tensor:
    """Pairs of dimensions i and i + half as complex numbers, turned by place / 10000^(i / half)."""
    half = len(x) // 2
    turned = [
        complex(x[i], x[i + half]) * complex(math.cos(angle), math.sin(angle))
        for i, angle in enumerate(place / 10_000 ** (torch.arange(half) / half))
    ]
    return torch.tensor([z.real for z in turned] + [z.imag for z in turned])


def test_attention_is_that_written_out_token_by_token(model):
    attention = model.get_submodule("blocks.0.attention")
    x = torch.randn(1, 5, 64)
    query, key, value = (part.view(5, 2, 32) for part in attention.query_key_value(x)[0].chunk(3, dim=1))
    rows = []
    for t in range(5):
        heads = []
        for head in range(2):
            scores = torch.stack(
                [_rotated(query[t, head], t) @ _rotated(key[s, head], s) / math.sqrt(32) for s in range(t + 1)]
            )
            heads.append(scores.softmax(dim=0) @ value[: t + 1, head])
        rows.append(torch.cat(heads))
    expected = attention.out(torch.stack(rows))
    found = attention(x, (model.cosines[:5], model.sines[:5]))[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_gated_layer_is_swiglu(model):
    layer = model.get_submodule("blocks.1.mlp")
    x = torch.randn(4, 64)
    gate, up = x @ layer.gate.weight.T, x @ layer.up.weight.T
    torch.testing.assert_close(layer(x), (gate * gate.sigmoid() * up) @ layer.out.weight.T)


def test_initial_weights_are_normal_and_smaller_where_they_add_to_the_stream(model):
    for name, param in model.named_parameters():
        if param.dim() < 2:
            assert (param == 1).all()
        else:
            spread = 0.02 / 2 if name.endswith("out.weight") else 0.02  # of 2 blocks that add twice each
            assert param.std().item() == pytest.approx(spread, rel=0.1)
    loss = functional.cross_entropy(model(_tokens()).flatten(0, 1), _tokens().flatten())
    assert loss.item() == pytest.approx(math.log(NUM_TOKENS), rel=0.02)


def test_a_tied_last_layer_is_the_embedding():
    model = build_model("decoder", (CONTEXT,), NUM_TOKENS, width=32, depth=1, tied=True)
    assert model.head.weight is model.embedding.weight


def test_penalties_act_on_the_linear_layers_and_leave_embeddings_tied_ones_too():
    for tied in (False, True):
        model = build_model("decoder", (CONTEXT,), NUM_TOKENS, width=32, depth=1, tied=tied)
        block = [f"blocks.0.{name}.weight" for name in ("attention.out", "attention.query_key_value")]
        block += [f"blocks.0.mlp.{name}.weight" for name in ("gate", "out", "up")]
        names = sorted(target.name for target in select_targets(model, L1(1e-3)))
        assert names == block + ([] if tied else ["head.weight"])


def test_dropout_acts_in_training_alone():
    model = build_model("decoder", (CONTEXT,), NUM_TOKENS, width=32, depth=1, dropout=0.5)
    tokens = _tokens()
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_the_same_seed_builds_the_same_network():
    built = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        model = build_model("decoder", (CONTEXT,), NUM_TOKENS, width=32, depth=1)
        built.append(nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(built[0], built[1])
    assert not torch.equal(built[0], built[2])


@pytest.mark.parametrize("width", [16, 100])
def test_a_width_that_makes_no_whole_heads_is_an_error(width):
    with pytest.raises(UserError, match=rf"model\.width={width}: decoder has heads of 32 dimensions; give a multiple"):
        build_model("decoder", (CONTEXT,), NUM_TOKENS, width=width)


def test_networks_of_images_do_not_read_text_nor_the_other_way_round():
    with pytest.raises(UserError, match=r"'lenet300' reads images, and the data are text: choose one of decoder$"):
        build_model("lenet300", (CONTEXT,), NUM_TOKENS)
    with pytest.raises(UserError, match=r"'decoder' reads text, and the data are images: choose one of plain_cnn, "):
        build_model("decoder", (1, 8, 8), 10)


@pytest.mark.parametrize("option", ["width", "depth", "tied"])
def test_the_options_are_of_the_decoder_alone(option):
    for name in set(MODELS) - {"decoder"}:
        with pytest.raises(UserError, match=rf"{option}=1: {name} does not take it; .* choose one of decoder$"):
            build_model(name, (3, 32, 32), 10, **{option: 1})
