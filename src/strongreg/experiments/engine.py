"""Trains one network once: plain torch with the two lines of strongreg."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from strongreg.experiments.config import Method, RunConfig, build_penalty
from strongreg.experiments.data import ImageData
from strongreg.experiments.files import write_json
from strongreg.experiments.models import build_model
from strongreg.gates import AlwaysOpen, CoherenceGate, Delay, Gate
from strongreg.penalties import L1
from strongreg.regularizer import Regularizer
from strongreg.schedules import Constant, CosineRamp, Refit, Schedule

_EVALUATION_BATCH = 1024
_CHANCE_MARGIN = 1.5


@dataclass(frozen=True)
class EpochMetrics:
    """What one epoch showed; a line of metrics.jsonl.

    Args:
        epoch: number of epochs done.
        lr: learning rate at its last step.
        train_loss: mean cross-entropy over its batches, in nats; None if it is not finite.
        accuracy: on the test images, in [0, 1].
        num_nonzero: penalized weights that are not 0.
        compression: penalized weights / those that are not 0; None if all are 0.
        coherence: mean over its steps; None if it cannot be measured.
        open_fraction: share of its steps at which the gate was open.
        gradient_norm: mean norm of the loss gradient; None if it is not finite.
        penalty_norm: mean norm of strength times subgradient.
        weight_norm: mean norm of the penalized weights.
    """

    epoch: int
    lr: float
    train_loss: float | None
    accuracy: float
    num_nonzero: int
    compression: float | None
    coherence: float | None
    open_fraction: float
    gradient_norm: float | None
    penalty_norm: float | None
    weight_norm: float | None


@dataclass(frozen=True)
class RunResult:
    """The outcome of one run; an entry of results.json.

    Args:
        method: dense, always, delayed or coherent.
        data: data set.
        model: network.
        penalty: penalty.
        strength: its strength; 0 for dense.
        gate: how the gate was set.
        seed: of initial weights and batch order.
        accuracy: on the held-out test images after the last epoch, in [0, 1].
        num_weights: penalized weights.
        num_nonzero: penalized weights that are not 0.
        compression: num_weights / num_nonzero; None if every weight is 0.
        open_fraction: share of the steps at which the gate was open.
        train_seconds: wall-clock time of the run, evaluation included.
        num_parameters: all parameters of the network, biases included.
        num_nonzero_parameters: all parameters that are not 0.
        alive: whether the accuracy is above 1.5 times chance.
    """

    method: Method
    data: str
    model: str
    penalty: str
    strength: float
    gate: str
    seed: int
    accuracy: float
    num_weights: int
    num_nonzero: int
    compression: float | None
    open_fraction: float
    train_seconds: float
    num_parameters: int
    num_nonzero_parameters: int
    alive: bool


def train(
    config: RunConfig,
    method: Method,
    seed: int,
    data: ImageData,
    directory: Path,
    on_epoch: Callable[[EpochMetrics], None],
) -> RunResult:
    """Train one network from scratch.

    Args:
        config: the run.
        method: which gate, and whether there is a penalty at all.
        seed: of initial weights and batch order; the result depends on nothing else.
        data: the images, on any device.
        directory: existing directory that receives metrics.jsonl, weights.safetensors and, last, result.json.
        on_epoch: called after each epoch.

    Returns:
        The outcome.

    Raises:
        OSError: the directory cannot be written.
    """
    started = time.perf_counter()
    device = torch.device(config.device)
    torch.manual_seed(seed)
    model = build_model(config.model, data.image_shape, data.num_classes).to(device)
    data = data.to(device)
    batches = _Batches(len(data.train_labels), config.batch_size, seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    num_steps = config.epochs * len(batches)
    num_held = round(num_steps * config.lr_hold_share)
    regularizer = build_regularizer(model, config, method, num_steps).attach(optimizer)
    with (directory / "metrics.jsonl").open("w") as metrics_file:
        for epoch in range(config.epochs):
            loss_sum = torch.zeros((), device=device)
            for i, batch in enumerate(batches):
                for group in optimizer.param_groups:
                    group["lr"] = config.lr * _lr_factor(epoch * len(batches) + i, num_held, num_steps)
                batch = batch.to(device)
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(data.train_images[batch]), data.train_labels[batch])
                loss.backward()
                optimizer.step()
                loss_sum += loss.detach()
            metrics = _epoch_metrics(epoch + 1, model, optimizer, regularizer, loss_sum / len(batches), data)
            metrics_file.write(json.dumps(asdict(metrics)) + "\n")
            metrics_file.flush()
            on_epoch(metrics)
    result = _result(config, method, seed, model, regularizer, data, time.perf_counter() - started)
    save_file(
        {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()},
        directory / "weights.safetensors",
    )
    write_json(directory / "result.json", asdict(result))  # last and whole: it marks the run as finished
    return result


def _lr_factor(step: int, num_held: int, num_steps: int) -> float:
    """1 for the first ``num_held`` steps, then half a cosine that would reach 0 at ``num_steps``."""
    if step < num_held:
        return 1.0
    return (1 + math.cos(math.pi * (step - num_held) / (num_steps - num_held))) / 2


def build_regularizer(model: nn.Module, config: RunConfig, method: Method, num_steps: int) -> Regularizer:
    """The regularizer of a method.

    All methods with a penalty relax its strength in the same way from where it begins to act, and end with the same
    refit, so that they differ in nothing but the gate. The dense method carries a penalty of strength 0, which changes
    no bit of the training and measures the same norms.

    Args:
        model: the network.
        config: the run.
        method: dense, always, delayed or coherent.
        num_steps: optimizer steps of the whole run.

    Returns:
        A regularizer to attach.
    """
    if method == "dense":
        return Regularizer(model, L1(0.0), gate=AlwaysOpen())
    delay = round(num_steps * config.delay_share) if method == "delayed" else 0
    ramp_steps, refit_start = (round(num_steps * x) for x in (config.strength_ramp_share, 1 - config.refit_share))
    schedule: Schedule = Constant()
    if ramp_steps > 0:
        schedule = CosineRamp(ramp_steps, initial=1.0, final=config.strength_final, start=delay)
    if config.refit_share > 0:
        schedule = Refit(refit_start, before=schedule)
    gates: dict[Method, Gate] = {
        "always": AlwaysOpen(),
        "delayed": Delay(delay),
        "coherent": CoherenceGate(config.gate_threshold),
    }
    return Regularizer(
        model, build_penalty(config), gate=gates[method], schedule=schedule, strength_scale=config.strength_scale
    )


class _Batches:
    """Shuffled batches of indices, a new order at each pass, from a generator of its own."""

    def __init__(self, num_examples: int, batch_size: int, seed: int) -> None:
        self._num_examples, self._batch_size = num_examples, batch_size
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return math.ceil(self._num_examples / self._batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.randperm(self._num_examples, generator=self._generator).split(self._batch_size))


@torch.no_grad()
def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images classified right.

    Args:
        model: the network; its training mode is restored.
        images: shape (num_images, channels, height, width).
        labels: shape (num_images,).

    Returns:
        Accuracy in [0, 1].
    """
    was_training = model.training
    model.eval()
    pairs = zip(images.split(_EVALUATION_BATCH), labels.split(_EVALUATION_BATCH), strict=True)
    num_right = sum(int((model(x).argmax(dim=1) == y).sum()) for x, y in pairs)
    model.train(was_training)
    return num_right / len(labels)


