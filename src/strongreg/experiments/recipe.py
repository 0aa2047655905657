"""What a run is: every number that decides its outcome, from a TOML file or from defaults, checked when it is built."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from strongreg.experiments.errors import UserError, check_known
from strongreg.experiments.keys import Keys
from strongreg.penalties import L1, L2, MCP, ElasticNet, GroupL2, Penalty, SparseGroup

Method = Literal["dense", "always", "delayed", "coherent", "magnitude", "oneshot", "slimming"]
METHODS: tuple[Method, ...] = get_args(Method)
WITHOUT_EFFECT = ("checkpoint_every", "tensorboard")
"""Keys of the training section that change no number."""
COMPARED: tuple[Method, ...] = ("dense", "always", "delayed", "coherent")
"""The methods that compare trains unless others are asked for."""
PENALTIES: dict[str, type[Penalty]] = {
    "l1": L1,
    "l2": L2,
    "elastic_net": ElasticNet,
    "group_l2": GroupL2,
    "sparse_group": SparseGroup,
    "mcp": MCP,
}
_OPTIONS_OF_PENALTIES = {
    "l1_ratio": ("elastic_net", "sparse_group"),
    "cutoff": ("mcp",),
    "weight_by_size": ("group_l2", "sparse_group"),
}

Share = Annotated[float, Field(ge=0, le=1)]
_MOST_PIXELS = 1_000
_MOST_CONTEXT = 100_000
_MOST_WIDTH = 65_536
_MOST_DEPTH = 1_000
_MOST_IMAGES = 1_000_000_000


def _known_penalty(name: str) -> str:
    if name not in PENALTIES:
        close = difflib.get_close_matches(name, PENALTIES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"{hint}choose one of {', '.join(sorted(PENALTIES))}")
    return name


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class DataSection(_Section):
    """The images, or the text."""

    name: str = "digits"
    """Data set (digits, mnist, fashion_mnist, cifar10, cifar100, svhn) or a folder with a folder per class; or a text
    (python_stdlib, tiny_shakespeare) or a file of text."""
    num_train: int | None = Field(None, ge=1)
    """Train on a fixed subset of this many images, balanced over the classes, or on this many passages of a text, the
    first; all by default."""
    context: int | None = Field(None, ge=1, le=_MOST_CONTEXT)
    """Text: bytes that the network sees at a time, 128 by default."""
    validation_share: float = Field(0.0, ge=0, lt=1)
    """Share of the training images or text that is held out for choices; the test images or text are for the end."""
    crop_padding: int = Field(0, ge=0, le=_MOST_PIXELS)
    """Pixels of zeros around an image before a random crop of its size; 0 for no crops."""
    flip: bool = False
    """Whether images are mirrored at random."""
    cutout: int = Field(0, ge=0, le=_MOST_PIXELS)
    """Side of a square that is blanked at random, in pixels; 0 for none."""


class ModelSection(_Section):
    """The network."""

    name: str = "plain_cnn"
    """Network, or package.module:factory of your own."""
    norm: Literal["none", "batch"] | None = None
    """Normalization, for networks that leave the choice."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout: in the classifier, for networks that have it; in every block of a decoder."""
    width: int | None = Field(None, ge=1, le=_MOST_WIDTH)
    """Dimensions of a decoder's tokens."""
    depth: int | None = Field(None, ge=1, le=_MOST_DEPTH)
    """Blocks of a decoder."""
    tied: bool | None = None
    """Whether a decoder's last layer is its embedding."""


class PenaltySection(_Section):
    """The penalty and its strength over time. Shares are of all optimizer steps, so a shorter run keeps its shape."""

    name: Annotated[str, AfterValidator(_known_penalty)] = "l1"
    """Penalty: l1, l2, elastic_net, group_l2, sparse_group or mcp."""
    strength: float = Field(0.0125, ge=0)
    """The factor lambda of L + lambda * Omega, when the penalty begins to act."""
    final_factor: float = Field(0.2, ge=0)
    """Factor on the strength that it relaxes to, along half a cosine."""
    ramp_share: Share = 0.2
    """Share of the steps in which it does; 0 for a constant strength."""
    refit_share: Share = 0.5
    """Share of the steps, at the end, in which zeros stay zero and the penalty is off."""
    strength_scale: Literal["uniform", "inverse_std"] = "uniform"
    """Strength per tensor: the same for all, or in inverse proportion to the spread of its first weights."""
    target_compression: float | None = Field(None, gt=1)
    """How many times fewer weights the run is to leave; the strength adapts to it, beginning with ``strength``."""
    mode: Literal["proximal", "gradient"] = "proximal"
    """How the penalty is imposed."""
    l1_ratio: float | None = Field(None, ge=0, le=1)
    """Share of L1 in elastic_net and sparse_group."""
    cutoff: float | None = Field(None, gt=0)
    """Weights beyond it are not shrunk by mcp."""
    weight_by_size: bool | None = None
    """Whether group_l2 and sparse_group weight a group by the root of its size."""

    @model_validator(mode="after")
    def _options_fit(self) -> PenaltySection:
        for option, owners in _OPTIONS_OF_PENALTIES.items():
            if getattr(self, option) is not None and self.name not in owners:
                raise ValueError(f"{option} is an option of {' and '.join(owners)}, not of {self.name}")
        if self.target_compression is not None:
            if self.refit_share == 0:
                raise ValueError("target_compression needs a refit to adapt until: set refit_share, such as 0.5")
            is_l2 = self.name == "l2" or (self.name == "elastic_net" and self.l1_ratio == 0)
            if self.mode != "proximal" or is_l2:
                raise ValueError("target_compression needs exact zeros: mode proximal, and a penalty other than l2")
            if self.strength == 0:
                raise ValueError("target_compression needs a strength above 0 to begin with")
        return self


