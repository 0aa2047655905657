"""Which parameters get which penalty: by default the weights, otherwise by patterns on names."""

from __future__ import annotations

import difflib
import fnmatch
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from strongreg.dtensors import is_fsdp1, whole
from strongreg.hyperparameters import describe
from strongreg.penalties import Penalty
from strongreg.warning import warn

Pattern = str | re.Pattern[str]
PenaltySpec = Penalty | Mapping[Pattern, Penalty | None]

_NOT_PENALIZED = (
    nn.modules.batchnorm._NormBase,  # every batch and instance normalization derives from it; torch has no public name
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
    nn.Embedding,
    nn.EmbeddingBag,
)
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Target:
    """One penalized parameter tensor.

    Args:
        name: its first name in the model.
        param: the parameter itself.
        penalty: the penalty on it.
        by_pattern: whether the user named it by a pattern (else it is there by default).
    """

    name: str
    param: nn.Parameter
    penalty: Penalty
    by_pattern: bool


@dataclass
class _Candidate:
    """A parameter with all its names and what its modules say of it."""

    names: list[str]
    param: nn.Parameter
    by_default: bool
    output_dim: int = 0
    output_is_split: bool = False
    """Whether the output channels do not lie along one dimension (transposed convolutions with groups)."""


def select_targets(model: nn.Module, penalty: PenaltySpec) -> list[Target]:
    """The penalized parameters of a model, each once, in the model's order.

    Args:
        model: any network. A parameter shared by several modules counts once and answers to all its names. What
            ``torch.compile`` and data parallelism add to the names does not count; patterns may name it all the same.
        penalty: one penalty, for the trainable parameters of two or more dimensions outside normalization and embedding
            modules; or a mapping from name pattern to penalty or None. A pattern is a shell-style wildcard on the full
            name ("features.*.weight") or a compiled regular expression that must match the full name. The first match
            wins, None excludes, a parameter that nothing matches is not penalized.

    Returns:
        One target per penalized parameter.

    Raises:
        TypeError: the model, a pattern or a penalty is of the wrong type, a penalty cannot be saved, a penalized
            parameter is complex or not initialized yet, or a module is a FullyShardedDataParallel.
        ValueError: a pattern decides for no parameter, nothing is penalized at all, or a penalty does not fit a shape.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    candidates = _candidates(model)
    if isinstance(penalty, Penalty):
        chosen = [(c, penalty) for c in candidates if c.by_default]
    elif isinstance(penalty, Mapping):
        chosen = _match(candidates, penalty)
    else:
        raise TypeError(
            "penalty must be a strongreg penalty such as L1(5e-3), or a mapping from name pattern to penalty, "
            f"got {penalty!r}"
        )
    if not chosen:
        raise ValueError(
            f"no parameter of {type(model).__name__} is penalized: it has no trainable weight of two or more "
            "dimensions outside "
            "normalization and embedding modules, or every match is excluded; name the parameters by a mapping "
            "such as {'*weight': L1(1e-3)}"
        )
    return [_bind(candidate, each, by_pattern=not isinstance(penalty, Penalty)) for candidate, each in chosen]


def _candidates(model: nn.Module) -> list[_Candidate]:
    parallel: set[str] = set()
    found: dict[nn.Parameter, _Candidate] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        if is_fsdp1(module):
            raise TypeError(
                f"{prefix or 'the model'} is a FullyShardedDataParallel (FSDP1), which keeps flat pieces of its "
                "parameters that penalties cannot be told apart by: use torch's fully_shard (FSDP2) instead"
            )
        owner = _owner(model, prefix, module)
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            parallel.add(f"{prefix}.module" if prefix else "module")  # a parent comes before its children
        for local_name, param in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{local_name}" if prefix else local_name
            lazy = isinstance(param, nn.parameter.UninitializedParameter)
            if param not in found:
                by_default = param.requires_grad and (lazy or param.dim() >= 2)
                found[param] = _Candidate([], param, by_default)
            candidate = found[param]
            candidate.names += dict.fromkeys((_unwrapped_name(name, parallel), name))
            candidate.by_default = candidate.by_default and not isinstance(owner, _NOT_PENALIZED)
            if isinstance(owner, _TRANSPOSED):
                candidate.output_dim, candidate.output_is_split = 1, owner.groups > 1
    return list(found.values())


def _owner(model: nn.Module, prefix: str, module: nn.Module) -> nn.Module:
    """The module that a parameter serves: of a parametrized weight the layer, not the parametrization."""
    if isinstance(module, nn.utils.parametrize.ParametrizationList):
        return model.get_submodule(".".join(prefix.split(".")[:-2]))
    return module


def _unwrapped_name(name: str, parallel: set[str]) -> str:
    """The name without what torch.compile and other wrappers add, so that patterns and saved states fit both.

    A module of the user's may be called "module": of data parallelism, it is known by its place.
    """
    parts = name.split(".")
    places = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return ".".join(p for p, place in zip(parts, places, strict=True) if p not in _WRAPPERS and place not in parallel)


def _match(
    candidates: list[_Candidate], patterns: Mapping[Pattern, Penalty | None]
) -> list[tuple[_Candidate, Penalty]]:
    decided: dict[int, Penalty | None] = {}
    for pattern, penalty in patterns.items():
        if penalty is not None and not isinstance(penalty, Penalty):
            raise TypeError(
                f"the penalty for pattern {_show(pattern)} must be a strongreg penalty or None, got {penalty!r}"
            )
        matched = [
            i for i, candidate in enumerate(candidates) if any(_matches(pattern, name) for name in candidate.names)
        ]
        if not matched:
            raise ValueError(f"pattern {_show(pattern)} matches no parameter{_suggestion(pattern, candidates)}")
        fresh = [i for i in matched if i not in decided]
        if not fresh:
            raise ValueError(
                f"pattern {_show(pattern)} decides for no parameter: earlier patterns match all of "
                f"{candidates[matched[0]].names[0]!r} and its "
                "other matches first; put the narrower pattern first"
            )
        decided.update(dict.fromkeys(fresh, penalty))
    return [(candidates[i], penalty) for i, penalty in sorted(decided.items()) if penalty is not None]


def _matches(pattern: Pattern, name: str) -> bool:
    if isinstance(pattern, re.Pattern):
        return pattern.fullmatch(name) is not None
    if isinstance(pattern, str):
        return fnmatch.fnmatchcase(name, pattern)
    raise TypeError(
        f"a name pattern must be a string such as 'features.*.weight' or a compiled regular expression, got {pattern!r}"
    )


def _show(pattern: Pattern) -> str:
    return repr(pattern.pattern if isinstance(pattern, re.Pattern) else pattern)


def _suggestion(pattern: Pattern, candidates: list[_Candidate]) -> str:
    names = [name for candidate in candidates for name in candidate.names]
    text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    if isinstance(pattern, str):
        try:
            as_regex = re.compile(pattern)
        except re.error:
            as_regex = None
        if as_regex is not None and any(as_regex.fullmatch(name) for name in names):
            return f" as a wildcard; for a regular expression write re.compile({pattern!r})"
    close = difflib.get_close_matches(text, names, n=3, cutoff=0.0)
    return f"; close names are {', '.join(map(repr, close))}" if close else ": the model has none"


def _bind(candidate: _Candidate, penalty: Penalty, *, by_pattern: bool) -> Target:
    name, param = candidate.names[0], candidate.param
    if isinstance(param, nn.parameter.UninitializedParameter):
        raise TypeError(
            f"parameter {name!r} is not initialized yet: run one forward pass before building the Regularizer"
        )
    if not torch.is_floating_point(param):
        raise TypeError(
            f"parameter {name!r} has dtype {param.dtype}: penalties need real floating-point weights; exclude "
            f"it with {{{name!r}: None}}"
        )
    bound = penalty.for_output_dim(candidate.output_dim)
    if candidate.output_is_split and bound is not penalty:
        raise ValueError(
            f"{penalty!r} does not fit parameter {name!r}: the output channels of a transposed convolution with groups "
            "do not lie along one dimension; give it another penalty in the mapping, such as one with dim=(0, 1), or "
            f"exclude it with {{{name!r}: None}}"
        )
    try:
        describe(bound)  # refuse what could not be saved
        bound.check_shape(param.shape)
    except ValueError as error:
        raise ValueError(f"{penalty!r} does not fit parameter {name!r}: {error}") from error
    return Target(name, param, bound, by_pattern)


def inverse_std_scales(targets: list[Target]) -> list[float]:
    """Relative strengths proportional to 1 / standard deviation of the weights, with mean 1 over all weights.

    Args:
        targets: the penalized parameters.

    Returns:
        One factor > 0 per target. A tensor without spread (constant, or of one weight) keeps factor 1, with a warning.
    """
    spreads = [whole(t.param.detach()).double().std().item() if t.param.numel() > 1 else 0.0 for t in targets]
    usable = [spread > 0 and math.isfinite(spread) for spread in spreads]
    constant = [t.name for t, use in zip(targets, usable, strict=True) if not use]
    if constant:
        warn(f"strength_scale='inverse_std': {constant} have no spread of weights and keep factor 1")
    sizes = [t.param.numel() for t, use in zip(targets, usable, strict=True) if use]
    inverses = [1 / spread for spread, use in zip(spreads, usable, strict=True) if use]
    mean = sum(n * inverse for n, inverse in zip(sizes, inverses, strict=True)) / max(sum(sizes), 1)
    return [1 / (spread * mean) if use else 1.0 for spread, use in zip(spreads, usable, strict=True)]


def relative_strengths(targets: list[Target], scale: str) -> list[float]:
    """The relative strength of each parameter.

    Args:
        targets: the penalized parameters.
        scale: "uniform" or "inverse_std".

    Returns:
        One factor > 0 per target.
    """
    return inverse_std_scales(targets) if scale == "inverse_std" else [1.0] * len(targets)
