"""A search for the strength of a penalty, with the user's own training function."""

from __future__ import annotations

import math
import numbers
import operator
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from strongreg.sweeps import storage as studies
from strongreg.sweeps.errors import DeadRunError, StudyError
from strongreg.sweeps.result import SearchResult
from strongreg.sweeps.trials import Claim, SearchRange, TrialQueue, check_range

TrainFunction = Callable[[float], tuple[float, float]]
_POLL_SECONDS = 1.0


def search_strength(
    train_fn: TrainFunction,
    low: float,
    high: float,
    *,
    num_trials: int,
    storage: str | None = None,
    study_name: str = "strongreg",
    seed: int = 0,
) -> SearchResult:
    """Try strengths between two ends, evenly in the logarithm, and keep those that no other beats.

    With a ``storage`` what is finished is kept: the same call goes on where it was stopped or killed, and several
    processes or machines that make the same call share the trials among them. None is lost or done twice: the trial of
    a process that was killed is trained anew by another, or by the next call.

    Args:
        train_fn: trains a network with a penalty of the given strength and returns its accuracy and its compression, of
            both the more the better. The accuracy is to be that of validation images: a choice is made by it. A network
            that died is told by :class:`DeadRunError`, by NaN in place of one of the two, or by an infinite
            compression: no weight is left. Whatever else it raises ends the search, and the trial waits for the next
            call.
        low: smallest strength, > 0.
        high: largest strength, > ``low``.
        num_trials: of the whole search, those of earlier calls and other processes included, >= 1.
        storage: a database as SQLAlchemy writes it, such as sqlite:///search.db or postgresql://user@host/database;
            None for memory.
        study_name: tells searches in one storage apart.
        seed: shifts the sequence of strengths; an integer, so that they are the same again.

    Returns:
        All finished trials.

    Raises:
        ImportError: optuna is missing.
        TypeError: ``train_fn`` cannot be called, or does not return two numbers; the range is not of numbers, ``seed``
            no integer, ``storage`` or ``study_name`` no text.
        ValueError: the range is none, ``num_trials`` is below 1, or ``train_fn`` returns an infinite accuracy.
        StudyError: the storage cannot be used, or the study in it is of another range or seed.

    Example:
        >>> import strongreg
        >>> def train(strength):  # stands in for a training loop with strongreg.L1(strength)
        ...     return 0.98 - strength, 1 + 1000 * strength
        >>> found = strongreg.search_strength(train, 1e-4, 1e-1, num_trials=6)
        >>> len(found.trials), len(found.front)
        (6, 6)
        >>> found.best(min_accuracy=0.97).strength <= 0.01
        True
    """
    if not callable(train_fn):
        raise TypeError(f"train_fn={train_fn!r}: must be a function of the strength")
    if isinstance(num_trials, bool) or not isinstance(num_trials, int) or num_trials < 1:
        raise ValueError(f"num_trials={num_trials!r}: must be a whole number >= 1")
    ends = _number("low", low), _number("high", high)
    check_range(*ends, names=("low", "high"))
    range_ = SearchRange(*ends, _integer("seed", seed))
    config = {"search": {"low": range_.lowest, "high": range_.highest, "seed": range_.seed}}
    opened = studies.open_study(storage, study_name, config)
    with studies.closed_on_error(opened.storage):
        queue = TrialQueue(opened, range_)
    try:
        if opened.is_new:
            queue.plan(num_trials)
        while queue.num_finished(num_trials) < num_trials:
            claim = queue.claim(num_trials)
            if claim is None:  # the rest is under way elsewhere
                time.sleep(_POLL_SECONDS)
            else:
                _train(train_fn, claim, queue, num_trials)
        return SearchResult(tuple(queue.outcomes()))
    finally:
        queue.leave()


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, str | bytes | bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name}={value!r}: must be a number > 0, such as 0.001") from error


def _integer(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name}={value!r}: must be an integer, such as 0: it makes the strengths the same again"
        ) from None


def _train(train_fn: TrainFunction, claim: Claim, queue: TrialQueue, num_trials: int) -> None:
    try:
        with _beating(queue):
            values = _values(train_fn, claim.strength)
    except BaseException:
        with suppress(StudyError):  # then the lock or the heartbeat tells
            queue.give_back(claim, num_trials)
        raise
    if values is None:
        queue.prune(claim)
    else:
        queue.finish(claim, *values)


def _values(train_fn: TrainFunction, strength: float) -> tuple[float, float] | None:
    """Accuracy and compression; None of a dead network."""
    try:
        values: Any = train_fn(strength)
    except DeadRunError:
        return None
    if not (isinstance(values, tuple | list) and len(values) == 2):
        raise TypeError(f"train_fn({strength:g}) returned {values!r}: must return accuracy and compression")
    accuracy, compression = values
    if not (isinstance(accuracy, numbers.Real) and isinstance(compression, numbers.Real)):
        raise TypeError(f"train_fn({strength:g}) returned {values!r}: must return two numbers; of a tensor its .item()")
    pair = float(accuracy), float(compression)
    if any(map(math.isnan, pair)):
        return None
    if math.isinf(pair[0]) or pair[1] == -math.inf:
        raise ValueError(
            f"train_fn({strength:g}) returned {values!r}: an accuracy must be finite, and a compression not be -inf; "
            "of a network that died return NaN, or raise strongreg.DeadRunError"
        )
    return None if math.isinf(pair[1]) else pair  # no weight is left: whatever it says is the same for every image


@contextmanager
def _beating(queue: TrialQueue) -> Iterator[None]:
    """Heartbeats while the training function has the thread."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(studies.HEARTBEAT_SECONDS):
            with suppress(StudyError):  # the trial's end will meet it too, where it can be told
                queue.beat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
