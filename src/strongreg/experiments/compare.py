"""Trains several methods and seeds at equal budget, in parallel processes, and keeps what is finished."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

import strongreg
from strongreg.differences import describe_difference
from strongreg.experiments.engine import EpochMetrics, RunResult, RunStoppedError, train
from strongreg.experiments.engine.checkpoint import FILE_NAME as CHECKPOINT
from strongreg.experiments.engine.distributed import World
from strongreg.experiments.engine.process import prepare_process
from strongreg.experiments.engine.record import (
    HISTORY_FILE,
    METRICS_FILE,
    PACKED_FILE,
    WEIGHTS_FILE,
    check_packed,
    load_history,
    load_metrics,
    load_result,
)
from strongreg.experiments.errors import CHOOSE_OUT, UserError, cannot_write
from strongreg.experiments.files import read_json, write_json
from strongreg.experiments.pool import Task, TaskPool, recipe_data
from strongreg.experiments.recipe import METHODS, Method, Recipe, build_recipe, show_recipe
from strongreg.experiments.runnable import check_runnable, on_a_real_device, outcome
from strongreg.files import write_bytes

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
        self.recipe, self.directory, self.data_dir = on_a_real_device(recipe), directory, data_dir
        self.jobs = [Job(method, seed) for seed in seeds for method in methods]
        check_runnable(self.recipe, dict.fromkeys(methods), data_dir)
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
            UserError: the directory holds no runs, a file in it is damaged, or what is unfinished cannot be run here.
        """
        file = directory / "config.json"
        if not directory.exists():
            raise UserError(
                f"{directory} holds no runs: it does not exist; give the directory that train or compare wrote"
            )
        if not directory.is_dir():
            raise UserError(f"{directory} holds no runs: it is a file, name the directory of a run")
        if not file.exists():
            raise UserError(
                f"{directory} holds no runs: there is no {file.name} in it{_where_there_are_runs(directory)}"
            )
        config = read_json(file, _CONFIG_REMEDY).get("config")
        if not isinstance(config, dict):
            raise UserError(f"{file} is damaged: {_CONFIG_REMEDY}")
        recipe = build_recipe({}, config)
        jobs = [_job(folder) for folder in sorted((directory / "runs").glob("*-seed*"))]
        comparison = cls(recipe, [], [], directory, data_dir)
        comparison.jobs = sorted(jobs, key=lambda job: (job.seed, METHODS.index(job.method)))
        unfinished = [job.method for job in comparison.jobs if job not in comparison.results]
        check_runnable(comparison.recipe, dict.fromkeys(unfinished), data_dir)
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
        directories = {self._run_directory(job): job for job in self.jobs if job not in self.results}
        try:
            with TaskPool(workers, threads) as pool:
                try:
                    self._train(pool, directories, listener)
                except KeyboardInterrupt:
                    listener.on_stop()
                    raise
            self._write_results()
        except OSError as error:
            raise cannot_write(self.directory, error, CHOOSE_OUT) from error

    def _train(self, pool: TaskPool, directories: dict[Path, Job], listener: Listener) -> None:
        pending = {
            pool.submit(Task(self.recipe, job.method, job.seed, directory, self.data_dir)): job
            for directory, job in directories.items()
        }
        while pending:
            done = pool.wait(pending, lambda path, metrics: listener.on_epoch(directories[path], metrics))
            for future in done:
                job, result = pending.pop(future), future.result()
                if result is not None:
                    self.results[job] = result
                    self._write_results()
                    listener.on_result(job, result)

    def run_together(self, world: World, listener: Listener, should_stop: Callable[[], bool]) -> None:
        """Train what is not finished yet in the processes of torchrun, one run after another, each by all of them.

        Args:
            world: the processes; this object is the same in all.
            listener: hears of the progress.
            should_stop: whether this process was asked to stop.

        Raises:
            UserError: the data cannot be read, no device is left for a process, or a directory cannot be written.
            KeyboardInterrupt: one of the processes was asked to stop; the checkpoint is saved.
        """
        prepare_process()
        try:
            for job in self.jobs:
                if job not in self.results:
                    self.results[job] = self._train_together(job, world, listener, should_stop)
                    world.on_main(self._write_results)
                    listener.on_result(job, self.results[job])
            world.on_main(self._write_results)
        except RunStoppedError:
            raise KeyboardInterrupt from None
        except OSError as error:
            raise cannot_write(self.directory, error, CHOOSE_OUT) from error

    def _train_together(self, job: Job, world: World, listener: Listener, should_stop: Callable[[], bool]) -> RunResult:
        recipe = self.recipe.for_method(job.method)
        data = world.everywhere(lambda: recipe_data(recipe, self.data_dir))

        def on_epoch(metrics: EpochMetrics) -> None:
            listener.on_epoch(job, metrics)

        return train(recipe, job.method, job.seed, data, self._run_directory(job), on_epoch, should_stop, world)

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
            UserError: the file is missing, damaged, or does not hold one line per epoch.
        """
        return load_metrics(self._run_directory(job) / METRICS_FILE, self.results[job].epochs)

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
            file = folder / WEIGHTS_FILE
            raise UserError(f"{file} is missing or damaged: delete its folder to train again") from error
        if (file_bytes := self.results[job].file_bytes) is not None:
            check_packed(folder / PACKED_FILE, file_bytes)

    def _run_directory(self, job: Job) -> Path:
        return self.directory / "runs" / job.directory_name

    def _open_directory(self) -> None:
        config_file = self.directory / "config.json"
        shared = self.recipe.model_dump(mode="json")
        try:
            if config_file.exists():
                before = read_json(config_file, _CONFIG_REMEDY).get("config")
                if outcome(before) != outcome(shared):
                    raise UserError(
                        f"{self.directory} holds runs of another recipe{describe_difference(before, shared)}: "
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
            raise cannot_write(self.directory, error, CHOOSE_OUT) from error

    def _finished(self) -> dict[Job, RunResult]:
        """Every finished run of the directory, those that were not asked for this time too."""
        results = {}
        for file in (self.directory / "runs").glob("*/result.json"):
            result = load_result(file)
            job = Job(result.method, result.seed)
            if job.directory_name != file.parent.name:
                raise UserError(f"{file} belongs to {job.directory_name}: delete its folder to train again")
            results[job] = result
        return results

    def _write_results(self) -> None:
        write_json(self.directory / "results.json", {"runs": [asdict(result) for result in self.finished_results]})


def _where_there_are_runs(directory: Path) -> str:
    """What to do about a directory that is no comparison's."""
    for file, command in (("recipe.json", "tolerance"), ("sweep.json", "sweep")):
        if (directory / file).exists():
            return (
                f"; it is of strongreg {command}, which goes on by itself with the same command and --out {directory}"
            )
    if directory.parent.name == "runs" and (directory.parents[1] / "config.json").exists():
        return f"; it is one run of {directory.parents[1]}: give that"
    below = sorted(file.parent for file in directory.glob("*/config.json"))
    such = f", such as {below[0]}" if below else ""
    return f"; give the directory that train or compare wrote{such}"


def _job(folder: Path) -> Job:
    name, _, seed = folder.name.rpartition("-seed")
    for method in METHODS:
        if method == name and seed.isdigit():
            return Job(method, int(seed))
    raise UserError(f"{folder} is not the folder of a run: remove it")


def _versions() -> dict[str, str]:
    return {"strongreg": strongreg.__version__, "torch": torch.__version__, "python": platform.python_version()}
