"""Hands out the trials of a study: each to one process at a time, and again if that process dies.

**The plan.** Trial i of a search tries ``strength_of(i)``: a quasi-random sequence over the logarithm of the range,
which depends on the seed and on i alone. In one dimension it covers the range evenly after any number of trials, and
which strengths are tried depends neither on the number of processes nor on which of them was faster, was killed or came
later. (A sampler that learns from finished trials, such as optuna's TPE, would have to be told what is under way
elsewhere, and would spend its first ten trials at random in any case.) So all trials can be put into the study as
waiting before the first is begun.

**The claim.** A process takes a waiting trial by setting it to running, which the storage lets one process do only: a
lock on the row in PostgreSQL and MySQL, a lock on the file in SQLite.

**The death.** Whoever finds that a running trial's process is gone sets the trial to failed, which again only one can
do. It is gone if the lock on its file is free (at once, on the same machine), or if its heartbeat has been silent for
a minute (on any other). An index without a trial that has not failed is then put into the study anew by whoever finds
no trial waiting. That these are two steps, and that two processes may put an index in at the same moment, does no harm:
of several trials of one index that have not failed the first counts. A process that was only asleep finds out at its
next heartbeat, and what it would record is refused: an index is finished once.
"""

from __future__ import annotations

import math
import random
import socket
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from strongreg.sweeps.presence import Presence, forget, is_gone, remove_left
from strongreg.sweeps.result import SearchTrial
from strongreg.sweeps.storage import OpenStudy, close

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, TrialState

_GOLDEN = (math.sqrt(5) - 1) / 2
_STRENGTH, _INDEX, _DETAILS = "strength", "index", "details"
_WORKER, _LOCK, _HOST = "worker", "lock", "host"


def check_range(lowest: float, highest: float, names: tuple[str, str] = ("lowest", "highest")) -> None:
    """Check the ends of a range of strengths.

    Args:
        lowest: smallest strength, > 0.
        highest: largest strength, > ``lowest``.
        names: what the caller calls the two.

    Raises:
        ValueError: they are no range.
    """
    low, high = names
    if not (0 < lowest < math.inf):
        raise ValueError(f"{low}={lowest}: the smallest strength of a search must be > 0 and finite")
    if not (lowest < highest < math.inf):
        raise ValueError(f"{high}={highest}: must be finite and above {low}={lowest}")


