"""A small decoder-only transformer: after each token of a text it says which follows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from strongreg.experiments.errors import UserError
from strongreg.experiments.models.initialization import truncated_normal

_WIDTH, _DEPTH, _HEAD = 128, 4, 32
_HIDDEN = 8 / 3  # times the width: three matrices of it have the weights of the usual two of four times the width
_HIDDEN_MULTIPLE = 8
_BASE = 10_000.0  # of the wavelengths of rotary positions
_STD = 0.02
_EPS = 1e-6


def decoder(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: int = _WIDTH,
    depth: int = _DEPTH,
    tied: bool = False,
    dropout: float = 0.0,
) -> nn.Module:
    """Blocks of causal attention and a gated layer, normalization first in each, rotary positions, no biases.

    With 256 tokens, 128 dimensions and 4 blocks it has 857,216 parameters; 824,448 with the embedding tied to the last
    layer.

    Args:
        input_shape: the most tokens that it sees at a time.
        num_classes: number of tokens that there are.
        width: dimensions of a token, a multiple of 32: that many in a head.
        depth: number of blocks.
        tied: whether the last layer is the embedding.
        dropout: share of what each block adds that is dropped, in [0, 1).

    Returns:
        The network; it maps tokens of shape (batch, tokens), int64, to (batch, tokens, num_classes). Weights are
        :func:`truncated_normal`, those that add to the residual stream smaller by the root of their number.

    Raises:
        UserError: the width cannot be divided into heads.

    References:
        Radford et al.: Language Models are Unsupervised Multitask Learners, 2019, for the initial weights. Su et al.:
        RoFormer, arXiv 2104.09864. Shazeer: GLU Variants Improve Transformer, arXiv 2002.05202. Zhang, Sennrich: Root
        Mean Square Layer Normalization, arXiv 1910.07467.
    """
    if width % _HEAD:
        raise UserError(f"model.width={width}: decoder has heads of {_HEAD} dimensions; give a multiple of {_HEAD}")
    model = _Decoder(input_shape[0], num_classes, width, depth, dropout)
    truncated_normal(model, _STD)
    for module in model.modules():
        if isinstance(module, _Attention | _GatedLayer):
            nn.init.trunc_normal_(module.out.weight, std=_STD / (2 * depth) ** 0.5)
    if tied:
        model.head.weight = model.embedding.weight
    return model


class _Decoder(nn.Module):
    cosines: Tensor
    sines: Tensor

    def __init__(self, context: int, num_tokens: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width)
        self.blocks = nn.ModuleList([_Block(width, dropout) for _ in range(depth)])
        self.norm = nn.RMSNorm(width, eps=_EPS)
        self.head = nn.Linear(width, num_tokens, bias=False)
        wavelengths = _BASE ** (torch.arange(0, _HEAD, 2) / _HEAD)
        angles = torch.arange(context)[:, None] / wavelengths
        # (token, dimension of a head), the first half of which turns with the second
        self.register_buffer("cosines", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sines", angles.sin().repeat(1, 2), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = (self.cosines[: tokens.shape[1]], self.sines[: tokens.shape[1]])
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, positions)
        outputs: Tensor = self.head(self.norm(x))
        return outputs


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=_EPS)
        self.attention = _Attention(width)
        self.norm2 = nn.RMSNorm(width, eps=_EPS)
        self.mlp = _GatedLayer(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
        attended: Tensor = x + self.dropout(self.attention(self.norm1(x), positions))
        outputs: Tensor = attended + self.dropout(self.mlp(self.norm2(attended)))
        return outputs


class _Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
        # (text, token, 3, head, dimension); as many heads as there are, so that some can be removed
        heads = self.query_key_value(x).unflatten(2, (3, -1, _HEAD))
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind()
        attended = functional.scaled_dot_product_attention(
            _rotate(query, positions), _rotate(key, positions), value, is_causal=True
        )
        outputs: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return outputs


def _rotate(x: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
    cosines, sines = positions
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat([-second, first], dim=-1) * sines


class _GatedLayer(nn.Module):
    """SwiGLU: a linear layer gated by the SiLU of another, and one back to the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = round(_HIDDEN * width / _HIDDEN_MULTIPLE) * _HIDDEN_MULTIPLE
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.out(functional.silu(self.gate(x)) * self.up(x))
        return outputs
