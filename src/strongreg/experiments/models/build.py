"""Builds a network by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from strongreg.experiments.data import InputShape
from strongreg.experiments.errors import UserError, check_known
from strongreg.experiments.models.decoder import decoder
from strongreg.experiments.models.inputs import kind_of
from strongreg.experiments.models.plain import alexnet, lenet5, lenet300, plain_cnn
from strongreg.experiments.models.residual import resnet18, resnet_cifar, wide_resnet
from strongreg.experiments.models.transformer import vit_tiny
from strongreg.experiments.models.user import build_user_model
from strongreg.experiments.models.vgg import NORMS, vgg, vgg_narrow


@dataclass(frozen=True)
class Network:
    """A network that can be built by name.

    Args:
        factory: called with input shape, number of classes and the options given.
        options: names of the options it takes.
        reads: "images" or "text".
    """

    factory: Callable[..., nn.Module]
    options: tuple[str, ...] = ()
    reads: str = "images"


MODELS: dict[str, Network] = {
    "plain_cnn": Network(plain_cnn),
    "lenet300": Network(lenet300),
    "lenet5": Network(lenet5),
    "alexnet": Network(alexnet),
    "vgg11": Network(partial(vgg, 11), ("norm", "dropout")),
    "vgg13": Network(partial(vgg, 13), ("norm", "dropout")),
    "vgg16": Network(partial(vgg, 16), ("norm", "dropout")),
    "vgg19": Network(partial(vgg, 19), ("norm", "dropout")),
    "vgg_narrow": Network(vgg_narrow, ("dropout",)),
    "resnet18": Network(resnet18),
    "resnet20": Network(partial(resnet_cifar, 20)),
    "resnet32": Network(partial(resnet_cifar, 32)),
    "resnet56": Network(partial(resnet_cifar, 56)),
    "wrn28_2": Network(partial(wide_resnet, 28, 2)),
    "vit_tiny": Network(vit_tiny),
    "decoder": Network(decoder, ("width", "depth", "tied", "dropout"), reads="text"),
}


def build_model(
    name: str,
    input_shape: InputShape,
    num_classes: int,
    *,
    norm: str | None = None,
    dropout: float | None = None,
    width: int | None = None,
    depth: int | None = None,
    tied: bool | None = None,
) -> nn.Module:
    """Build a freshly initialized network.

    The same seed of torch builds the same network. Initial weights are He-normal, by inputs without normalization and
    by outputs with batch normalization, and truncated normal for transformers; a network of the user's own keeps the
    weights it comes with.

    Args:
        name: a name in ``MODELS``, or ``package.module:factory`` for a network of the user's own.
        input_shape: channels, height, width of an image; or the bytes of a passage of text.
        num_classes: number of outputs.
        norm: "none" or "batch", for networks that take it; None for the network's own choice.
        dropout: share of neurons that are dropped, in [0, 1), for networks that take it; None for the network's own
            choice.
        width: dimensions of a token, for decoder.
        depth: number of blocks, for decoder.
        tied: whether the last layer is the embedding, for decoder.

    Returns:
        The network; it maps (batch, channels, height, width) to (batch, num_classes), or tokens of shape (batch,
        tokens) to (batch, tokens, num_classes).

    Raises:
        UserError: the name is unknown, the data do not fit the network, an option does not fit it or is out of range,
            or the user's own network does not do what it must.
    """
    options = {"norm": norm, "dropout": dropout, "width": width, "depth": depth, "tied": tied}
    given = {option: value for option, value in options.items() if value is not None}
    if ":" in name:
        _check_options(name, given, ())
        return build_user_model(name, input_shape, num_classes)
    try:
        check_known("model", name, MODELS)
    except UserError as error:
        raise UserError(f"{error}, or package.module:factory for a network of your own") from None
    _check_options(name, given, MODELS[name].options)
    if norm is not None:
        check_known("norm", norm, NORMS)
    if dropout is not None and not 0 <= dropout < 1:
        raise UserError(f"dropout={dropout!r}: must be >= 0 and < 1")
    network, kind = MODELS[name], kind_of(input_shape)
    if network.reads != kind:
        readers = ", ".join(other for other, known in MODELS.items() if known.reads == kind)
        raise UserError(f"model {name!r} reads {network.reads}, and the data are {kind}: choose one of {readers}")
    return network.factory(input_shape, num_classes, **given)


def _check_options(name: str, given: Mapping[str, object], taken: tuple[str, ...]) -> None:
    for option, value in given.items():
        if option not in taken:
            takers = ", ".join(other for other, network in MODELS.items() if option in network.options)
            raise UserError(f"{option}={value!r}: {name} does not take it; leave it out, or choose one of {takers}")
