"""What a run shows: a line per epoch, and its outcome."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from strongreg.diagnosis.record import is_above_chance
from strongreg.experiments.data import Data, Examples
from strongreg.experiments.recipe import Method
from strongreg.regularizer import Regularizer

_EVALUATION_BATCH = 1024  # examples at a time
_EVALUATION_ANSWERS = 16_384  # at a time, where an example has many
_Task = Literal["classification", "language"]


@dataclass(frozen=True)
class EpochMetrics:
    """What one epoch showed; a line of metrics.jsonl.

    Args:
        epoch: number of epochs done.
        lr: learning rate at its last step.
        train_loss: mean cross-entropy over its batches, in nats; None if it is not finite.
        accuracy: on the validation examples, or on the test examples where none are held out, in [0, 1].
        num_nonzero: penalized weights that are not 0.
        compression: as in :class:`RunResult`, of the weights after it.
        coherence: mean over its recorded steps; None if it cannot be measured.
        open_fraction: share of its recorded steps at which the gate was open; None if none was recorded.
        gradient_norm: mean norm of the loss gradient; None if it is not finite.
        penalty_norm: mean norm of strength times subgradient.
        weight_norm: mean norm of the penalized weights.
        loss: mean cross-entropy where the accuracy was taken, in nats per answer; None if it is not finite, and in
            records made before it was taken.
    """

    epoch: int
    lr: float
    train_loss: float | None
    accuracy: float
    num_nonzero: int
    compression: float | None
    coherence: float | None
    open_fraction: float | None
    gradient_norm: float | None
    penalty_norm: float | None
    weight_norm: float | None
    loss: float | None = None


@dataclass(frozen=True)
class RunResult:
    """The outcome of one run; an entry of results.json.

    Args:
        method: its name.
        data: data set.
        model: network.
        penalty: penalty; of a method without one, that of the comparison.
        strength: its strength; 0 for methods without one.
        gate: how the gate was set.
        seed: of initial weights and batch order.
        accuracy: on the held-out test examples after the last epoch, in [0, 1].
        validation_accuracy: on the validation examples, None where none are held out.
        num_weights: penalized weights.
        num_nonzero: penalized weights that are not 0.
        compression: dense weights / kept weights, num_weights / num_nonzero; None if every weight is 0. The other
            measure of compression, bytes / bytes, is :attr:`byte_ratio`.
        open_fraction: share of the steps at which the gate was open.
        train_seconds: wall-clock time of the run, evaluation included.
        num_parameters: all parameters of the network, biases included.
        num_nonzero_parameters: all parameters that are not 0.
        alive: whether the accuracy is above chance, by a twentieth of what there is to learn.
        chance: share of the commonest answer to the test examples, which a dead network is right about.
        epochs: epochs done; fewer than asked for if the run was ended as dead.
        steps_per_epoch: optimizer steps of an epoch.
        refit_start: step from which on the penalty was off; None for never.
        file_bytes: size of model.packed, which holds every tensor of the network bit for bit; None in records made
            before it was written.
        dense_bytes: what all tensors of the network take dense, tied ones once; None where file_bytes is.
        task: classification of images; or language, where each answer is the byte that follows.
        loss: mean cross-entropy on the test examples, in nats per answer; None if it is not finite, and in records made
            before it was taken.
        validation_loss: likewise on the validation examples; None also where none are held out.
        num_classes: how many answers there are; None in records made before it was written.
    """

    method: Method
    data: str
    model: str
    penalty: str
    strength: float
    gate: str
    seed: int
    accuracy: float
    validation_accuracy: float | None
    num_weights: int
    num_nonzero: int
    compression: float | None
    open_fraction: float
    train_seconds: float
    num_parameters: int
    num_nonzero_parameters: int
    alive: bool
    chance: float
    epochs: int
    steps_per_epoch: int
    refit_start: int | None
    file_bytes: int | None = None
    dense_bytes: int | None = None
    task: _Task = "classification"
    loss: float | None = None
    validation_loss: float | None = None
    num_classes: int | None = None

    @property
    def byte_ratio(self) -> float | None:
        """Dense bytes / bytes of the packed file; None where there is none."""
        if self.file_bytes is None or self.dense_bytes is None:
            return None
        return self.dense_bytes / self.file_bytes


@dataclass(frozen=True)
class Score:
    """How well a network does.

    Args:
        accuracy: share of right answers, in [0, 1].
        loss: mean cross-entropy, in nats per answer; NaN or infinite where an output is.
    """

    accuracy: float
    loss: float


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Examples,
    normalize: Callable[[Tensor], Tensor],
    autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Score:
    """How well a network answers.

    Args:
        model: the network; its training mode is restored.
        split: at least one example.
        normalize: makes the network's input of the examples' inputs.
        autocast: makes the context to compute in.

    Returns:
        Accuracy and loss over all answers.
    """
    was_training = model.training
    model.eval()
    device = split.inputs.device
    answers_each = split.select(torch.arange(1, device=device)).labels.numel()
    at_once = max(1, min(_EVALUATION_BATCH, _EVALUATION_ANSWERS // answers_each))
    num_right = torch.zeros((), dtype=torch.int64, device=device)
    losses: list[Tensor] = []
    for indices in torch.arange(len(split), device=device).split(at_once):
        examples = split.select(indices)
        with autocast():
            outputs = model(normalize(examples.inputs))
        outputs, labels = outputs.flatten(0, -2).float(), examples.labels.flatten()
        num_right += (outputs.argmax(dim=1) == labels).sum()
        losses.append(functional.cross_entropy(outputs, labels, reduction="sum"))
    model.train(was_training)
    num_answers = len(split) * answers_each
    return Score(int(num_right) / num_answers, float(torch.stack(losses).cpu().double().sum()) / num_answers)


def epoch_metrics(
    epoch: int,
    first_step: int,
    lr: float,
    train_loss: float,
    score: Score,
    regularizers: Sequence[Regularizer],
) -> EpochMetrics:
    """What an epoch showed.

    Args:
        epoch: number of epochs done.
        first_step: number of steps done before this epoch.
        lr: learning rate at its last step.
        train_loss: mean over its batches.
        score: after it.
        regularizers: of the weights that count; norms and coherence are those of the first.

    Returns:
        A line of metrics.jsonl.
    """
    history = regularizers[0].history
    in_epoch = history.steps >= first_step
    num_weights, num_nonzero = count_weights(regularizers)

    def mean(quantity: str) -> float | None:
        values = history[quantity][in_epoch]  # type: ignore[index]
        return finite(float(values.mean())) if len(values) else None

    return EpochMetrics(
        epoch=epoch,
        lr=lr,
        train_loss=finite(train_loss),
        accuracy=score.accuracy,
        num_nonzero=num_nonzero,
        compression=_compression(num_weights, num_nonzero),
        coherence=mean("coherence"),
        open_fraction=mean("open"),
        gradient_norm=mean("gradient_norm"),
        penalty_norm=mean("penalty_norm"),
        weight_norm=mean("weight_norm"),
        loss=finite(score.loss),
    )


def run_result(
    method: Method,
    seed: int,
    model: nn.Module,
    regularizers: Sequence[Regularizer],
    data: Data,
    names: dict[str, str],
    strength: float,
    *,
    score: Score,
    validation_score: Score | None,
    seconds: float,
    epochs: int,
    steps_per_epoch: int,
    file_bytes: int,
    dense_bytes: int,
) -> RunResult:
    """The outcome of a run.

    Args:
        method: its name.
        seed: its seed.
        model: the trained network.
        regularizers: of the weights that count.
        data: the examples.
        names: of data, model and penalty.
        strength: of the penalty; 0 for methods without one.
        score: on the test examples.
        validation_score: on the validation examples, or None.
        seconds: wall-clock time.
        epochs: epochs done.
        steps_per_epoch: optimizer steps of an epoch.
        file_bytes: size of the packed file.
        dense_bytes: what its tensors take dense.

    Returns:
        An entry of results.json.
    """
    refit_start = regularizers[0].schedule.refit_start
    num_weights, num_nonzero = count_weights(regularizers)
    chance = largest_share(data.test)
    totals = [regularizer.summary().total for regularizer in regularizers]
    opened = sum(total.open_fraction * total.num_weights for total in totals) / max(num_weights, 1)
    gates = {"dense": "none", "magnitude": "none", "oneshot": "none", "slimming": "none"}
    return RunResult(
        method=method,
        **names,
        strength=strength,
        gate=gates.get(method, repr(regularizers[0].gate)),
        seed=seed,
        accuracy=score.accuracy,
        validation_accuracy=None if validation_score is None else validation_score.accuracy,
        num_weights=num_weights,
        num_nonzero=num_nonzero,
        compression=_compression(num_weights, num_nonzero),
        open_fraction=opened,
        train_seconds=seconds,
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_nonzero_parameters=sum(int((p != 0).sum()) for p in model.parameters()),
        alive=is_above_chance(score.accuracy, chance),
        chance=chance,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        refit_start=None if math.isinf(refit_start) else int(refit_start),
        file_bytes=file_bytes,
        dense_bytes=dense_bytes,
        task="classification" if data.test.labels.dim() == 1 else "language",
        loss=finite(score.loss),
        validation_loss=None if validation_score is None else finite(validation_score.loss),
        num_classes=data.num_classes,
    )


def sample(split: Examples, num_examples: int) -> Examples:
    """Some examples of a split, evenly spread over it.

    Args:
        split: to choose from.
        num_examples: how many at most, >= 1.

    Returns:
        The examples.
    """
    step = max(1, len(split) // num_examples)
    return split.select(torch.arange(0, len(split), step, device=split.inputs.device)[:num_examples])


def largest_share(split: Examples) -> float:
    """The share of the commonest answer: the accuracy of the best constant one.

    Args:
        split: one example at least.

    Returns:
        In (0, 1].
    """
    labels = split.labels.flatten()
    return float(torch.bincount(labels).max()) / len(labels)


def count_weights(regularizers: Sequence[Regularizer]) -> tuple[int, int]:
    """How many weights there are, and how many are not 0.

    Args:
        regularizers: of the weights that count.

    Returns:
        Both numbers.
    """
    params = [target.param for regularizer in regularizers for target in regularizer.targets]
    nonzero = torch.stack([(param != 0).sum() for param in params]).sum()
    return sum(param.numel() for param in params), int(nonzero)


def _compression(num_weights: int, num_nonzero: int) -> float | None:
    return num_weights / num_nonzero if num_nonzero else None


def finite(number: float) -> float | None:
    """The number, or None, which JSON can hold, where it is NaN or infinite.

    Args:
        number: any.

    Returns:
        It, or None.
    """
    return number if math.isfinite(number) else None
