"""A vision transformer for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from strongreg.experiments.errors import UserError
from strongreg.experiments.models.initialization import truncated_normal
from strongreg.experiments.models.inputs import ImageShape

_PATCH = 4
_DIM, _DEPTH, _NUM_HEADS, _MLP_RATIO = 192, 12, 3, 4
_EPS = 1e-6
_STD = 0.02


def vit_tiny(image_shape: ImageShape, num_classes: int) -> nn.Module:
    """The vision transformer "tiny" on patches of 4x4 pixels: 12 blocks of 192 dimensions and 3 heads.

    Normalization comes first in each block; positions and a class token are learned. It has 5,362,762 parameters on
    3x32x32 with 10 classes.

    Args:
        image_shape: channels, height, width; multiples of 4 pixels.
        num_classes: number of outputs.

    Returns:
        The network, with :func:`truncated_normal` weights. No penalty acts on positions and class token by default.

    Raises:
        UserError: the images cannot be cut into patches.

    References:
        Dosovitskiy et al.: An Image is Worth 16x16 Words, arXiv 2010.11929. Touvron et al.: Training data-efficient
        image transformers, arXiv 2012.12877, for "tiny".
    """
    channels, height, width = image_shape
    if min(height, width) < _PATCH or height % _PATCH or width % _PATCH:
        raise UserError(
            f"vit_tiny cuts the image into patches of {_PATCH}x{_PATCH} pixels and needs multiples of {_PATCH}, "
            f"got {height}x{width}; choose a convolutional network such as vgg_narrow"
        )
    model = _VisionTransformer(channels, (height // _PATCH) * (width // _PATCH), num_classes)
    nn.init.trunc_normal_(model.class_token, std=_STD)
    return truncated_normal(model, _STD)


class _VisionTransformer(nn.Module):
    def __init__(self, channels: int, num_patches: int, num_classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, _DIM, _PATCH, stride=_PATCH)
        # one dimension, and an embedding: what no penalty acts on by default
        self.class_token = nn.Parameter(torch.zeros(_DIM))
        self.positions = nn.Embedding(1 + num_patches, _DIM)
        self.blocks = nn.Sequential(*[_Block() for _ in range(_DEPTH)])
        self.norm = nn.LayerNorm(_DIM, eps=_EPS)
        self.head = nn.Linear(_DIM, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(images.shape[0], 1, -1), patches], dim=1)
        outputs: Tensor = self.head(self.norm(self.blocks(tokens + self.positions.weight)[:, 0]))
        return outputs


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(_DIM, eps=_EPS)
        self.attention = _Attention()
        self.norm2 = nn.LayerNorm(_DIM, eps=_EPS)
        self.mlp = nn.Sequential(nn.Linear(_DIM, _MLP_RATIO * _DIM), nn.GELU(), nn.Linear(_MLP_RATIO * _DIM, _DIM))

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = x + self.attention(self.norm1(x))
        outputs: Tensor = attended + self.mlp(self.norm2(attended))
        return outputs


class _Attention(nn.Module):
    """Self-attention; its weights are linear layers, so that penalties and pruning see them as any other."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(_DIM, 3 * _DIM)
        self.out = nn.Linear(_DIM, _DIM)

    def forward(self, x: Tensor) -> Tensor:
        # (image, token, 3, head, dimension); as many heads as there are, so that some can be removed
        heads = self.query_key_value(x).unflatten(2, (3, -1, _DIM // _NUM_HEADS))
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind()
        attended = functional.scaled_dot_product_attention(query, key, value)
        outputs: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return outputs
