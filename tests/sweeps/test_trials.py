"""Who has which trial, whoever dies at whatever moment."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from strongreg.sweeps import presence, storage
from strongreg.sweeps.storage import open_study
from strongreg.sweeps.trials import SearchRange, TrialQueue

NUM = 4


@pytest.fixture
def queue(tmp_path):
    """Makes processes' views of one study; the first plans it."""
    made: list[TrialQueue] = []

    def make() -> TrialQueue:
        opened = open_study(f"sqlite:///{tmp_path / 'study.db'}", "s", {"search": {"low": 0.001}})
        made.append(TrialQueue(opened, SearchRange(1e-3, 1.0)))
        return made[-1]

    yield make
    for one in made:
        one.leave()


def _die(queue: TrialQueue) -> None:
    """What a kill does: the kernel lets go of the lock, the file stays."""
    file = queue._presence.file
    queue._presence.leave()
    file.touch()


def _states(queue: TrialQueue) -> list[str]:
    return [trial.state.name for trial, _ in queue._trials()]


def _finish_all(queue: TrialQueue) -> list[int]:
    indices = []
    while (claim := queue.claim(NUM)) is not None:
        assert queue.finish(claim, 0.9, 2.0)
        indices.append(claim.index)
    return indices


def test_a_trial_is_handed_out_once(queue):
    first, second = queue(), queue()
    claims = [q.claim(NUM) for q in (first, second, first, second)]
    assert sorted(claim.index for claim in claims) == [0, 1, 2, 3]
    assert first.claim(NUM) is second.claim(NUM) is None
    assert set(first.hosts_at_work(NUM)) == {claims[1].number, claims[3].number}
    assert all(claim.earlier == () for claim in claims)
    assert [claim.strength for claim in claims] == [first.range.strength_of(claim.index) for claim in claims]


def test_a_killed_process_s_trial_is_taken_up_at_once_by_one_other(queue):
    first, second, third = queue(), queue(), queue()
    claim = first.claim(NUM)
    _die(first)
    again = [c for q in (second, third) for c in iter(lambda q=q: q.claim(NUM), None)]
    assert sorted(c.index for c in again) == [0, 1, 2, 3]
    (anew,) = [c for c in again if c.index == claim.index]
    assert (anew.strength, anew.earlier) == (claim.strength, (claim.number,))
    assert not first._presence.file.exists()
    assert first.beat() == {claim.number}
    assert not first.finish(claim, 0.1, 1.0)
    assert not first.prune(claim)
    for q, c in ((second, c) for c in again):
        assert q.finish(c, 0.9, 2.0)
    assert [trial.accuracy for trial in first.outcomes()] == [0.9] * NUM


def test_of_another_machine_a_silent_process_s_trial_is_taken_up_after_a_while(queue, monkeypatch):
    first, second = queue(), queue()
    claim = first.claim(NUM)
    monkeypatch.setattr("strongreg.sweeps.trials.is_gone", lambda file: False)
    assert sorted(_finish_all(second)) == sorted({0, 1, 2, 3} - {claim.index})
    assert first.beat() == set()
    second._storage.grace_period = -1  # seconds ago, to the database's clock
    assert second.claim(NUM).index == claim.index
    assert first.beat() == {claim.number}


def test_a_process_that_dies_between_the_steps_of_a_claim_loses_nothing(queue, monkeypatch):
    """Right after it has set the trial to running, before anyone knows whose it is."""
    first, second = queue(), queue()
    first.plan(NUM)
    monkeypatch.setattr(first._storage, "set_trial_user_attr", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        first.claim(NUM)
    assert _states(second).count("RUNNING") == 1
    assert len(_finish_all(second)) == NUM - 1
    second._storage.grace_period = -1
    assert len(_finish_all(second)) == 1
    assert second.num_finished(NUM) == NUM


def test_a_process_that_dies_while_it_plans_leaves_the_rest_to_others(queue):
    first, second = queue(), queue()
    first.plan(2)
    assert sorted(_finish_all(second)) == [0, 1, 2, 3]
    assert _states(second) == ["COMPLETE"] * NUM


def test_an_index_that_two_processes_have_put_in_is_trained_once(queue, monkeypatch):
    first, second = queue(), queue()
    first.plan(NUM)
    asked = iter([[0, 1], [1], []])
    monkeypatch.setattr(second, "_missing", lambda _: next(asked, []))
    second.plan(NUM)
    assert len(_states(first)) == NUM + 2
    assert sorted(_finish_all(first)) == [0, 1, 2, 3]
    assert sorted(_states(first)) == ["COMPLETE"] * NUM + ["FAIL"] * 2
    assert len(first.outcomes()) == NUM


def test_what_is_given_back_waits_for_another(queue):
    first, second = queue(), queue()
    claim = first.claim(NUM)
    first.give_back(claim, NUM)
    assert sorted(_finish_all(second)) == [0, 1, 2, 3]
    assert first.beat() == set()


def test_more_trials_add_to_those_there_are_and_fewer_leave_them(queue):
    one = queue()
    assert len(_finish_all(one)) == NUM
    assert one.claim(NUM) is None
    assert one.claim(NUM + 2).index == NUM
    assert (one.num_finished(NUM + 2), one.num_finished(2)) == (NUM, 2)


def test_trials_that_others_have_put_into_the_study_are_left_alone(queue):
    one = queue()
    one.opened.study.enqueue_trial({"strength": 0.5})
    assert len(_finish_all(one)) == NUM
    assert [trial.state.name for trial in one.opened.study.trials].count("WAITING") == 1


# ---------------------------------------------------------------------- locks


def test_a_lock_tells_whether_its_process_lives():
    mine = presence.Presence()
    assert not presence.is_gone(str(mine.file))
    presence.forget(str(mine.file))
    assert mine.file.exists()
    mine.leave()
    assert not mine.file.exists()
    assert not presence.is_gone(str(mine.file))  # perhaps of another machine


def test_nothing_but_a_left_lock_is_taken_for_one(tmp_path):
    left = tmp_path / f"strongreg-{uuid.uuid4().hex}.lock"
    left.touch()
    other, link = tmp_path / "precious.txt", tmp_path / f"strongreg-{uuid.uuid4().hex}.lock"
    other.touch()
    link.symlink_to(other)
    assert [presence.is_gone(file) for file in (str(left), str(other), str(link), None, 3)] == [True, *[False] * 4]
    for file in (left, other, link):
        presence.forget(str(file))
    assert not left.exists()
    assert other.exists()
    assert Path(link).is_symlink()


def test_locks_of_processes_that_died_long_ago_are_removed_and_no_others(tmp_path, monkeypatch, queue):
    monkeypatch.setattr(presence.tempfile, "gettempdir", lambda: str(tmp_path))
    old, new, other = (tmp_path / f"strongreg-{name}.lock" for name in (uuid.uuid4().hex, uuid.uuid4().hex, "mine"))
    for file in (old, new, other):
        file.touch()
    held = presence.Presence()
    for file in (old, other, held.file):
        os.utime(file, (0, 0))
    mine = queue()
    assert not old.exists()
    assert new.exists()
    assert other.exists()
    assert held.file.exists()
    os.utime(mine._presence.file, (0, 0))
    mine.beat()  # dead from now on, others find out by the lock for an hour
    assert mine._presence.file.stat().st_mtime > 0
    held.leave()


def test_a_beat_is_well_within_the_grace():
    assert storage.HEARTBEAT_SECONDS * 3 <= storage.GRACE_SECONDS