class GateSection(_Section):
    """When the penalty acts."""

    threshold: float = Field(0.7, ge=-1, le=1)
    """Threshold of the coherence gate, a cosine."""
    scope: Literal["global", "layer"] = "global"
    """One decision for the network, or one per tensor."""
    delay_share: Share = 1 / 6
    """Share of the steps that the delayed method trains without penalty."""


class OptimizerSection(_Section):
    """The optimizer and its learning rate over time."""

    name: Literal["sgd", "adamw", "muon"] = "sgd"
    """Optimizer. Muon takes the matrices; AdamW what is left to it."""
    lr: float = Field(0.02, gt=0)
    """Learning rate at its highest."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD and Muon."""
    nesterov: bool = False
    """Whether SGD's momentum is Nesterov's."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay, for every method that does not say otherwise in its overrides."""
    schedule: Literal["hold_cosine", "cosine", "step", "one_cycle", "constant"] = "hold_cosine"
    """Learning rate: held and then half a cosine to 0; a cosine; steps; one cycle up and down; constant."""
    hold_share: Share = 0.5
    """hold_cosine: share of the steps, at the start, that hold the learning rate."""
    warmup_share: Share = 0.0
    """Share of the steps in which the learning rate rises from 0, in front of the schedule; 0 is 0.3 for one_cycle."""
    milestones: Annotated[tuple[Share, ...], Field(strict=False)] = (0.5, 0.75)
    """step: where the learning rate is multiplied by gamma, as shares of the steps."""
    gamma: float = Field(0.1, gt=0, le=1)
    """step: the factor."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of the gradient; larger ones are scaled down."""

    @model_validator(mode="after")
    def _parts_fit(self) -> OptimizerSection:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=true needs a momentum above 0")
        if self.schedule == "one_cycle" and self.warmup_share == 1:
            raise ValueError("warmup_share=1 leaves one_cycle no step to come down: choose less")
        return self


class TrainingSection(_Section):
    """How long, and on what."""

    epochs: int = Field(100, ge=1, le=1_000_000)
    """Passes over the training data."""
    batch_size: int = Field(64, ge=1, le=_MOST_IMAGES)
    """Images or passages per optimizer step."""
    accumulate: int = Field(1, ge=1, le=_MOST_IMAGES)
    """Parts that a batch is cut into, to fit into memory; their gradients add up to the batch's. But batch
    normalization sees the parts: with it this is not the large batch."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What autocast computes in; weights stay in float32."""
    channels_last: bool = False
    """Memory layout of images and convolutions."""
    compile: bool = False
    """Whether torch.compile compiles the network."""
    device: str = "cpu"
    """Torch device: auto, cpu, cuda, cuda:1, mps."""
    history_every: int = Field(1, ge=1)
    """Record norms and coherence at every n-th step."""
    checkpoint_every: int = Field(10, ge=0)
    """Save a checkpoint every n epochs; 0 for none but at an interrupt."""
    tensorboard: bool = False
    """Whether each epoch's numbers are written for TensorBoard too, into the run's directory."""
    stop_when_dead: int = Field(0, ge=0)
    """End a run at chance for this many epochs in a row, on validation images or, without, training ones; 0: never."""


class PruningSection(_Section):
    """The baselines that prune: magnitude, oneshot and slimming."""

    compression: float = Field(20.0, ge=1)
    """How many times fewer weights they are to leave."""
    start_share: Share = 0.0
    """magnitude: where the cubic schedule begins, as a share of the steps."""
    end_share: Share = 0.5
    """magnitude: where it ends; oneshot and slimming prune here at once. The rest fine-tunes."""
    every: int = Field(10, ge=1)
    """magnitude: optimizer steps between prunings."""
    slimming_strength: float = Field(1e-4, ge=0)
    """slimming: strength of L1 on the scales of batch normalization."""

    @model_validator(mode="after")
    def _start_is_before_end(self) -> PruningSection:
        if self.start_share > self.end_share:
            raise ValueError(f"start_share={self.start_share} must not be beyond end_share={self.end_share}")
        return self


