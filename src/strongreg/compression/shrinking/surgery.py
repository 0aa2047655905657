"""Cuts indices out of the parameters of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from strongreg.compression.shrinking.axes import Axis, Coupling
from strongreg.compression.shrinking.capture import Program, copied
from strongreg.compression.shrinking.operations import argument
from strongreg.compression.shrinking.plan import Fold


def cut(
    model: nn.Module,
    program: Program,
    coupling: Coupling,
    kept: Mapping[Axis, Tensor],
    folds: Mapping[fx.Node, Fold],
) -> nn.Module:
    """A copy of a network without some indices.

    Args:
        model: the network; it is not changed.
        program: its operations.
        coupling: the axes of its parameters.
        kept: for each axis that loses any the indices that stay, in order.
        folds: what is added to weights and biases before.

    Returns:
        An ordinary network of the same class; parameters train as before, without gradients.
    """
    model = copied(model)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    tensors |= dict(model.named_parameters(remove_duplicate=False))
    new = {name: tensor.detach() for name, tensor in tensors.items()}
    axes = {name: coupling.axes[node] for node, name in program.names.items()}
    for layer, fold in folds.items():
        weight = program.names[argument(layer, 1)]
        new[weight] = (new[weight].double() + fold.weight.to(new[weight].device)).to(new[weight].dtype)
        bias_node = argument(layer, 2, "bias", None)
        added = fold.bias.to(new[weight].device)
        if bias_node is not None:
            bias = program.names[bias_node]
            new[bias] = (new[bias].double() + added).to(new[bias].dtype)
        elif added.any():
            bias = f"{weight.rpartition('.')[0]}.bias".removeprefix(".")
            new[bias], axes[bias] = added.to(new[weight].dtype), axes[weight][:1]
            _set(model, bias, nn.Parameter(new[bias], requires_grad=tensors[weight].requires_grad))
            tensors[bias] = model.get_parameter(bias)
    for name, own in axes.items():
        for dim, axis in enumerate(own):
            if axis.root in kept:
                index = kept[axis.root].to(new[name].device)
                new[name] = new[name].index_select(dim, index)
    replaced: dict[int, Tensor] = {}
    for name in axes:
        if new[name].shape != tensors[name].shape or not torch.equal(new[name], tensors[name].detach()):
            old = tensors[name]
            replaced[id(old)] = _like(old, new[name])
    _replace(model, replaced)
    return model


def load_shrunk(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Give a network as it was before shrinking the sizes and weights of the shrunk one.

    So a shrunk network is kept without pickle: its state_dict in a packed or safetensors file, and the code that builds
    the network.

    Args:
        model: the network as its code builds it; it is changed.
        state: the state_dict of the shrunk network, such as :func:`strongreg.load_packed` returns.

    Returns:
        The same network, smaller.

    Raises:
        TypeError: ``state`` is no mapping, such as a path: read the file first.
        ValueError: the names do not fit, or a tensor is larger or has other axes than the network's.

    Example:
        >>> small = shrink(model, images)  # doctest: +SKIP
        >>> strongreg.save_packed(small, "small.packed")  # doctest: +SKIP
        >>> same = load_shrunk(build_model(), strongreg.load_packed("small.packed"))  # doctest: +SKIP
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state={state!r}: give the state_dict, such as strongreg.load_packed(path) returns")
    own = model.state_dict(keep_vars=True)
    missing = sorted(own.keys() - state.keys())
    new_biases = [name for name in state.keys() - own.keys() if _lacks_bias(model, name)]
    foreign = sorted(state.keys() - own.keys() - set(new_biases))
    if missing or foreign:
        first = f"it lacks {missing[0]!r}" if missing else f"it has {foreign[0]!r}, which the network has not"
        raise ValueError(f"the state_dict is not that of a shrunk {type(model).__name__}: {first}")
    own = {name: tensor for name, tensor in own.items() if isinstance(tensor, Tensor)}  # no get_extra_state
    for name, tensor in own.items():
        shape, new = tuple(tensor.shape), tuple(state[name].shape)
        if len(shape) != len(new) or any(a < b for a, b in zip(shape, new, strict=True)):
            raise ValueError(
                f"{name!r} has shape {new} in the state_dict and {shape} in the network: "
                "build the network as it was before it was shrunk"
            )
    replaced: dict[int, Tensor] = {}
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            replaced[id(tensor)] = _like(
                tensor, torch.empty_like(state[name], dtype=tensor.dtype, device=tensor.device)
            )
    for name in new_biases:
        weight = own[f"{name.removesuffix('bias')}weight"]
        empty = torch.empty(state[name].shape, dtype=weight.dtype, device=weight.device)
        _set(model, name, nn.Parameter(empty, weight.requires_grad))
    _replace(model, replaced)
    model.load_state_dict(dict(state))
    return model


def _like(old: Tensor, new: Tensor) -> Tensor:
    """A tensor in another's place: a parameter if that is one, in its order of elements, with what code hung on it."""
    if old.dim() == 4 and not old.is_contiguous() and old.is_contiguous(memory_format=torch.channels_last):
        new = new.contiguous(memory_format=torch.channels_last)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, old.requires_grad)
    new.__dict__.update(old.__dict__)
    return new


def _lacks_bias(model: nn.Module, name: str) -> bool:
    """Whether it is the bias of a layer that has been built without, which a fold has given it."""
    path, _, last = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return False
    return last == "bias" and isinstance(module, nn.Linear | _ConvNd) and module.bias is None


def _replace(model: nn.Module, replaced: Mapping[int, Tensor]) -> None:
    """Put new tensors where the old ones are, which are named by their identity."""
    for module in model.modules():
        stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for store in stores:
            for name, tensor in store.items():
                store[name] = replaced.get(id(tensor), tensor)
        _resize(module)


def _set(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, parameter)


def _resize(module: nn.Module) -> None:
    """Let a module's own numbers say what its parameters are."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _ConvTransposeNd):
        module.in_channels, module.out_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
    elif isinstance(module, _ConvNd):
        num_outputs, num_columns = module.weight.shape[:2]
        per_group = module.out_channels // module.groups
        is_cut_within = num_columns != module.in_channels // module.groups or num_outputs % per_group
        # whole groups go, until one is left: that is an ordinary convolution, of which anything may go
        module.groups = 1 if is_cut_within else num_outputs // per_group
        module.in_channels, module.out_channels = num_columns * module.groups, num_outputs
    elif isinstance(module, _NormBase):
        of_channels = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if of_channels is None else len(of_channels)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
