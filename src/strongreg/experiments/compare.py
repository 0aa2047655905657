"""Trains several methods and seeds at equal budget, in parallel processes, and keeps what is finished."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import platform
import queue
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch

import strongreg
from strongreg.experiments.config import METHODS, Method, RunConfig
from strongreg.experiments.data import load_data
from strongreg.experiments.engine import EpochMetrics, RunResult, train
from strongreg.experiments.errors import UserError
from strongreg.experiments.files import read_json, write_json
from strongreg.experiments.models import build_model

_POLL_SECONDS = 0.1


class Listener(Protocol):
    """Hears of a comparison's progress."""

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
        method: dense, always, delayed or coherent.
        seed: of initial weights and batch order.
    """

    method: Method
    seed: int

    @property
    def directory_name(self) -> str:
        """Name of the folder that holds its files."""
        return f"{self.method}-seed{self.seed}"


class Comparison:
    """A directory of runs: config.json, results.json, and runs/METHOD-seedN with each run's files.

    Opened again with the same configuration it goes on where it stopped: finished runs are kept, others trained anew.

    Args:
        config: what every run shares.
        methods: the methods to train.
        seeds: the seeds of each method.
        directory: where everything is written; made if it does not exist.

    Raises:
        UserError: the configuration cannot be run, the directory cannot be written, or it holds another configuration's
            runs.
    """

    def __init__(self, config: RunConfig, methods: Sequence[Method], seeds: Sequence[int], directory: Path) -> None:
        self.config, self.directory = config, directory
        self.jobs = [Job(method, seed) for seed in seeds for method in methods]
        self._check_runnable()
        self._open_directory()

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
                    pending = {pool.submit(_work, self.config, job, self._run_directory(job)): job for job in missing}
                while pending:
                    done, _ = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                    _drain(messages, listener)
                    for future in done:
                        job = pending.pop(future)
                        self.results[job] = future.result()
                        self._write_results()
                        listener.on_result(job, self.results[job])
                self._write_results()
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
        if len(metrics) != self.config.epochs:
            raise UserError(f"{file} is damaged: delete its folder to train again")
        return metrics

    def _run_directory(self, job: Job) -> Path:
        return self.directory / "runs" / job.directory_name

    def _check_runnable(self) -> None:
        data = load_data(self.config.data)
        build_model(self.config.model, data.image_shape, data.num_classes)
        try:
            torch.zeros(1, device=self.config.device).item()
        except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
            reason = str(error).split("\n", maxsplit=1)[0]
            raise UserError(f"device {self.config.device!r} cannot be used: {reason}") from error

    def _open_directory(self) -> None:
        config_file = self.directory / "config.json"
        shared = self.config.model_dump()
        try:
            if config_file.exists():
                before = read_json(config_file).get("config")
                if before != shared:
                    raise UserError(
                        f"{self.directory} holds runs of another configuration{_difference(before, shared)}: "
                        "choose another --out"
                    )
            for job in self.jobs:
                self._run_directory(job).mkdir(parents=True, exist_ok=True)
            self.results = self._finished()
            write_json(config_file, {"config": shared, "versions": _versions()})
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
            self.metrics(job)
        return results

    def _write_results(self) -> None:
        write_json(self.directory / "results.json", {"runs": [asdict(result) for result in self.finished_results]})


class _StoppedError(Exception):
    """The comparison was interrupted."""


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C waits until the end of the block; processes started within never hear of it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_messages: multiprocessing.Queue[tuple[Job, EpochMetrics]]
_stop: Any


def _start_worker(messages: multiprocessing.Queue[tuple[Job, EpochMetrics]], stop: Any, threads: int) -> None:
    global _messages, _stop
    _messages, _stop = messages, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # the weights of a dying network pass through numbers that slow the CPU threefold
    torch.nn.Conv2d(1, 1, 3)(torch.zeros(1, 1, 8, 8)).sum().backward()  # torch's own start-up is not the first run's


def _work(config: RunConfig, job: Job, directory: Path) -> RunResult:
    def on_epoch(metrics: EpochMetrics) -> None:
        _messages.put((job, metrics))
        if _stop.is_set():
            raise _StoppedError

    return train(config, job.method, job.seed, load_data(config.data), directory, on_epoch)


def _drain(messages: multiprocessing.Queue[tuple[Job, EpochMetrics]], listener: Listener) -> None:
    while True:
        try:
            job, metrics = messages.get_nowait()
        except queue.Empty:
            return
        listener.on_epoch(job, metrics)


def _read_result(file: Path) -> RunResult:
    content = read_json(file)
    if set(content) != {field.name for field in fields(RunResult)}:
        raise UserError(f"{file} is damaged, or of another version of strongreg: delete its folder to train again")
    return RunResult(**content)


def _cannot_write(directory: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {directory}: {error.strerror or error}; choose another --out")


def _difference(before: Any, now: dict[str, Any]) -> str:
    if not isinstance(before, dict):
        return ""
    keys = [*now, *(key for key in before if key not in now)]
    changed = [
        f"{key}={before.get(key)!r} there, {now.get(key)!r} now" for key in keys if before.get(key) != now.get(key)
    ]
    return f" ({', '.join(changed)})"


def _versions() -> dict[str, str]:
    return {"strongreg": strongreg.__version__, "torch": torch.__version__, "python": platform.python_version()}
