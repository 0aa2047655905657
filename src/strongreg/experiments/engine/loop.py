"""The training loop: plain torch with the two lines of strongreg."""

from __future__ import annotations

import contextlib
import hashlib
import json
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from strongreg.compression import save_packed
from strongreg.diagnosis.record import is_above_chance
from strongreg.experiments.data import Augmentation, Data, Examples
from strongreg.experiments.engine.batches import Batches
from strongreg.experiments.engine.board import check_board, open_board
from strongreg.experiments.engine.checkpoint import (
    FILE_NAME,
    check_progress,
    check_shapes,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from strongreg.experiments.engine.distributed import ALONE, World
from strongreg.experiments.engine.measurement import (
    EpochMetrics,
    RunResult,
    Score,
    epoch_metrics,
    evaluate,
    largest_share,
    run_result,
    sample,
)
from strongreg.experiments.engine.memory import memory_may_run_out
from strongreg.experiments.engine.methods import REGULARIZED, build_regularizers
from strongreg.experiments.engine.optimizers import build_optimizers, lr_schedule
from strongreg.experiments.engine.pruning import build_pruner
from strongreg.experiments.engine.record import (
    HISTORY_FILE,
    METRICS_FILE,
    PACKED_FILE,
    RECIPE_FILE,
    RESULT_FILE,
    WEIGHTS_FILE,
    save_history,
)
from strongreg.experiments.errors import UserError
from strongreg.experiments.files import write_json
from strongreg.experiments.models import build_model
from strongreg.experiments.recipe import WITHOUT_EFFECT, Method, Recipe, show_recipe
from strongreg.files import PART, write_bytes

_LONGEST_REASON = 300
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class RunStoppedError(Exception):
    """A run was asked to stop; its checkpoint is saved."""


def train(
    recipe: Recipe,
    method: Method,
    seed: int,
    data: Data,
    directory: Path,
    on_epoch: Callable[[EpochMetrics], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    world: World = ALONE,
) -> RunResult:
    """Train one network, from scratch or from the checkpoint in its directory.

    Args:
        recipe: the run.
        method: what is added to plain training.
        seed: of initial weights, batch order and augmentation; the result depends on nothing else.
        data: the examples, on any device.
        directory: existing directory that receives recipe.toml, metrics.jsonl, history.safetensors,
            weights.safetensors, the same weights as model.packed and, last, result.json; while the run is under way
            also checkpoint.pt.
        on_epoch: called after each epoch.
        should_stop: asked after each step; in several processes on GPUs, after every 20th. All stop if one is to.
        world: the processes that train it together; a batch is shared among them.

    Returns:
        The outcome, in each of them.

    Raises:
        RunStoppedError: ``should_stop`` said so; the run goes on from there when it is trained again.
        UserError: the recipe does not fit the data, the checkpoint is damaged or of another run, TensorBoard is wanted
            and missing, or memory has run out.
        OSError: the directory cannot be written.
    """
    with memory_may_run_out(f"{method}, seed {seed}"):
        trainer = world.everywhere(lambda: _Trainer(recipe.for_method(method), method, seed, data, directory, world))
        return trainer.run(on_epoch, should_stop)


class _Trainer:
    """Everything that changes during a run, and how it is saved."""

    def __init__(self, recipe: Recipe, method: Method, seed: int, data: Data, directory: Path, world: World) -> None:
        self.recipe, self.method, self.seed, self.directory, self.world = recipe, method, seed, directory, world
        training = recipe.training
        if training.tensorboard:
            check_board()
        self.device = world.device(training.device)
        self.data_digest = data.digest()
        self.data = data.to(self.device)
        torch.manual_seed(seed)
        options = recipe.model.model_dump(exclude={"name"})
        self.model = (
            build_model(recipe.model.name, data.input_shape, data.num_classes, **options).to(self.device).train()
        )
        if training.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        world.seed_draws(seed)
        augmentation = Augmentation(recipe.data.crop_padding, recipe.data.flip, recipe.data.cutout)
        shares = {"rank": world.rank, "world_size": world.size}
        self.batches = Batches(self.data, training.batch_size, augmentation, seed, **shares)
        self.num_steps = training.epochs * len(self.batches)
        self.optimizers = build_optimizers(self.model, recipe.optimizer)
        self.lr_factor = lr_schedule(recipe.optimizer, self.num_steps)
        self.peak_lrs = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups]
        self.regularizers = build_regularizers(self.model, recipe, method, self.optimizers, self.num_steps)
        self.counted = [r for r in self.regularizers if r.history.every > 0]
        params = {t.name: t.param for r in self.counted for t in r.targets}
        self.pruner = build_pruner(method, self.model, params, recipe.pruning, self.num_steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=training.precision == "fp16")
        self.watched = self.data.validation if len(self.data.validation) else self.data.test
        # whether a run goes on is a choice, which is not made on test examples
        self.judged = (
            self.data.validation if len(self.data.validation) else sample(self.data.train, len(self.data.test))
        )
        self.chance = largest_share(self.judged)
        self.epoch, self.batch, self.num_dead = 0, 0, 0
        self.loss_sum = torch.zeros((), device=self.device)
        self.seconds = 0.0
        self.lines: list[str] = []

    @property
    def step(self) -> int:
        """Number of optimizer steps done."""
        return self.epoch * len(self.batches) + self.batch

    def run(self, on_epoch: Callable[[EpochMetrics], None], should_stop: Callable[[], bool]) -> RunResult:
        started = time.perf_counter()
        self._resume()
        self.world.on_main(self._remove_parts)
        self.parallel = self.world.parallel(self.model)
        self.forward = torch.compile(self.parallel) if self.recipe.training.compile else self.parallel
        already = self.seconds
        self.world.on_main(self._begin_files)
        every = self.recipe.training.checkpoint_every
        with open_board(
            self.directory, self.epoch, wanted=self.recipe.training.tensorboard and self.world.is_main
        ) as show:
            while self.epoch < self.recipe.training.epochs and not self._is_dead():
                if not self._train_epoch(should_stop):
                    self.seconds = already + time.perf_counter() - started
                    self._save()
                    raise RunStoppedError
                metrics = self._end_epoch()
                show(metrics)
                self.seconds = already + time.perf_counter() - started
                if every and self.epoch % every == 0 and self.epoch < self.recipe.training.epochs:
                    self._save()
                on_epoch(metrics)
        self.seconds = already + time.perf_counter() - started
        return self.world.on_main(self._finish)

    def _begin_files(self) -> None:
        write_bytes(self.directory / RECIPE_FILE, show_recipe(self.recipe).encode())
        write_bytes(self.directory / METRICS_FILE, "".join(self.lines).encode())

    def _train_epoch(self, should_stop: Callable[[], bool]) -> bool:
        """Train to the end of the epoch; False if it was asked to stop before."""
        asked_every = self.world.steps_between_questions(self.device)
        for inputs, labels, factor in self.batches.epoch(first=self.batch):
            for group, peak in zip(self._groups(), self.peak_lrs, strict=True):
                group["lr"] = peak * self.lr_factor(self.step)
            self._step(inputs, labels, factor)
            self.batch += 1
            if self.pruner is not None:
                self.pruner.after_step(self.step)
            if self.step % asked_every == 0 and self.world.any(should_stop()):
                return False
        return True

    def _step(self, inputs: Tensor, labels: Tensor, factor: float) -> None:
        """One step along the gradient of the mean loss of a batch, of which these are this process's share."""
        if self.recipe.training.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        part_size = -(-len(inputs) // self.recipe.training.accumulate)
        parts = list(zip(inputs.split(part_size), labels.split(part_size), strict=True))
        for part, answers in parts[:-1]:
            with self.world.no_sync(self.parallel):
                self._backward(part, answers, factor * len(part) / len(inputs))
        part, answers = parts[-1]
        self._backward(part, answers, factor * len(part) / len(inputs))
        if self.recipe.optimizer.clip_norm is not None:
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip_norm)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()

    def _backward(self, inputs: Tensor, labels: Tensor, factor: float) -> None:
        with self._autocast():
            loss = functional.cross_entropy(self.forward(inputs).flatten(0, -2), labels.flatten())
        if factor != 1:
            loss = loss * factor
        self.scaler.scale(loss).backward()
        self.loss_sum += loss.detach()

    def _end_epoch(self) -> EpochMetrics:
        num_batches = len(self.batches)
        self.epoch, self.batch = self.epoch + 1, 0
        score = self.world.on_main(lambda: self._evaluate(self.watched))
        first = self._groups()[0]
        metrics = epoch_metrics(
            self.epoch,
            (self.epoch - 1) * num_batches,
            first["lr"],
            self.world.mean(self.loss_sum) / num_batches,
            score,
            self.counted,
        )
        self.loss_sum.zero_()
        self.num_dead = self.num_dead + 1 if self._is_at_chance(score.accuracy) else 0
        self.lines.append(json.dumps(asdict(metrics)) + "\n")
        self.world.on_main(self._write_last_line)
        return metrics

    def _write_last_line(self) -> None:
        with (self.directory / METRICS_FILE).open("a", encoding="utf-8") as stream:
            stream.write(self.lines[-1])

    def _is_at_chance(self, accuracy: float) -> bool:
        if self.recipe.training.stop_when_dead and self.judged is not self.watched:
            accuracy = self.world.on_main(lambda: self._evaluate(self.judged)).accuracy
        return not is_above_chance(accuracy, self.chance)

    def _is_dead(self) -> bool:
        limit = self.recipe.training.stop_when_dead
        return 0 < limit <= self.num_dead

    def _finish(self) -> RunResult:
        """Evaluate and write everything, in the first process only."""
        save_history(self.counted[0], self.directory / HISTORY_FILE)
        state = self.model.state_dict()
        # safetensors knows no tied tensors
        untied = {name: tensor.cpu().contiguous().clone() for name, tensor in state.items()}
        write_bytes(self.directory / WEIGHTS_FILE, save(untied))
        packed = save_packed(state, self.directory / PACKED_FILE, "fp32")
        names = {
            "data": self.recipe.data.name,
            "model": self.recipe.model.name,
            "penalty": self.recipe.penalty.name,
        }
        result = run_result(
            self.method,
            self.seed,
            self.model,
            self.counted,
            self.data,
            names,
            self.recipe.penalty.strength if self.method in REGULARIZED else 0.0,
            score=self._evaluate(self.data.test),
            validation_score=self._evaluate(self.data.validation) if len(self.data.validation) else None,
            seconds=self.seconds,
            epochs=self.epoch,
            steps_per_epoch=len(self.batches),
            file_bytes=packed.file_bytes,
            dense_bytes=packed.dense_bytes,
        )
        write_json(self.directory / RESULT_FILE, asdict(result))  # last and whole: it marks the run as finished
        (self.directory / FILE_NAME).unlink(missing_ok=True)
        return result

    def _evaluate(self, split: Examples) -> Score:
        return evaluate(self.model, split, self._prepare, self._autocast)

    def _prepare(self, inputs: Tensor) -> Tensor:
        inputs = self.data.normalize(inputs)
        return inputs.contiguous(memory_format=torch.channels_last) if self.recipe.training.channels_last else inputs

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        dtype = _PRECISIONS.get(self.recipe.training.precision)
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    # ------------------------------------------------------------------ checkpoints

    def _fingerprint(self) -> str:
        outcome = self.recipe.model_dump_json(exclude={"training": {"device", *WITHOUT_EFFECT}})
        return hashlib.sha256(f"{outcome} {self.method} {self.seed} {self.data_digest}".encode()).hexdigest()

    def _save(self) -> None:
        own = {
            "loss_sum": self.loss_sum.cpu(),
            "batches": self.batches.state_dict(),
            "random": random_state(self.device),
        }
        of_each_process = self.world.gather(own)
        self.world.on_main(lambda: save_checkpoint(self.directory, self._state() | {"processes": of_each_process}))

    def _state(self) -> dict[str, Any]:
        """What is the same in every process."""
        return {
            "fingerprint": self._fingerprint(),
            "about": self._about(),
            "world_size": self.world.size,
            "epoch": self.epoch,
            "batch": self.batch,
            "num_dead": self.num_dead,
            "seconds": self.seconds,
            "lines": self.lines,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "pruner": {} if self.pruner is None else self.pruner.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def _remove_parts(self) -> None:
        """What a run leaves that is killed while it writes."""
        for part in self.directory.glob(f"*{PART}"):
            part.unlink(missing_ok=True)

    def _about(self) -> dict[str, Any]:
        """What a diagnosis of the unfinished run needs to know beside its records."""
        record = {
            "chance": self.chance,
            "num_classes": self.data.num_classes,
            "steps_per_epoch": len(self.batches),
            "strength": self.recipe.penalty.strength if self.method in REGULARIZED else 0.0,
            "refit_start": self.counted[0].schedule.refit_start,
            "weight_decay": self.recipe.optimizer.weight_decay,
        }
        return {"epochs": self.recipe.training.epochs, "record": record}

    def _resume(self) -> None:
        state = self.world.on_main(lambda: load_checkpoint(self.directory, self._fingerprint(), self.world.size))
        if state is None:
            return
        try:
            self._restore(state)
        except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", _LONGEST_REASON, placeholder=" ...")
            raise UserError(
                f"{self.directory / FILE_NAME} does not fit the network ({reason}): build the network as it was, or "
                "delete the file to train that run from the start"
            ) from error

    def _restore(self, state: dict[str, Any]) -> None:
        check_progress(state, self.recipe.training.epochs, len(self.batches))
        self.epoch, self.batch, self.num_dead = state["epoch"], state["batch"], state["num_dead"]
        self.seconds, self.lines = state["seconds"], state["lines"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
            for param, entries in optimizer.state.items():
                check_shapes(param, entries)
        if self.pruner is not None:
            self.pruner.load_state_dict(state["pruner"])
            for name, kept in state["pruner"].items():
                check_shapes(self.pruner.params[name], {f"pruned {name}": kept})
        self.scaler.load_state_dict(state["scaler"])
        own = state["processes"][self.world.rank]
        self.loss_sum.copy_(own["loss_sum"])
        self.batches.load_state_dict(own["batches"], in_epoch=self.batch > 0)
        set_random_state(own["random"], self.device)