def _epoch_metrics(
    epoch: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    regularizer: Regularizer,
    train_loss: Tensor,
    data: ImageData,
) -> EpochMetrics:
    history, counts = regularizer.history, regularizer.summary().total
    in_epoch = slice(len(history) * (epoch - 1) // epoch, None)

    def mean(quantity: str) -> float | None:
        return _finite(float(history[quantity][in_epoch].mean()))  # type: ignore[index]

    return EpochMetrics(
        epoch=epoch,
        lr=optimizer.param_groups[0]["lr"],
        train_loss=_finite(train_loss.item()),
        accuracy=evaluate(model, data.test_images, data.test_labels),
        num_nonzero=counts.num_nonzero,
        compression=_finite(counts.compression),
        coherence=mean("coherence"),
        open_fraction=_open_fraction(regularizer, float(history["open"][in_epoch].mean())),
        gradient_norm=mean("gradient_norm"),
        penalty_norm=mean("penalty_norm"),
        weight_norm=mean("weight_norm"),
    )


def _result(
    config: RunConfig,
    method: Method,
    seed: int,
    model: nn.Module,
    regularizer: Regularizer,
    data: ImageData,
    seconds: float,
) -> RunResult:
    counts = regularizer.summary().total
    accuracy = evaluate(model, data.test_images, data.test_labels)
    return RunResult(
        method=method,
        data=config.data,
        model=config.model,
        penalty=config.penalty,
        strength=0.0 if method == "dense" else config.strength,
        gate="none" if method == "dense" else repr(regularizer.gate),
        seed=seed,
        accuracy=accuracy,
        num_weights=counts.num_weights,
        num_nonzero=counts.num_nonzero,
        compression=_finite(counts.compression),
        open_fraction=_open_fraction(regularizer, counts.open_fraction),
        train_seconds=seconds,
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_nonzero_parameters=sum(int((p != 0).sum()) for p in model.parameters()),
        alive=accuracy > _CHANCE_MARGIN / data.num_classes,
    )


def _open_fraction(regularizer: Regularizer, share: float) -> float:
    """The share of open steps; 0 where there is no penalty to let through."""
    return share if any(t.penalty.strength > 0 for t in regularizer.targets) else 0.0


def _finite(number: float) -> float | None:
    """The number, or None, which JSON can hold, where it is NaN or infinite."""
    return number if math.isfinite(number) else None
