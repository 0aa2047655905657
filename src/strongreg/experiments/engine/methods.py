"""What each method adds to plain training: a gate, a schedule, or a pruner."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from strongreg.experiments.engine.pruning import SlimmingPruner, scale_names
from strongreg.experiments.errors import UserError
from strongreg.experiments.recipe import Method, Recipe, build_penalty
from strongreg.gates import AlwaysOpen, CoherenceGate, Delay, Gate
from strongreg.groups import select_targets
from strongreg.penalties import L1
from strongreg.regularizer import Regularizer
from strongreg.schedules import Constant, CosineRamp, Refit, Schedule
from strongreg.strength_control import FEWEST_STEPS

_SELDOM = 10
REGULARIZED: tuple[Method, ...] = ("always", "delayed", "coherent")


def build_regularizers(
    model: nn.Module, recipe: Recipe, method: Method, optimizers: list[Optimizer], num_steps: int
) -> list[Regularizer]:
    """The regularizers of a method, attached.

    All methods with a penalty relax its strength in the same way from where it begins to act, and end with the same
    refit, so that they differ in nothing but the gate. The others carry a penalty of strength 0, which changes no bit
    of the training and measures the same norms; slimming has a second one on the scales of batch normalization.

    Args:
        model: the network.
        recipe: the run.
        method: its name.
        optimizers: what holds the network's parameters.
        num_steps: optimizer steps of the whole run.

    Returns:
        One regularizer for each optimizer that holds weights to penalize, the one of the most weights first; then that
        of slimming.

    Raises:
        UserError: slimming, and there is no batch normalization whose channels are those of a convolution; or there
            are too few steps for a target compression.
    """
    history_every = recipe.training.history_every
    names = {id(p): name for name, p in model.named_parameters()}
    weights = {id(t.param) for t in select_targets(model, L1(0.0))}
    regularizers: list[Regularizer] = []
    for optimizer in optimizers:
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        mine = [names[i] for i in held if i in weights]
        if not mine:
            continue
        if method in REGULARIZED:
            regularizer = Regularizer(
                model,
                dict.fromkeys(mine, build_penalty(recipe)),
                gate=_gate(recipe, method, num_steps),
                schedule=_schedule(recipe, method, num_steps),
                mode=recipe.penalty.mode,
                strength_scale=recipe.penalty.strength_scale,
                target_compression=_target_compression(recipe, method, num_steps),
                history_every=history_every,
                warn_of_collapse=False,  # strongreg diagnose says it, with more to go by
            )
        else:
            # nothing acts: a look now and then is enough, one per epoch at least
            seldom = max(history_every, min(_SELDOM, num_steps // recipe.training.epochs))
            regularizer = Regularizer(model, dict.fromkeys(mine, L1(0.0)), gate=AlwaysOpen(), history_every=seldom)
        regularizers.append(regularizer.attach(optimizer))
    regularizers.sort(key=lambda r: -sum(t.param.numel() for t in r.targets))
    if method == "slimming":
        regularizers.append(_slimming(model, recipe, optimizers, num_steps))
    return regularizers


def check_method(method: Method, model: nn.Module, recipe: Recipe, num_steps: int) -> None:
    """Check that a network can be trained by a method.

    Args:
        method: its name.
        model: the network.
        recipe: the run.
        num_steps: optimizer steps of the whole run.

    Raises:
        UserError: slimming, and there is no batch normalization whose channels are those of a convolution, or so few
            weights cannot be reached; or there are too few steps for a target compression.
    """
    if method in REGULARIZED:
        _target_compression(recipe, method, num_steps)
    if method == "slimming":
        _slimmed_names(model)
        params = {t.name: t.param for t in select_targets(model, L1(0.0))}
        SlimmingPruner(model, params, compression=recipe.pruning.compression, at=1)


def _slimmed_names(model: nn.Module) -> list[str]:
    names = scale_names(model)
    if not names:
        raise UserError(
            "slimming needs batch normalization next to convolutions, in a network that torch.fx can trace: choose "
            "another --model, or for vgg11 to vgg19 --set model.norm=batch"
        )
    return names


def _gate(recipe: Recipe, method: Method, num_steps: int) -> Gate:
    gates: dict[Method, Gate] = {
        "always": AlwaysOpen(),
        "delayed": Delay(_delay(recipe, method, num_steps)),
        "coherent": CoherenceGate(recipe.gate.threshold, scope=recipe.gate.scope),
    }
    return gates[method]


def _delay(recipe: Recipe, method: Method, num_steps: int) -> int:
    return round(num_steps * recipe.gate.delay_share) if method == "delayed" else 0


def _schedule(recipe: Recipe, method: Method, num_steps: int) -> Schedule:
    penalty = recipe.penalty
    ramp_steps, refit_start = (round(num_steps * x) for x in (penalty.ramp_share, 1 - penalty.refit_share))
    schedule: Schedule = Constant()
    if ramp_steps > 0:
        delay = _delay(recipe, method, num_steps)
        schedule = CosineRamp(ramp_steps, initial=1.0, final=penalty.final_factor, start=delay)
    if penalty.refit_share > 0:
        schedule = Refit(refit_start, before=schedule)
    return schedule


def _target_compression(recipe: Recipe, method: Method, num_steps: int) -> float | None:
    compression = recipe.penalty.target_compression
    steps = round(num_steps * (1 - recipe.penalty.refit_share)) - _delay(recipe, method, num_steps)
    if compression is not None and steps < FEWEST_STEPS:
        raise UserError(
            f"target_compression={compression:g} needs {FEWEST_STEPS} steps or more with a penalty before the refit, "
            f"and this run has {max(0, steps)}: give it more epochs, or a smaller refit_share"
        )
    return compression


def _slimming(model: nn.Module, recipe: Recipe, optimizers: list[Optimizer], num_steps: int) -> Regularizer:
    """Plain L1 on the scales until the channels are removed; the strength of its paper is 1e-4."""
    names = _slimmed_names(model)
    scales = {id(p): name for name, p in model.named_parameters() if name in names}
    for optimizer in optimizers:
        held = [scales[id(p)] for group in optimizer.param_groups for p in group["params"] if id(p) in scales]
        if len(held) == len(scales):
            regularizer = Regularizer(
                model,
                dict.fromkeys(held, L1(recipe.pruning.slimming_strength)),
                gate=AlwaysOpen(),
                schedule=Refit(round(num_steps * recipe.pruning.end_share)),
                mode="gradient",
                history_every=0,
            )
            return regularizer.attach(optimizer, key="strongreg-slimming")
    raise AssertionError("the scales of batch normalization are held by one optimizer")
