"""The largest strength that a network endures, per method, by bisection over short runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from strongreg.experiments.engine import EpochMetrics, RunResult
from strongreg.experiments.engine.record import RESULT_FILE, load_result
from strongreg.experiments.errors import CHOOSE_OUT, UserError, cannot_write
from strongreg.experiments.files import finite_only, read_json, write_json
from strongreg.experiments.pool import Task, TaskPool
from strongreg.experiments.recipe import Method, Recipe, build_recipe
from strongreg.experiments.runnable import check_runnable, holding_out, on_a_real_device, outcome

TOLERANT: tuple[Method, ...] = ("always", "delayed", "coherent")
_SHORT = {"training.epochs": 30, "training.stop_when_dead": 10, "training.checkpoint_every": 0}
_WITH_ZEROS = {"penalty.ramp_share": 0.0}
_WITHOUT_ZEROS = {"penalty.ramp_share": 0.5, "penalty.final_factor": 0.0, "penalty.refit_share": 0.0}


_RECIPE_REMEDY = "delete this one file if its runs are of the same recipe, or choose another --out"
_LEARNED = 0.5  # half way from chance to the dense network
_ACTED = 0.1  # of the steps at which it may: less, and the network lives because it was left alone
_FACTOR = 4.0
_LARGEST = 1e6
_SMALLEST = 1e-9


@dataclass(frozen=True)
class Probe:
    """What a strength did to a method, over all seeds.

    Args:
        method: its name.
        strength: of the penalty.
        accuracies: of each seed, in [0, 1], on the validation images.
        compressions: of each seed; None where no weight is left.
        open_fractions: share of the steps at which the penalty acted, of each seed.
        endured: whether every seed learned, and the penalty acted.
        silent: whether every seed learned because the penalty hardly acted.
    """

    method: Method
    strength: float
    accuracies: tuple[float, ...]
    compressions: tuple[float | None, ...]
    open_fractions: tuple[float, ...]
    endured: bool
    silent: bool


@dataclass(frozen=True)
class Tolerance:
    """The tolerance level of a method.

    Args:
        method: its name.
        endured: largest strength that was endured; 0 if none was.
        failed: smallest larger strength that was not; infinite if none was found.
        reason: "died" or "hardly acted": how it failed there; empty where it did not.
        accuracy: mean over the seeds at the endured strength; NaN if none was.
        compression: mean share of the weights kept there, as weights / weights kept; NaN if none was endured.
        open_fraction: mean share of the steps at which the penalty acted there; NaN if none was.
    """

    method: Method
    endured: float
    failed: float
    reason: str
    accuracy: float
    compression: float
    open_fraction: float


class ToleranceListener(Protocol):
    """Hears of the search."""

    def on_probe(self, probe: Probe) -> None:
        """A strength was tried.

        Args:
            probe: what came of it.
        """


def default_changes_of(penalty: str) -> dict[str, Any]:
    """The fields of a tolerance study that differ from the defaults of compare.

    Short runs at a constant strength, with the refit that keeps the zeros. Weights that L2 has made small have nothing
    to keep: there the strength relaxes to 0 over the first half instead. To switch a strong L2 off at once, at full
    learning rate, kills networks that have lived under it: their gradients are as large as ever, and the small weights
    take them badly (benchmarks/README.md).

    Args:
        penalty: its name.

    Returns:
        Dotted name to value.
    """
    return {**_SHORT, **(_WITHOUT_ZEROS if penalty.lower() == "l2" else _WITH_ZEROS)}


def search(method: Method, start: float, precision: float) -> Iterator[float]:
    """The strengths to try, one after the other: by factors of 4 to a bracket, then by halves of it, in the logarithm.

    Args:
        method: its name, for the message.
        start: the first.
        precision: largest ratio of the two ends of the final bracket, > 1.

    Yields:
        A strength; ``send`` whether it was endured.

    Raises:
        UserError: ``start`` is not positive, or ``precision`` not above 1.
    """
    if not (start > 0 and math.isfinite(start)):
        raise UserError(f"strength={start}: the search for {method} begins at a positive strength")
    if not (precision > 1 and math.isfinite(precision)):
        raise UserError(f"precision={precision}: must be above 1, such as 1.2")
    low, high, strength = 0.0, math.inf, start
    while _SMALLEST < strength < _LARGEST:
        endured = yield strength
        low, high = (max(low, strength), high) if endured else (low, min(high, strength))
        if high == math.inf:
            strength = low * _FACTOR
        elif low == 0.0:
            strength = high / _FACTOR
        elif high / low <= precision:
            return
        else:
            strength = math.sqrt(low * high)


class ToleranceStudy:
    """Probes of several methods in one directory; finished ones are kept when it is opened again.

    Args:
        recipe: what every run shares but the strength; a sixth of the training images is held out if it holds out none.
        methods: of always, delayed and coherent.
        seeds: a strength is endured if it is at every seed.
        directory: where everything is written.
        precision: largest ratio of the two ends of the final bracket, > 1.
        data_dir: where the data sets lie; None for the usual places.

    Raises:
        UserError: a number is out of range, the recipe cannot be run, or the directory cannot be written.
    """

    def __init__(
        self,
        recipe: Recipe,
        methods: Sequence[Method],
        seeds: Sequence[int],
        directory: Path,
        *,
        precision: float = 1.2,
        data_dir: Path | None = None,
    ) -> None:
        self.recipe = on_a_real_device(holding_out(recipe))
        self.directory, self.data_dir = directory, data_dir
        self.methods, self.seeds = list(methods), list(seeds)
        self.dense: list[RunResult] = []
        self.probes: list[Probe] = []
        self._searches = {m: search(m, recipe.penalty.strength, precision) for m in self.methods}
        self._next = {method: next(found) for method, found in self._searches.items()}
        for method in self.methods:
            if "penalty.strength" in recipe.methods.get(method, {}):
                raise UserError(f"methods.{method} sets penalty.strength, which the search has to choose: leave it out")
        check_runnable(self.recipe, ["dense", *self.methods], data_dir)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._check_recipe()
        except OSError as error:
            raise cannot_write(directory, error, CHOOSE_OUT) from error

    def _check_recipe(self) -> None:
        file, shared = self.directory / "recipe.json", self.recipe.model_dump(mode="json")
        if file.exists() and outcome(read_json(file, _RECIPE_REMEDY)) != outcome(shared):
            raise UserError(f"{self.directory} holds runs of another recipe: choose another --out")
        write_json(file, shared)

    def run(
        self,
        workers: int,
        listener: ToleranceListener,
        on_epoch: Callable[[Path, EpochMetrics], None] = lambda *_: None,
    ) -> list[Tolerance]:
        """Search until the brackets are small enough.

        Args:
            workers: processes at a time, >= 1.
            listener: hears of every probe.
            on_epoch: hears of every epoch.

        Returns:
            One tolerance level per method.

        Raises:
            UserError: a process died, or a directory cannot be written.
            KeyboardInterrupt: the user stopped it.
        """
        try:
            with TaskPool(workers) as pool:
                dense = [self._submit(pool, "dense", 0.0, seed) for seed in self.seeds]
                runs = {method: self._probe(pool, method) for method in self.methods}
                self.dense = _results(pool, dense, on_epoch)
                _check_dense(self.dense)
                while runs:
                    pool.wait([f for futures in runs.values() for f in futures if not f.done()] or dense, on_epoch)
                    for method in [m for m, futures in runs.items() if all(f.done() for f in futures)]:
                        probe = self._judge(method, _results(pool, runs.pop(method), on_epoch))
                        listener.on_probe(probe)
                        if self._advance(probe):
                            runs[method] = self._probe(pool, method)
            tolerances = [self._tolerance(method) for method in self.methods]
            self._write(tolerances)
        except OSError as error:
            raise cannot_write(self.directory, error, CHOOSE_OUT) from error
        return tolerances

    def _advance(self, probe: Probe) -> bool:
        """Choose the method's next strength; False if its search is over."""
        self.probes.append(probe)
        try:
            self._next[probe.method] = self._searches[probe.method].send(probe.endured)  # type: ignore[attr-defined]
        except StopIteration:
            return False
        return True

    def _probe(self, pool: TaskPool, method: Method) -> list[Future[RunResult | None]]:
        return [self._submit(pool, method, self._next[method], seed) for seed in self.seeds]

    def _submit(self, pool: TaskPool, method: Method, strength: float, seed: int) -> Future[RunResult | None]:
        name = method if method == "dense" else f"{method}-{strength:.6g}"
        folder = self.directory / "runs" / f"{name}-seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / RESULT_FILE).exists():
            future: Future[RunResult | None] = Future()
            future.set_result(load_result(folder / RESULT_FILE))
            return future
        recipe = build_recipe({"penalty.strength": strength}, self.recipe.model_dump())
        return pool.submit(Task(recipe, method, seed, folder, self.data_dir))

    def _judge(self, method: Method, results: list[RunResult]) -> Probe:
        accuracies = tuple(map(_accuracy, results))
        dense = sum(map(_accuracy, self.dense)) / len(self.dense)
        chance = self.dense[0].chance
        learned = all(x >= chance + _LEARNED * (dense - chance) for x in accuracies)
        gated = 1 - self.recipe.penalty.refit_share
        acted = all(r.open_fraction >= _ACTED * gated for r in results)
        return Probe(
            method,
            results[0].strength,
            accuracies,
            tuple(r.compression for r in results),
            tuple(r.open_fraction for r in results),
            endured=learned and acted,
            silent=learned and not acted,
        )

    def _tolerance(self, method: Method) -> Tolerance:
        mine = [p for p in self.probes if p.method == method]
        best = max((p for p in mine if p.endured), key=lambda p: p.strength, default=None)
        endured = 0.0 if best is None else best.strength
        failures = [p for p in mine if not p.endured and p.strength > endured]
        first = min(failures, key=lambda p: p.strength, default=None)
        failed = math.inf if first is None else first.strength
        reason = "" if first is None else "hardly acted" if first.silent else "died"
        if best is None:
            return Tolerance(method, endured, failed, reason, math.nan, math.nan, math.nan)
        kept = [0.0 if c is None else 1 / c for c in best.compressions]
        compression = 1 / statistics.fmean(kept) if any(kept) else math.inf
        accuracy, opened = statistics.fmean(best.accuracies), statistics.fmean(best.open_fractions)
        return Tolerance(method, endured, failed, reason, accuracy, compression, opened)

    def _write(self, tolerances: list[Tolerance]) -> None:
        content = {
            "tolerance": [finite_only(asdict(t)) for t in tolerances],
            "probes": [asdict(p) for p in sorted(self.probes, key=lambda p: (p.method, p.strength))],
            "dense": [asdict(r) for r in self.dense],
        }
        write_json(self.directory / "tolerance.json", content)


def _accuracy(result: RunResult) -> float:
    assert result.validation_accuracy is not None
    return result.validation_accuracy


def _check_dense(results: Sequence[RunResult]) -> None:
    for result in results:
        if not result.alive:
            raise UserError(
                f"dense, seed {result.seed}, reaches {result.accuracy:.1%}, which is chance: a network that does not "
                "learn without a penalty has no tolerance to find; give it more epochs or another optimizer.lr"
            )


def _results(
    pool: TaskPool,
    futures: list[Future[RunResult | None]],
    on_epoch: Callable[[Path, EpochMetrics], None],
) -> list[RunResult]:
    while not all(future.done() for future in futures):
        pool.wait([future for future in futures if not future.done()], on_epoch)
    results = [future.result() for future in futures]
    return [result for result in results if result is not None]
