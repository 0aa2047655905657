"""A sweep over the strength: trials of one method in a study that processes and machines share.

The command is the parent: it makes the study, takes trials, has them trained in the processes of its pool, and records
what came of them; the processes never speak with the storage. Any number of commands, on one machine or many, work on
one study. So there are two kinds of death. A *process of the pool* that is killed takes nothing with it: its parent
trains the trial on from the last checkpoint in a new pool. A *command* that is killed, or its machine, leaves trials
that others take up (:mod:`strongreg.sweeps.trials`), from the checkpoint where they can see the same directory. The
runs of a trial lie in folders with the trial's number, and a trial that is taken up has a new number: the folder is
renamed, so that nobody else writes there (:mod:`strongreg.experiments.sweep_runs`).
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from strongreg.diagnosis.record import is_above_chance
from strongreg.experiments.engine import RunResult
from strongreg.experiments.engine.record import RESULT_FILE, load_result
from strongreg.experiments.errors import CHOOSE_OUT, UserError, cannot_write
from strongreg.experiments.files import finite_only, read_json, write_json
from strongreg.experiments.pool import ProcessDiedError, Task, TaskPool
from strongreg.experiments.recipe import Method, Recipe, build_recipe
from strongreg.experiments.runnable import check_runnable, holding_out, on_a_real_device, outcome
from strongreg.experiments.sweep_runs import RunFolders
from strongreg.sweeps import SearchResult, SearchTrial, StudyError
from strongreg.sweeps import storage as studies
from strongreg.sweeps.trials import Claim, SearchRange, TrialQueue

SWEPT: tuple[Method, ...] = ("always", "delayed", "coherent")
"""The methods that have a strength."""
STUDY_NAME = "sweep"
FILE = "sweep.json"
STOP_WHEN_DEAD = 10
"""After how many epochs at chance a run is ended, unless the recipe says."""
_DATABASE = "sweep.db"
_WIDTH = 10.0  # the range is a tenth to ten times the recipe's strength
_POLL_SECONDS = 0.1
_CLAIM_SECONDS = 2.0
_MOST_DEATHS = 3
_FILE_REMEDY = "delete this one file if the directory is of the same sweep, or choose another --out"


class SweepListener(Protocol):
    """Hears of a sweep."""

    def on_trial(self, trial: SearchTrial, num_finished: int) -> None:
        """A trial of this command is finished.

        Args:
            trial: what came of it.
            num_finished: how many of the sweep are.
        """

    def on_death(self) -> None:
        """A training process died; what it trained goes on in another one."""

    def on_wait(self, hosts: Sequence[str]) -> None:
        """All that is left is under way in other commands.

        Args:
            hosts: their machines.
        """

    def on_stop(self) -> None:
        """The user has interrupted it; the runs under way are saving their checkpoints."""


@dataclass
class _Held:
    """A trial of ours with its runs."""

    claim: Claim
    futures: list[Future[RunResult | None]] = field(default_factory=list)


class Sweep:
    """Trials of several strengths in one study.

    Args:
        recipe: what every trial shares but the strength; a sixth of the training images is held out if it holds out
            none, and a run is ended when it has been at chance for 10 epochs if it does not say for how many.
        method: of always, delayed and coherent.
        seeds: a trial trains once with each.
        num_trials: of the whole sweep, those of other commands and earlier ones included.
        directory: where the runs lie; made if it does not exist.
        storage: URL of the study's database; None for an SQLite file in the directory.
        study_name: of the study in it.
        lowest: smallest strength; None for a tenth of the recipe's.
        highest: largest strength; None for ten times the recipe's.
        search_seed: shifts the sequence of strengths.
        data_dir: where the data sets lie; None for the usual places.

    Raises:
        UserError: a number is out of range, the recipe cannot be run, the directory cannot be written, the storage
            cannot be used, or one of the two holds another sweep.
    """

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        seeds: Sequence[int],
        num_trials: int,
        directory: Path,
        *,
        storage: str | None = None,
        study_name: str = STUDY_NAME,
        lowest: float | None = None,
        highest: float | None = None,
        search_seed: int = 0,
        data_dir: Path | None = None,
    ) -> None:
        self.recipe = on_a_real_device(_ending_dead_runs(holding_out(recipe)))
        self.method, self.seeds, self.num_trials = method, list(seeds), num_trials
        self.directory, self.data_dir = directory, data_dir
        if "penalty.strength" in recipe.methods.get(method, {}):
            raise UserError(f"methods.{method} sets penalty.strength, which the sweep has to choose: leave it out")
        self.range = _range_of(recipe.penalty.strength, lowest, highest, search_seed)
        check_runnable(self.recipe, [method], data_dir)
        self._held: dict[int, _Held] = {}
        self.study_name = study_name
        try:
            self._folders = RunFolders(directory, self.recipe, method)
            with _made(directory / "runs"), _as_user_errors():
                self._open(storage)
        except ImportError as error:
            raise UserError(str(error)) from error
        except OSError as error:
            raise cannot_write(directory, error, CHOOSE_OUT) from error

    def _open(self, storage: str | None) -> None:
        """Open the study, once it is known that the directory is of no other one."""
        url = studies.file_url(self.directory / _DATABASE) if storage is None else storage
        self.storage = studies.show_url(url)
        file = self.directory / FILE
        if file.exists():  # before anything is written into the database
            self._check_identity(studies.identity_of(url, self.study_name))
        self.num_runs_taken_over = 0 if file.exists() else self._folders.check()
        opened = studies.open_study(url, self.study_name, self._config())
        self._identity = opened.identity
        with studies.closed_on_error(opened.storage):
            if not file.exists():
                write_json(file, {"study_id": opened.identity})
            self._check_identity(opened.identity)  # another command may have been here first
            self._queue = TrialQueue(opened, self.range)
            if opened.is_new:
                self._queue.plan(self.num_trials)

    def _config(self) -> dict[str, Any]:
        """What decides the outcome of a trial; the machines may differ in their devices."""
        recipe = outcome(self.recipe.model_dump(mode="json"))
        del recipe["penalty"]["strength"], recipe["training"]["device"]
        search = {"lowest": self.range.lowest, "highest": self.range.highest, "seed": self.range.seed}
        return {**recipe, "sweep": {"method": self.method, "seeds": self.seeds, **search}}

    def _check_identity(self, identity: str | None) -> None:
        if identity is None or read_json(self.directory / FILE, _FILE_REMEDY).get("study_id") != identity:
            raise UserError(
                f"{self.directory} holds runs of another study than {self.study_name!r} in {self.storage}: choose "
                f"another --out, or the --storage and --study that it was made with; if that database is gone, delete "
                f"{self.directory / FILE}, and what is finished is taken over"
            )

    # ------------------------------------------------------------------ training

    @property
    def num_finished(self) -> int:
        """Number of trials of the sweep that are finished."""
        with _as_user_errors():
            return self._queue.num_finished(self.num_trials)

    @property
    def found(self) -> SearchResult:
        """The finished trials, of all commands."""
        with _as_user_errors():
            return SearchResult(tuple(self._queue.outcomes()))

    def run(self, workers: int, listener: SweepListener) -> None:
        """Train until every trial of the sweep is finished, here or elsewhere, and write sweep.json.

        Args:
            workers: processes at a time, >= 1.
            listener: hears of the progress.

        Raises:
            UserError: processes died again and again, a directory cannot be written, or the storage cannot be used.
            KeyboardInterrupt: the user stopped it.
        """
        self._num_deaths = 0
        try:
            with _as_user_errors():
                self._train_all(workers, listener)
        except OSError as error:
            raise cannot_write(self.directory, error, CHOOSE_OUT) from error
        finally:
            self._give_back()

    def _train_all(self, workers: int, listener: SweepListener) -> None:
        while True:
            try:
                with TaskPool(workers) as pool:
                    try:
                        self._train(pool, workers, listener)
                    except KeyboardInterrupt:
                        listener.on_stop()
                        raise
                return
            except ProcessDiedError:
                self._num_deaths += 1
                if self._num_deaths >= _MOST_DEATHS:
                    raise
                listener.on_death()

    def _train(self, pool: TaskPool, workers: int, listener: SweepListener) -> None:
        for held in self._held.values():  # of a pool before
            held.futures = [self._submit(pool, held.claim, seed) for seed in self.seeds]
        next_beat = next_claim = 0.0
        told_of: list[str] = []
        while True:
            now = time.monotonic()
            if now >= next_beat:
                for number in self._queue.beat():
                    self._drop(number)
                next_beat = now + studies.HEARTBEAT_SECONDS
            pending = [future for held in self._held.values() for future in held.futures if not future.done()]
            if len(pending) < workers and now >= next_claim and not self._claim(pool):
                next_claim = now + _CLAIM_SECONDS
                if not self._held and self._queue.num_finished(self.num_trials) >= self.num_trials:
                    return
                hosts = [] if self._held else sorted(set(self._queue.hosts_at_work(self.num_trials).values()))
                if hosts and hosts != told_of:
                    listener.on_wait(hosts)
                    told_of = hosts
            if not pending:
                time.sleep(_POLL_SECONDS if not self._held else 0)
            pool.wait(pending)
            for held in [h for h in self._held.values() if h.futures and all(f.done() for f in h.futures)]:
                self._conclude(held, listener)
                next_claim = 0.0

    def _claim(self, pool: TaskPool) -> bool:
        """Take a trial and have it trained; False if none is to be had."""
        claim = self._queue.claim(self.num_trials)
        if claim is None:
            return False
        held = self._held[claim.number] = _Held(claim)
        held.futures = [self._submit(pool, claim, seed) for seed in self.seeds]
        return True

    def _submit(self, pool: TaskPool, claim: Claim, seed: int) -> Future[RunResult | None]:
        recipe = build_recipe({"penalty.strength": claim.strength}, self.recipe.model_dump())
        folder = self._folders.take(recipe, seed, claim.number, claim.earlier)
        if (folder / RESULT_FILE).exists():
            future: Future[RunResult | None] = Future()
            future.set_result(load_result(folder / RESULT_FILE))
            return future
        return pool.submit(Task(recipe, self.method, seed, folder, self.data_dir))

    def _conclude(self, held: _Held, listener: SweepListener) -> None:
        """Record what came of a trial all of whose runs are done."""
        error = next((found for future in held.futures if (found := future.exception()) is not None), None)
        if error is not None:
            for number in (lost := self._queue.beat()):
                self._drop(number)
            if held.claim.number in lost:  # its folder is another's by now
                return
            raise error
        results = [future.result() for future in held.futures]
        runs = [result for result in results if result is not None]
        del self._held[held.claim.number]
        if len(runs) < len(results):  # stopped
            self._queue.give_back(held.claim, self.num_trials)
            return
        trial = judge(held.claim, runs)
        if trial.is_dead:
            recorded = self._queue.prune(held.claim, trial.details)
        else:
            recorded = self._queue.finish(held.claim, trial.accuracy, trial.compression, trial.details)
        self._num_deaths = 0
        if recorded:
            listener.on_trial(trial, self._queue.num_finished(self.num_trials))

    def _drop(self, number: int) -> None:
        """Leave a trial to the one who has taken it up."""
        for future in self._held.pop(number).futures:
            future.cancel()

    def _give_back(self) -> None:
        """What is not finished is for others, or for the same command again."""
        with contextlib.suppress(StudyError):  # then they find out by the lock or the heartbeat
            for held in self._held.values():
                self._queue.give_back(held.claim, self.num_trials)
        self._held.clear()
        self._queue.leave()

    # ------------------------------------------------------------------ outcome

    def write(self, found: SearchResult, chosen: SearchTrial | None) -> dict[str, Any]:
        """Write sweep.json.

        Args:
            found: the finished trials.
            chosen: the one that was chosen; None if none lives.

        Returns:
            What was written.

        Raises:
            UserError: the file cannot be written.
        """
        content = {
            "study_id": self._identity,
            "study": self.study_name,
            "storage": self.storage,
            "config": self._config(),
            "num_trials": self.num_trials,
            "trials": [finite_only(asdict(trial)) for trial in found.trials],
            "front": [trial.number for trial in found.front],
            "chosen": None if chosen is None else chosen.number,
        }
        try:
            write_json(self.directory / FILE, content)
        except OSError as error:
            raise cannot_write(self.directory, error, CHOOSE_OUT) from error
        return content


def judge(claim: Claim, results: Sequence[RunResult]) -> SearchTrial:
    """What came of a trial: the means over its seeds; dead if one of them is, on the validation images.

    Args:
        claim: the trial.
        results: of each seed.

    Returns:
        The trial; test accuracy and sizes are among its details and decide nothing.
    """
    accuracies = [_validation_accuracy(result) for result in results]
    kept = [result.num_nonzero / result.num_weights for result in results]
    alive = all(is_above_chance(a, r.chance) for a, r in zip(accuracies, results, strict=True)) and all(kept)
    sizes = [result.file_bytes for result in results if result.file_bytes is not None]
    details = {
        "seeds": [result.seed for result in results],
        "accuracies": accuracies,
        "test_accuracy": statistics.fmean(result.accuracy for result in results),
        "kept": statistics.fmean(kept),
        "open_fraction": statistics.fmean(result.open_fraction for result in results),
        "epochs": [result.epochs for result in results],
        "file_bytes": statistics.fmean(sizes) if sizes else None,
        "train_seconds": sum(result.train_seconds for result in results),
    }
    accuracy, compression = (
        (statistics.fmean(accuracies), 1 / statistics.fmean(kept)) if alive else (math.nan, math.nan)
    )
    return SearchTrial(claim.number, claim.strength, accuracy, compression, details)


def _validation_accuracy(result: RunResult) -> float:
    assert result.validation_accuracy is not None
    return result.validation_accuracy


def _range_of(strength: float, lowest: float | None, highest: float | None, seed: int) -> SearchRange:
    if strength == 0 and None in (lowest, highest):
        raise UserError("strength=0.0: a sweep goes from a tenth to ten times of it; give --lowest and --highest")
    try:
        return SearchRange(
            strength / _WIDTH if lowest is None else lowest, strength * _WIDTH if highest is None else highest, seed
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _ending_dead_runs(recipe: Recipe) -> Recipe:
    if recipe.training.stop_when_dead > 0:
        return recipe
    return build_recipe({"training.stop_when_dead": STOP_WHEN_DEAD}, recipe.model_dump())


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder and those above it are there; after an error in the block, what was made for it and is empty is not."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def _as_user_errors() -> Iterator[None]:
    try:
        yield
    except StudyError as error:
        raise UserError(str(error)) from error
