"""Trains several methods and seeds at equal budget, in parallel processes, and keeps what is finished."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import platform
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

import strongreg
from strongreg.experiments.data import ImageData, load_data
from strongreg.experiments.engine import EpochMetrics, RunResult, RunStoppedError, check_method, train
from strongreg.experiments.engine.checkpoint import FILE_NAME as CHECKPOINT
from strongreg.experiments.engine.loop import WEIGHTS_FILE
from strongreg.experiments.engine.record import FILE_NAME as HISTORY_FILE
from strongreg.experiments.engine.record import load_history
from strongreg.experiments.errors import UserError
from strongreg.experiments.files import read_json, write_bytes, write_json
from strongreg.experiments.models import build_model
from strongreg.experiments.recipe import METHODS, Method, Recipe, build_recipe, show_recipe

_POLL_SECONDS = 0.1
_CONFIG_REMEDY = "delete this one file if its runs are of the same recipe, or choose another --out"


class Listener(Protocol):
    """Hears of a comparison's progress."""

    def on_stop(self) -> None:
        """The user has interrupted it; the runs under way are saving their checkpoints."""

    def on_epoch(self, job: Job, metrics: EpochMetrics) -> None:
        """A run has finished an epoch.

        Args:
            job: the run.
            metrics: what the epoch showed.
        """

    def on_result(self, job: Job, result: RunResult) -> None:
        """A run is finished.

        Args:
            job: the run.
            result: its outcome.
        """


@dataclass(frozen=True)
class Job:
    """One run of a comparison.

    Args:
        method: its name.
        seed: of initial weights and batch order.
    """

    method: Method
    seed: int

    @property
    def directory_name(self) -> str:
        """Name of the folder that holds its files."""
        return f"{self.method}-seed{self.seed}"


