"""The networks of the speed benchmarks, with gradients that stay. Not a command of its own."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from torch import Tensor, nn

from strongreg.experiments.models import build_model

GRADIENT_SIZE = 1e-2  # per weight: a network's at the beginning of its training
_WIDTH, _VOCABULARY, _CONTEXT, _NUM_BLOCKS = 768, 50257, 1024, 12


class Transformer(nn.Module):
    """The weights of GPT-2 small, 124 M, without the rest: all matrices are penalized, the embeddings too."""

    def __init__(self) -> None:
        super().__init__()
        shapes: list[tuple[int, ...]] = [(_VOCABULARY, _WIDTH), (_CONTEXT, _WIDTH)]
        for _ in range(_NUM_BLOCKS):
            for inputs, outputs in ((1, 3), (1, 1), (1, 4), (4, 1)):
                shapes += [(outputs * _WIDTH, inputs * _WIDTH), (outputs * _WIDTH,)]
            shapes += [(_WIDTH,)] * 4
        shapes += [(_WIDTH,)] * 2
        self.params = nn.ParameterList([nn.Parameter(0.02 * torch.randn(shape)) for shape in shapes])


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lenet300": lambda: build_model("lenet300", (1, 28, 28), 10),
    "resnet18": lambda: build_model("resnet18", (3, 32, 32), 10),
    "vgg16": lambda: build_model("vgg16", (3, 32, 32), 10),
    "vit_tiny": lambda: build_model("vit_tiny", (3, 32, 32), 10),
    "transformer-124m": Transformer,
}


def build(name: str, device: torch.device) -> nn.Module:
    """The network on its device, with random gradients; what was there before it is gone."""
    gc.collect()
    torch.manual_seed(0)
    model = NETWORKS[name]().to(device)
    add_gradients(model)
    return model


def add_gradients(model: nn.Module) -> None:
    """Give every parameter a random gradient."""
    for param in model.parameters():
        param.grad = torch.empty_like(param).normal_(0, GRADIENT_SIZE)


class Restorer:
    """Sets weights and gradients back to what they were; takes as much memory again."""

    def __init__(self, model: nn.Module) -> None:
        self.params = list(model.parameters())
        self.gradients: list[Tensor] = [param.grad for param in self.params if param.grad is not None]
        self._kept_params = [param.detach().clone() for param in self.params]
        self._kept_gradients = [gradient.clone() for gradient in self.gradients]

    @torch.no_grad()
    def restore_weights(self) -> None:
        """Copy the weights back: two words per weight are moved."""
        torch._foreach_copy_(self.params, self._kept_params)

    @torch.no_grad()
    def restore_gradients(self) -> None:
        """Copy the gradients back."""
        torch._foreach_copy_(self.gradients, self._kept_gradients)

    def restore(self) -> None:
        """Both."""
        self.restore_weights()
        self.restore_gradients()

    @torch.no_grad()
    def multiply_by_1(self) -> None:
        """Read every weight and write it back: two words per weight, in place."""
        torch._foreach_mul_(self.params, 1.0)