class Recipe(_Section):
    """One training run without its method and seed."""

    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    penalty: PenaltySection = PenaltySection()
    gate: GateSection = GateSection()
    optimizer: OptimizerSection = OptimizerSection()
    training: TrainingSection = TrainingSection()
    pruning: PruningSection = PruningSection()
    methods: dict[Method, dict[str, Any]] = {}
    """What differs for a method: dotted name to value, such as dense = {"optimizer.weight_decay" = 5e-4}."""

    @model_validator(mode="after")
    def _overrides_fit(self) -> Recipe:
        for method in self.methods:
            try:
                self.for_method(method)
            except ValidationError as error:
                raise ValueError(f"methods.{method}: {_KEYS.explain(error)}") from error
        return self

    def for_method(self, method: Method) -> Recipe:
        """This recipe as one method trains it.

        Args:
            method: its name.

        Returns:
            A recipe without overrides.

        Raises:
            ValueError: an override does not fit.
        """
        changes = self.methods.get(method, {})
        if not self.methods:
            return self
        values = self.model_dump(exclude={"methods"})
        for name, value in changes.items():
            _KEYS.set(values, name, value, where=f"methods.{method}: ")
        return Recipe(**values)


_KEYS = Keys(
    {
        name: tuple(field.annotation.model_fields)
        for name, field in Recipe.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Section)
    },
    METHODS,
)
_RECIPES: dict[str, dict[str, Any]] = {
    # relaxing to 0: a strong L2 that is switched off at full learning rate kills networks that lived under it
    "l2": {
        "penalty.strength": 0.1,
        "penalty.final_factor": 0.0,
        "penalty.ramp_share": 0.5,
        "penalty.refit_share": 0.0,
        "training.epochs": 60,
    },
}
"""Fields that differ from the defaults, by penalty."""


def default_changes(penalty: str) -> dict[str, Any]:
    """The fields of the default recipe for a penalty that differ from the defaults.

    Args:
        penalty: its name.

    Returns:
        Dotted name to value.

    Raises:
        UserError: the penalty is unknown.
    """
    penalty = penalty.lower()
    check_known("penalty", penalty, PENALTIES)
    return {"penalty.name": penalty, **_RECIPES.get(penalty, {})}


def build_recipe(changes: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> Recipe:
    """Build a recipe, with errors for people.

    Args:
        changes: dotted name to value, such as {"penalty.strength": 0.1}; they win over ``base``.
        base: nested values, as in a TOML file.

    Returns:
        The recipe.

    Raises:
        UserError: a name is unknown, or a value is of the wrong type or out of range.
    """
    changes = {
        name: value.lower() if name == "penalty.name" and isinstance(value, str) else value
        for name, value in changes.items()
    }
    values: dict[str, Any] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in (base or {}).items()
    }
    try:
        for name, value in changes.items():
            _KEYS.set(values, name, value)
        return Recipe(**values)
    except ValidationError as error:
        raise UserError(_KEYS.explain(error)) from error
    except ValueError as error:
        raise UserError(str(error)) from error


def read_recipe(file: Path) -> dict[str, Any]:
    """Read a TOML file; what it holds is checked by :func:`build_recipe`.

    Args:
        file: an existing file.

    Returns:
        Nested values.

    Raises:
        UserError: the file cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read recipe {file}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {file} is not TOML: {error}") from error


def show_recipe(recipe: Recipe) -> str:
    """A recipe as TOML, every field written out.

    Args:
        recipe: any recipe.

    Returns:
        Text that :func:`build_recipe` makes the same recipe of.
    """
    return tomli_w.dumps(recipe.model_dump(exclude_none=True))


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Read ``--set a.b=c`` options; values are TOML, and plain words are strings.

    Args:
        settings: texts such as "penalty.strength=0.01".

    Returns:
        Dotted name to value.

    Raises:
        UserError: one has no name or no value.
    """
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not (name.strip() and equals):
            raise UserError(f"--set {setting!r}: write section.key=value, such as penalty.strength=0.01")
        if "\n" in setting:
            raise UserError(f"--set {setting!r}: a value is one line, and so is a key")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        changes[name.strip()] = value
    return changes


def build_penalty(recipe: Recipe) -> Penalty:
    """The penalty of a recipe.

    Args:
        recipe: the run.

    Returns:
        A penalty of its strength and options.
    """
    section = recipe.penalty
    options = {name: getattr(section, name) for name in _OPTIONS_OF_PENALTIES if getattr(section, name) is not None}
    return PENALTIES[section.name](section.strength, **options)