class Comparison:
    """A directory of runs: recipe.toml, config.json, results.json, and runs/METHOD-seedN with each run's files.

    Opened again with the same recipe it goes on where it stopped: finished runs are kept, others go on from their last
    checkpoint.

    Args:
        recipe: what every run shares.
        methods: the methods to train.
        seeds: the seeds of each method.
        directory: where everything is written; made if it does not exist.
        data_dir: where the data sets lie; None for the usual places.

    Raises:
        UserError: the configuration cannot be run, the directory cannot be written, or it holds another configuration's
            runs.
    """

    def __init__(
        self,
        recipe: Recipe,
        methods: Sequence[Method],
        seeds: Sequence[int],
        directory: Path,
        data_dir: Path | None = None,
    ) -> None:
        self.recipe, self.directory, self.data_dir = _on_a_real_device(recipe), directory, data_dir
        self.jobs = [Job(method, seed) for seed in seeds for method in methods]
        self._check_runnable()
        self._open_directory()

    @classmethod
    def open(cls, directory: Path, data_dir: Path | None = None) -> Comparison:
        """Open a directory with the recipe that it holds, to go on with its unfinished runs.

        Args:
            directory: of a comparison or a run.
            data_dir: where the data sets lie; None for the usual places.

        Returns:
            A comparison of the runs that have a folder there.

        Raises:
            UserError: the directory holds no runs.
        """
        file = directory / "config.json"
        if not file.exists():
            raise UserError(f"{directory} holds no runs: there is no {file.name} in it")
        recipe = build_recipe({}, read_json(file, _CONFIG_REMEDY).get("config"))
        jobs = [_job(folder) for folder in sorted((directory / "runs").glob("*-seed*"))]
        comparison = cls(recipe, [], [], directory, data_dir)
        comparison.jobs = sorted(jobs, key=lambda job: (job.seed, METHODS.index(job.method)))
        return comparison

    @property
    def num_started(self) -> int:
        """Number of unfinished runs that have a checkpoint."""
        unfinished = [job for job in self.jobs if job not in self.results]
        return sum((self._run_directory(job) / CHECKPOINT).exists() for job in unfinished)

    def run(self, workers: int, threads: int, listener: Listener) -> None:
        """Train what is not finished yet. An interrupt (Ctrl-C) stops the runs and leaves the finished ones.

        Args:
            workers: processes at a time, >= 1.
            threads: torch threads in each process, >= 1.
            listener: hears of the progress.

        Raises:
            UserError: a process died, or a directory cannot be written.
            KeyboardInterrupt: the user stopped it.
        """
        missing = [job for job in self.jobs if job not in self.results]
        context = multiprocessing.get_context("spawn")
        messages: multiprocessing.Queue[tuple[Job, EpochMetrics]] = context.Queue()
        stop = context.Event()
        initial = (messages, stop, threads)
        with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=initial) as pool:
            try:
                with (
                    _interrupts_held_back()
                ):  # the processes start here and inherit it: the parent alone is interrupted
                    pending = {
                        pool.submit(_work, self.recipe, job, self._run_directory(job), self.data_dir): job
                        for job in missing
                    }
                while pending:
                    done, _ = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                    _drain(messages, listener)
                    for future in done:
                        job, result = pending.pop(future), future.result()
                        if result is not None:
                            self.results[job] = result
                            self._write_results()
                            listener.on_result(job, result)
                self._write_results()
            except KeyboardInterrupt:
                listener.on_stop()
                raise
            except BrokenProcessPool as error:
                raise UserError(
                    "a training process died (out of memory?): try fewer --workers; finished runs are kept"
                ) from error
            except OSError as error:
                raise _cannot_write(self.directory, error) from error
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)

    @property
    def finished_results(self) -> list[RunResult]:
        """The outcomes of all finished runs of the directory, by seed, then by method."""
        order = sorted(self.results, key=lambda job: (job.seed, METHODS.index(job.method)))
        return [self.results[job] for job in order]

    @property
    def own_results(self) -> list[RunResult]:
        """The outcomes of the runs that were asked for, in the same order; others may lie in the same directory."""
        return [result for result in self.finished_results if Job(result.method, result.seed) in self.jobs]

    def metrics(self, job: Job) -> list[EpochMetrics]:
        """The epochs of a finished run.

        Args:
            job: the run.

        Returns:
            One entry per epoch.

        Raises:
            UserError: the file cannot be read, or does not hold one line per epoch.
        """
        file = self._run_directory(job) / "metrics.jsonl"
        try:
            metrics = [EpochMetrics(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, TypeError):
            metrics = []
        if len(metrics) != self.results[job].epochs:
            raise UserError(f"{file} is damaged: delete its folder to train again")
        return metrics

    def check_files(self, job: Job) -> None:
        """Check that a finished run's files are all there and whole.

        Args:
            job: the run.

        Raises:
            UserError: one is not.
        """
        self.metrics(job)
        folder = self._run_directory(job)
        load_history(folder / HISTORY_FILE)
        try:
            with safe_open(folder / WEIGHTS_FILE, framework="pt") as weights:
                weights.keys()
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder / WEIGHTS_FILE} is damaged: delete its folder to train again") from error

    def _run_directory(self, job: Job) -> Path:
        return self.directory / "runs" / job.directory_name

    def _check_runnable(self) -> None:
        device = self.recipe.training.device
        try:
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
            reason = str(error).split("\n", maxsplit=1)[0]
            raise UserError(f"device {device!r} cannot be used: {reason}") from error
        for recipe in {show_recipe(r): r for r in map(self.recipe.for_method, self._methods())}.values():
            data = recipe_data(recipe, self.data_dir)
            options = recipe.model.model_dump(exclude={"name"})
            model = build_model(recipe.model.name, data.image_shape, data.num_classes, **options)
            for method in self._methods():
                check_method(method, model)

    def _methods(self) -> list[Method]:
        return list(dict.fromkeys(job.method for job in self.jobs))

    def _open_directory(self) -> None:
        config_file = self.directory / "config.json"
        shared = self.recipe.model_dump(mode="json")
        try:
            if config_file.exists():
                before = read_json(config_file, _CONFIG_REMEDY).get("config")
                if _outcome(before) != _outcome(shared):
                    raise UserError(
                        f"{self.directory} holds runs of another recipe{_difference(before, shared)}: "
                        "choose another --out"
                    )
            for job in self.jobs:
                self._run_directory(job).mkdir(parents=True, exist_ok=True)
            self.results = self._finished()
            for job in self.results:
                self.check_files(job)
            write_json(config_file, {"config": shared, "versions": _versions()})
            write_bytes(self.directory / "recipe.toml", show_recipe(self.recipe).encode())
        except OSError as error:
            raise _cannot_write(self.directory, error) from error

    def _finished(self) -> dict[Job, RunResult]:
        """Every finished run of the directory, those that were not asked for this time too."""
        results = {}
        for file in (self.directory / "runs").glob("*/result.json"):
            result = _read_result(file)
            job = Job(result.method, result.seed)
            if job.directory_name != file.parent.name:
                raise UserError(f"{file} belongs to {job.directory_name}: delete its folder to train again")
            results[job] = result
        return results

    def _write_results(self) -> None:
        write_json(self.directory / "results.json", {"runs": [asdict(result) for result in self.finished_results]})


