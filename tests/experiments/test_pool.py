"""Processes that train: their outcomes, and how they end when something else does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

import pytest

from experiments.recipes import recipe
from strongreg.experiments import pool as pool_module
from strongreg.experiments.data import load_data
from strongreg.experiments.engine import train
from strongreg.experiments.errors import UserError
from strongreg.experiments.pool import Task, TaskPool, interruptible

LONG = recipe(model="lenet300", epochs=2000, training__checkpoint_every=0)
SHORT = recipe(model="lenet300", epochs=2)


def _task(directory: Path, run=LONG, method="coherent", seed=0) -> Task:
    folder = directory / f"{method}-seed{seed}"
    folder.mkdir(parents=True)
    return Task(run, method, seed, folder)


def _until_it_trains(pool: TaskPool, futures: list[Future], num_runs: int = 1) -> set[Path]:
    heard: set[Path] = set()
    deadline = time.monotonic() + 120
    while len(heard) < num_runs and time.monotonic() < deadline:
        pool.wait(futures, lambda path, _: heard.add(path))
    assert len(heard) == num_runs
    return heard


# ---------------------------------------------------------------------- outcomes


def test_a_process_gives_the_run_of_the_engine_and_tells_of_its_epochs(tmp_path):
    heard, done = [], set()
    with TaskPool(1) as pool:
        future = pool.submit(_task(tmp_path / "pool", SHORT))
        while not done:
            done = pool.wait([future], lambda path, metrics: heard.append((path, metrics.epoch)))
        pool.wait([future], lambda path, metrics: heard.append((path, metrics.epoch)))
    alone = _task(tmp_path / "alone", SHORT).directory
    result = train(SHORT, "coherent", 0, load_data("digits"), alone)
    assert {**asdict(future.result()), "train_seconds": 0} == {**asdict(result), "train_seconds": 0}
    assert heard == [(tmp_path / "pool/coherent-seed0", epoch) for epoch in (1, 2)][: len(heard)]
    assert heard
    assert multiprocessing.active_children() == []


def test_an_error_of_the_user_comes_back_as_one(tmp_path):
    with TaskPool(1) as pool:
        future = pool.submit(_task(tmp_path, recipe(model="lenet300", data="nowhere/at/all")))
        with pytest.raises(UserError, match="nowhere/at/all"):
            future.result()


# ---------------------------------------------------------------------- ends


def test_an_interrupt_saves_the_run_under_way_and_begins_no_other(tmp_path):
    tasks = [_task(tmp_path, seed=seed) for seed in range(4)]
    futures: list[Future] = []

    def work() -> None:
        with TaskPool(1) as pool:
            futures.extend(map(pool.submit, tasks))
            _until_it_trains(pool, futures)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert (tmp_path / "coherent-seed0/checkpoint.pt").exists()
    assert futures[0].result() is None
    assert futures[3].cancelled()
    for seed in (1, 2, 3):
        assert list((tmp_path / f"coherent-seed{seed}").iterdir()) == []
    assert not list(tmp_path.glob("*/result.json"))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_is_killed_is_an_error_and_the_others_save_their_runs(tmp_path, number):
    def work() -> None:
        with TaskPool(2) as pool:
            futures = [pool.submit(_task(tmp_path, seed=seed)) for seed in range(2)]
            _until_it_trains(pool, futures, num_runs=2)
            os.kill(sorted(process.pid for process in multiprocessing.active_children())[number], signal.SIGKILL)
            while True:
                pool.wait(futures)

    with pytest.raises(UserError, match=r"a training process died .*try fewer --workers"):
        work()
    assert len(list(tmp_path.glob("*/checkpoint.pt"))) == 1
    assert multiprocessing.active_children() == []


def test_a_process_that_is_terminated_saves_its_run_first_and_does_not_hear_of_ctrl_c(tmp_path):
    def work() -> None:
        with TaskPool(1) as pool:
            future = pool.submit(_task(tmp_path))
            _until_it_trains(pool, [future])
            (process,) = multiprocessing.active_children()
            for number in (signal.SIGINT, signal.SIGHUP):
                os.kill(process.pid, number)
            _until_it_trains(pool, [future])
            os.kill(process.pid, signal.SIGTERM)
            while True:
                pool.wait([future])

    with pytest.raises(UserError, match="a training process died"):
        work()
    assert (tmp_path / "coherent-seed0/checkpoint.pt").exists()


def test_a_broken_pool_is_the_same_error_wherever_it_shows():
    with pytest.raises(UserError, match="a training process died"), TaskPool(1):
        raise BrokenProcessPool("when the next run was submitted")


# ---------------------------------------------------------------------- signals of the parent


@pytest.fixture
def heard():
    """Ctrl-C is heard: a suite in the background of a shell inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_does_not_strike_while_the_locks_of_futures_are_held(monkeypatch, heard, number):
    """Such a lock would stay held, and the pool could not be left any more."""
    answered_late = []

    def interrupted(*_: object, **__: object) -> tuple[set[Future], set[Future]]:
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        answered_late.append(True)
        return set(), set()

    monkeypatch.setattr(pool_module, "wait", interrupted)

    def work() -> None:
        with interruptible(), TaskPool(1) as pool:
            pool.wait([])
            assert answered_late == [True]
            pool.wait([])

    with pytest.raises(KeyboardInterrupt):
        work()
    assert answered_late == [True]
    assert signal.getsignal(signal.SIGINT) is heard


@pytest.mark.usefixtures("heard")
def test_a_signal_to_the_whole_group_is_an_interrupt_and_not_the_death_of_a_process(monkeypatch):
    """The processes may be gone before the parent has answered."""

    def killed(*_: object, **__: object) -> tuple[set[Future], set[Future]]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        dead: Future = Future()
        dead.set_exception(BrokenProcessPool("terminated"))
        return {dead}, set()

    monkeypatch.setattr(pool_module, "wait", killed)

    def work() -> None:
        with interruptible(), TaskPool(1) as pool:
            pool.wait([])

    with pytest.raises(KeyboardInterrupt):
        work()


@pytest.mark.usefixtures("heard")
def test_an_interrupt_after_the_last_wait_is_answered_at_the_end_of_the_block():
    passed = []

    def work() -> None:
        with TaskPool(1):
            os.kill(os.getpid(), signal.SIGINT)
            passed.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert passed == [True]


@pytest.mark.usefixtures("heard")
def test_the_error_of_the_block_goes_before_an_interrupt():
    def work() -> None:
        with TaskPool(1):
            os.kill(os.getpid(), signal.SIGINT)
            raise UserError("the first")

    with pytest.raises(UserError, match="the first"):
        work()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_terminate_is_an_interrupt_within_the_block_only(number):
    inherited = signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored
    before = signal.getsignal(number)

    def work() -> None:
        with interruptible():
            os.kill(os.getpid(), number)
            time.sleep(5)

    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, inherited)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_signals_are_left_alone():
    entered = []

    def work() -> None:
        with interruptible():
            entered.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [signal.getsignal(signal.SIGTERM)]
