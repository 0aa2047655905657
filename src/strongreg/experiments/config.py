"""What a run is: every number that decides its outcome, checked when it is built."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from strongreg.experiments.errors import UserError, check_known
from strongreg.penalties import L1, L2, MCP, ElasticNet, GroupL2, Penalty, SparseGroup

Method = Literal["dense", "always", "delayed", "coherent"]
METHODS: tuple[Method, ...] = ("dense", "always", "delayed", "coherent")
PENALTIES: dict[str, type[Penalty]] = {
    "l1": L1,
    "l2": L2,
    "elastic_net": ElasticNet,
    "group_l2": GroupL2,
    "sparse_group": SparseGroup,
    "mcp": MCP,
}


class RunConfig(BaseModel):
    """One training run, without its method and seed.

    Fields that count epochs are shares of ``epochs``, so that a shorter run keeps its shape.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: str = "digits"
    """Data set: digits."""
    model: str = "plain_cnn"
    """Network: plain_cnn or lenet300."""
    penalty: str = "l1"
    """Penalty: l1, l2, elastic_net, group_l2, sparse_group or mcp."""
    strength: float = Field(0.0125, ge=0)
    """Strength of the penalty, the factor lambda of L + lambda * Omega, when it begins to act."""
    strength_final: float = Field(0.2, ge=0)
    """Factor on the strength that it relaxes to, along half a cosine."""
    strength_ramp_share: float = Field(0.2, ge=0, le=1)
    """Share of the epochs in which it does; 0 for a constant strength."""
    strength_scale: Literal["uniform", "inverse_std"] = "uniform"
    """Strength per tensor: the same for all, or in inverse proportion to the spread of its first weights."""
    gate_threshold: float = Field(0.7, ge=-1, le=1)
    """Threshold of the coherence gate, a cosine."""
    epochs: int = Field(100, ge=1)
    """Passes over the training data."""
    batch_size: int = Field(64, ge=1)
    """Images per step."""
    lr: float = Field(0.02, gt=0)
    """Learning rate of SGD at its highest."""
    lr_hold_share: float = Field(0.5, ge=0, le=1)
    """Share of the epochs, at the start, that hold this learning rate; after them it follows half a cosine to 0."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of SGD, for every method alike."""
    delay_share: float = Field(1 / 6, ge=0, le=1)
    """Share of the epochs that the delayed method trains without penalty."""
    refit_share: float = Field(0.5, ge=0, le=1)
    """Share of the epochs, at the end, in which zeros stay zero and the penalty is off."""
    device: str = "cpu"
    """Torch device: cpu, cuda, cuda:1, mps."""


_RECIPES: dict[str, dict[str, Any]] = {
    "l2": {"strength": 0.1, "strength_ramp_share": 0.0, "epochs": 60},
}
"""Fields that differ from the defaults, by penalty."""


def default_config(penalty: str) -> RunConfig:
    """The default configuration for a penalty.

    Args:
        penalty: its name.

    Returns:
        A configuration with a strength that suits the penalty.

    Raises:
        UserError: the penalty is unknown.
    """
    check_known("penalty", penalty, PENALTIES)
    return RunConfig(penalty=penalty, **_RECIPES.get(penalty, {}))


def check_config(**values: Any) -> RunConfig:
    """Build a configuration, with errors for people.

    Args:
        **values: fields of :class:`RunConfig`.

    Returns:
        The configuration.

    Raises:
        UserError: a field is unknown or its value is out of range.
    """
    try:
        config = RunConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        message = first["msg"][0].lower() + first["msg"][1:]
        raise UserError(f"{name}={first['input']!r}: {message.replace('input should', 'must')}") from error
    check_known("penalty", config.penalty, PENALTIES)
    return config


def build_penalty(config: RunConfig) -> Penalty:
    """The penalty of a configuration.

    Args:
        config: the run.

    Returns:
        A penalty of its strength, with default options.
    """
    return PENALTIES[config.penalty](config.strength)