def _on_a_real_device(recipe: Recipe) -> Recipe:
    """The recipe with "auto" replaced by the best device that there is."""
    if recipe.training.device != "auto":
        return recipe
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = "cpu" if accelerator is None else accelerator.type
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"device": device})})


def recipe_data(recipe: Recipe, data_dir: Path | None) -> ImageData:
    """The images of a recipe.

    Args:
        recipe: any recipe.
        data_dir: where the data sets lie; None for the usual places.

    Returns:
        Training, validation and test images.

    Raises:
        UserError: they cannot be read.
    """
    section = recipe.data
    return load_data(
        section.name, data_dir=data_dir, validation_share=section.validation_share, num_train=section.num_train
    )


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within the block a request to terminate (SIGTERM, SIGHUP) is what Ctrl-C is: checkpoints are saved."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C waits until the end of the block; processes started within never hear of it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_messages: multiprocessing.Queue[tuple[Job, EpochMetrics]]
_stop: Any
_is_training = False
_is_terminated = False
_EXIT_TERMINATED = 128 + signal.SIGTERM


def _on_terminate(*_: object) -> None:
    """A worker that is asked to terminate saves its checkpoint first."""
    global _is_terminated
    if not _is_training:
        os._exit(_EXIT_TERMINATED)
    _is_terminated = True


def _start_worker(messages: multiprocessing.Queue[tuple[Job, EpochMetrics]], stop: Any, threads: int) -> None:
    global _messages, _stop
    _messages, _stop = messages, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, _on_terminate)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # the weights of a dying network pass through numbers that slow the CPU threefold
    torch.nn.Conv2d(1, 1, 3)(torch.zeros(1, 1, 8, 8)).sum().backward()  # torch's own start-up is not the first run's


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on writing beside the one that takes up its run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(_EXIT_TERMINATED)


def _work(recipe: Recipe, job: Job, directory: Path, data_dir: Path | None) -> RunResult | None:
    """One run; None if it was stopped before its end."""

    def on_epoch(metrics: EpochMetrics) -> None:
        _messages.put((job, metrics))

    global _is_training
    data = recipe_data(recipe.for_method(job.method), data_dir)
    _is_training = True
    try:
        return train(recipe, job.method, job.seed, data, directory, on_epoch, lambda: _is_terminated or _stop.is_set())
    except RunStoppedError:
        if _is_terminated:
            os._exit(_EXIT_TERMINATED)
        return None
    finally:
        _is_training = False


def _drain(messages: multiprocessing.Queue[tuple[Job, EpochMetrics]], listener: Listener) -> None:
    while True:
        try:
            job, metrics = messages.get_nowait()
        except queue.Empty:
            return
        listener.on_epoch(job, metrics)


def _job(folder: Path) -> Job:
    name, _, seed = folder.name.rpartition("-seed")
    for method in METHODS:
        if method == name and seed.isdigit():
            return Job(method, int(seed))
    raise UserError(f"{folder} is not the folder of a run: remove it")


def _read_result(file: Path) -> RunResult:
    content = read_json(file)
    if set(content) != {field.name for field in fields(RunResult)}:
        raise UserError(f"{file} is damaged, or of another version of strongreg: delete its folder to train again")
    return RunResult(**content)


def _cannot_write(directory: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {directory}: {error.strerror or error}; choose another --out")


def _outcome(config: Any) -> Any:
    """A recipe without what changes no number."""
    if not isinstance(config, dict) or not isinstance(config.get("training"), dict):
        return config
    training = {key: value for key, value in config["training"].items() if key != "checkpoint_every"}
    return {**config, "training": training}


def _difference(before: Any, now: dict[str, Any]) -> str:
    if not isinstance(before, dict):
        return ""
    old, new = _flat(before), _flat(now)
    keys = [*new, *(key for key in old if key not in new)]
    changed = [f"{key}={old.get(key)!r} there, {new.get(key)!r} now" for key in keys if old.get(key) != new.get(key)]
    return f" ({', '.join(changed)})"


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, values in config.items():
        flat |= {f"{section}.{k}": v for k, v in values.items()} if isinstance(values, dict) else {section: values}
    return flat


def _versions() -> dict[str, str]:
    return {"strongreg": strongreg.__version__, "torch": torch.__version__, "python": platform.python_version()}