@dataclass(frozen=True)
class SearchRange:
    """Where to search.

    Args:
        lowest: smallest strength, > 0.
        highest: largest strength, > ``lowest``.
        seed: shifts the sequence of strengths.
    """

    lowest: float
    highest: float
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ends.

        Raises:
            ValueError: they are no range.
        """
        check_range(self.lowest, self.highest)

    def strength_of(self, index: int) -> float:
        """The strength of a trial: the golden ratio's multiples, which fill the range evenly however many there are.

        Args:
            index: of the trial, >= 0.

        Returns:
            A strength of the range.
        """
        position = (random.Random(self.seed).random() + index * _GOLDEN) % 1
        strength = math.exp((1 - position) * math.log(self.lowest) + position * math.log(self.highest))
        return min(max(strength, self.lowest), self.highest)


@dataclass(frozen=True)
class Claim:
    """A trial that is ours to train.

    Args:
        number: its number in the study.
        strength: to try.
        index: in the sequence of strengths.
        earlier: numbers of failed trials of the same index, the last first: what they trained may be gone on with.
        trial_id: what the storage calls it.
    """

    number: int
    strength: float
    index: int
    earlier: tuple[int, ...] = field(repr=False)
    trial_id: int = field(repr=False)


class TrialQueue:
    """The trials of a study, as one process sees them.

    Args:
        opened: the study.
        range_: where to search.
    """

    def __init__(self, opened: OpenStudy, range_: SearchRange) -> None:
        self.opened, self.range = opened, range_
        self._study, self._storage = opened.study, opened.storage
        self._study_id = self._storage.get_study_id_from_name(self._study.study_name)
        remove_left()
        self._presence = Presence()
        self._held: dict[int, Claim] = {}

    def plan(self, num_trials: int) -> None:
        """Put every trial of the search into the study that is not there.

        Args:
            num_trials: of the whole search, >= 1.

        Raises:
            StudyError: the storage cannot be used.
        """
        from optuna.distributions import FloatDistribution
        from optuna.trial import TrialState, create_trial

        distribution = FloatDistribution(self.range.lowest, self.range.highest, log=True)
        with self.opened.errors_told():
            while missing := self._missing(num_trials):
                # others may be filling the same gaps: one at a time, and seldom the same one
                for index in missing if self.opened.is_new else [random.choice(missing)]:
                    trial = create_trial(
                        state=TrialState.WAITING,
                        params={_STRENGTH: self.range.strength_of(index)},
                        distributions={_STRENGTH: distribution},
                        user_attrs={_INDEX: index},
                    )
                    self._study.add_trial(trial)

    def _missing(self, num_trials: int) -> list[int]:
        from optuna.trial import TrialState

        there = {index for trial, index in self._trials() if trial.state != TrialState.FAIL}
        return [index for index in range(num_trials) if index not in there]

    def claim(self, num_trials: int) -> Claim | None:
        """Take a trial that waits, or one of a dead process.

        Args:
            num_trials: of the whole search; others are left waiting.

        Returns:
            The trial, which is ours until it is finished or given back; None if none waits.

        Raises:
            StudyError: the storage cannot be used.
        """
        self._fail_dead()
        claim = self._take_first(num_trials)
        if claim is None:  # what is missing now is a dead process's, or one has died before all were in the study
            self.plan(num_trials)
            claim = self._take_first(num_trials)
        return claim

    def _take_first(self, num_trials: int) -> Claim | None:
        from optuna.trial import TrialState

        with self.opened.errors_told():
            for trial, index in self._trials((TrialState.WAITING,)):
                if index < num_trials and (claim := self._take(trial, index)) is not None:
                    self._held[claim.number] = claim
                    return claim
        return None

    def _take(self, trial: FrozenTrial, index: int) -> Claim | None:
        from optuna.trial import TrialState

        trial_id = trial._trial_id
        self._record_heartbeat(trial_id)  # first: a running trial without one would never be missed
        if not self._set_state(trial_id, TrialState.RUNNING):
            return None
        same = [other for other, i in self._trials() if i == index and other.number != trial.number]
        if any(other.number < trial.number and other.state != TrialState.FAIL for other in same):
            self._set_state(trial_id, TrialState.FAIL)
            return None
        worker = {_LOCK: str(self._presence.file), _HOST: socket.gethostname()}
        self._storage.set_trial_user_attr(trial_id, _WORKER, worker)
        earlier = sorted((other.number for other in same if other.number < trial.number), reverse=True)
        return Claim(trial.number, trial.params[_STRENGTH], index, tuple(earlier), trial_id)

    def finish(self, claim: Claim, accuracy: float, compression: float, details: dict[str, Any] | None = None) -> bool:
        """Record the outcome of a trial that lived.

        Args:
            claim: the trial.
            accuracy: the more the better.
            compression: likewise.
            details: what else is to be known of it, plain data.

        Returns:
            False if another process has taken it up in the meantime: then nothing is recorded.

        Raises:
            StudyError: the storage cannot be used.
        """
        from optuna.trial import TrialState

        return self._record(claim, TrialState.COMPLETE, (accuracy, compression), details)

    def prune(self, claim: Claim, details: dict[str, Any] | None = None) -> bool:
        """Record that the network of a trial died.

        Args:
            claim: the trial.
            details: what else is to be known of it, plain data.

        Returns:
            False if another process has taken it up in the meantime: then nothing is recorded.

        Raises:
            StudyError: the storage cannot be used.
        """
        from optuna.trial import TrialState

        return self._record(claim, TrialState.PRUNED, None, details)

    def _record(
        self, claim: Claim, state: TrialState, values: tuple[float, float] | None, details: dict[str, Any] | None
    ) -> bool:
        from optuna.exceptions import UpdateFinishedTrialError

        self._held.pop(claim.number, None)
        with self.opened.errors_told():
            try:
                self._storage.set_trial_user_attr(claim.trial_id, _DETAILS, details or {})
            except UpdateFinishedTrialError:
                return False
            return self._set_state(claim.trial_id, state, values)

    def give_back(self, claim: Claim, num_trials: int) -> None:
        """Let another process have a trial that is not finished.

        Args:
            claim: the trial.
            num_trials: of the whole search.

        Raises:
            StudyError: the storage cannot be used.
        """
        from optuna.trial import TrialState

        self._held.pop(claim.number, None)
        with self.opened.errors_told():
            self._set_state(claim.trial_id, TrialState.FAIL)
        self.plan(num_trials)

    def beat(self) -> set[int]:
        """Say that our trials are under way; every ``HEARTBEAT_SECONDS``.

        Returns:
            Numbers of those that are ours no more, because we were silent for too long.

        Raises:
            StudyError: the storage cannot be used.
        """
        from optuna.trial import TrialState

        lost: set[int] = set()
        self._presence.beat()
        with self.opened.errors_told():
            for claim in list(self._held.values()):
                if self._storage.get_trial(claim.trial_id).state == TrialState.RUNNING:
                    self._record_heartbeat(claim.trial_id)
                else:
                    lost.add(claim.number)
                    self._held.pop(claim.number, None)
        return lost

    def _fail_dead(self) -> None:
        """Set the running trials of dead processes to failed, so that their indices are missing."""
        from optuna.exceptions import ExperimentalWarning
        from optuna.storages import fail_stale_trials
        from optuna.trial import TrialState

        with self.opened.errors_told():
            running = [trial for trial, _ in self._trials((TrialState.RUNNING,)) if trial.number not in self._held]
            locks = [trial.user_attrs.get(_WORKER, {}).get(_LOCK) for trial in running]
            gone = {lock for lock in set(locks) if is_gone(lock)}
            for trial, lock in zip(running, locks, strict=True):
                if lock in gone:
                    self._set_state(trial._trial_id, TrialState.FAIL)
            for lock in gone:
                forget(lock)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*fail_stale_trials", ExperimentalWarning)
                fail_stale_trials(self._study)

    def num_finished(self, num_trials: int) -> int:
        """How many trials of the search are finished, dead ones too.

        Args:
            num_trials: of the whole search.

        Returns:
            Between 0 and ``num_trials``.

        Raises:
            StudyError: the storage cannot be used.
        """
        with self.opened.errors_told():
            return len({index for _, index in self._trials(_finished()) if index < num_trials})

    def hosts_at_work(self, num_trials: int) -> dict[int, str]:
        """The trials that other processes have under way.

        Args:
            num_trials: of the whole search.

        Returns:
            Number to the name of the machine.

        Raises:
            StudyError: the storage cannot be used.
        """
        from optuna.trial import TrialState

        with self.opened.errors_told():
            running = self._trials((TrialState.RUNNING,))
            others = [trial for trial, i in running if i < num_trials and trial.number not in self._held]
            return {trial.number: trial.user_attrs.get(_WORKER, {}).get(_HOST, "another machine") for trial in others}

    def outcomes(self) -> list[SearchTrial]:
        """Every finished trial, by strength.

        Returns:
            One entry for each.

        Raises:
            StudyError: the storage cannot be used.
        """
        with self.opened.errors_told():
            found: dict[int, SearchTrial] = {}
            for trial, index in self._trials(_finished()):
                accuracy, compression = trial.values or (math.nan, math.nan)
                details = trial.user_attrs.get(_DETAILS, {})
                outcome = SearchTrial(trial.number, trial.params[_STRENGTH], accuracy, compression, details)
                found.setdefault(index, outcome)
        return sorted(found.values(), key=lambda trial: (trial.strength, trial.number))

    def leave(self) -> None:
        """This process takes no more trials."""
        self._presence.leave()
        close(self._storage)

    # ------------------------------------------------------------------ storage

    def _trials(self, states: Iterable[TrialState] | None = None) -> list[tuple[FrozenTrial, int]]:
        """Trials with their index, by number; those that others have put into the study are none of ours."""
        wanted = None if states is None else tuple(states)
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False, states=wanted)
        ours = [(trial, trial.user_attrs.get(_INDEX)) for trial in sorted(trials, key=lambda trial: trial.number)]
        return [(trial, index) for trial, index in ours if isinstance(index, int) and _STRENGTH in trial.params]

    def _set_state(self, trial_id: int, state: TrialState, values: tuple[float, float] | None = None) -> bool:
        """Whether it was ours to set: a finished trial stays what it is, and one process begins a waiting one."""
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            return self._storage.set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            return False

    def _record_heartbeat(self, trial_id: int) -> None:
        from optuna.storages import RDBStorage

        if isinstance(self._storage, RDBStorage):
            self._storage.record_heartbeat(trial_id)


def _finished() -> tuple[TrialState, ...]:
    from optuna.trial import TrialState

    return TrialState.COMPLETE, TrialState.PRUNED
