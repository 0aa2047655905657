"""Networks of every form that shrinking is to follow, with zeros in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.first = nn.Conv2d(12, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = x + self.second(functional.relu(self.norm(self.first(x))))
        return self.head(functional.relu(x).mean((2, 3)))


class Dense(nn.Module):
    """Concatenation, and layers after it that read parts of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.b = nn.Conv2d(8, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(14)
        self.c = nn.Conv2d(14, 10, 1, bias=False)
        self.head = nn.Linear(10 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = functional.relu(self.a(x))
        both = functional.relu(self.norm(torch.cat([a, self.b(a)], 1)))
        return self.head(torch.flatten(self.c(both).relu(), 1))


class Mobile(nn.Module):
    """Depthwise and grouped convolutions, squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 1)
        self.depthwise = nn.Conv2d(12, 24, 3, padding=1, groups=12)
        self.squeeze = nn.Conv2d(24, 6, 1)
        self.excite = nn.Conv2d(6, 24, 1)
        self.grouped = nn.Conv2d(24, 16, 3, groups=4)
        self.project = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.hardswish(self.depthwise(functional.relu6(self.expand(x))))
        scale = torch.sigmoid(self.excite(functional.relu(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))))
        x = functional.silu(self.grouped(x * scale))
        return self.head(functional.gelu(self.project(x)).amax((-2, -1)))


class Gated(nn.Module):
    """Halves of one layer, one the gate of the other, and heads as matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.query_key_value = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.gate = nn.Linear(8, 20)
        self.down = nn.Linear(10, 8, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        q, k, v = (
            part.view(*part.shape[:2], -1, 4).transpose(1, 2) for part in self.query_key_value(x).chunk(3, dim=-1)
        )
        weights = (q @ k.transpose(-2, -1) * 0.5).softmax(-1)
        x = self.norm(x + self.out((weights @ v).transpose(1, 2).flatten(2)))
        values, gates = self.gate(x).chunk(2, -1)
        return self.head((x + self.down(values * functional.silu(gates))).mean(1))


class Unet(nn.Module):
    """Down and up again: transposed convolution, interpolation, concatenation, slope per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.PReLU(8), nn.MaxPool2d(2))
        self.middle = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.last = nn.Conv2d(14, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        down = self.down(x)
        up = self.up(self.middle(down))
        wide = functional.interpolate(down, scale_factor=2.0, mode="nearest")
        return self.last(torch.cat([wide, up], 1))


class Twice(nn.Module):
    """A layer used twice, a tied weight, and a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 10)
        self.again = nn.Linear(10, 10)
        self.other = nn.Linear(10, 10)
        self.other.weight = self.again.weight
        self.unused = nn.Linear(9, 9)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = functional.elu(self.first(x))
        x = functional.relu(self.again(functional.relu(self.again(x))))
        logits = self.head(self.other(x).tanh())
        return {"logits": logits, "shares": logits.softmax(-1)}


class Series(nn.Module):
    """One dimension, and a channel axis that moves."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 10, 3, stride=2, padding=2, dilation=2)
        self.norm = nn.BatchNorm1d(10)
        self.mix = nn.Linear(10, 7)
        self.head = nn.Linear(7 * 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.leaky_relu(self.norm(self.conv(x)))
        x = torch.relu(self.mix(x.permute(0, 2, 1))).transpose(1, 2)
        return self.head(x.reshape(x.shape[0], -1))


NETWORKS = {
    "residual": (Residual, (2, 3, 8, 8)),
    "dense": (Dense, (2, 3, 8, 8)),
    "mobile": (Mobile, (2, 3, 8, 8)),
    "gated": (Gated, (2, 5)),
    "unet": (Unet, (2, 3, 8, 8)),
    "twice": (Twice, (2, 6)),
    "series": (Series, (2, 4, 12)),
}


def inputs_of(name: str, generator: torch.Generator) -> Tensor:
    """Random inputs of a network."""
    shape = NETWORKS[name][1]
    if name == "gated":
        return torch.randint(0, 11, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def with_zeros(model: nn.Module, generator: torch.Generator, share: float, *, silent: bool) -> nn.Module:
    """Rows and columns of zeros in every weight, never the first; if silent, no bias where a row is zero."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.normal_(generator=generator)
                module.bias.normal_(generator=generator)
                module.weight[torch.rand(len(module.weight), generator=generator) < share / 3] = 0
                if silent:
                    module.running_mean.zero_()
                    module.bias.zero_()
            if not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                continue
            weight, bias = module.weight, module.bias
            is_transposed = isinstance(module, nn.ConvTranspose2d)
            out_dim = 1 if is_transposed else 0
            if bias is not None:
                bias.normal_(generator=generator)
            rows = torch.rand(weight.shape[out_dim], generator=generator) < share
            columns = torch.rand(weight.shape[1 - out_dim], generator=generator) < share
            rows[0], columns[0] = False, False
            weight[(slice(None), rows) if is_transposed else rows] = 0
            weight[columns if is_transposed else (slice(None), columns)] = 0
            if silent and bias is not None:
                bias[rows] = 0
    return model.eval()


def zero(*tensors: Tensor) -> None:
    """Fill with zeros."""
    with torch.no_grad():
        for tensor in tensors:
            tensor.zero_()


def outputs_of(model: nn.Module, *inputs: Any) -> Tensor:
    """All outputs in a row."""
    with torch.no_grad():
        leaves = torch.utils._pytree.tree_leaves(model(*inputs))
    return torch.cat([x.flatten() for x in leaves])
