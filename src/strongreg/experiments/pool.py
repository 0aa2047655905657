"""Trains runs in processes, hears of their epochs, and stops them with their checkpoints saved."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from strongreg.experiments.data import Data, TextData, load_data
from strongreg.experiments.engine import EpochMetrics, RunResult, RunStoppedError, train
from strongreg.experiments.engine.process import prepare_process
from strongreg.experiments.errors import Terminated, UserError
from strongreg.experiments.recipe import Method, Recipe

_POLL_SECONDS = 0.1
_EXIT_TERMINATED = 128 + signal.SIGTERM
_TERMINATING = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]


@dataclass(frozen=True)
class Task:
    """One run to train.

    Args:
        recipe: what it is.
        method: its method.
        seed: of initial weights and batch order.
        directory: of its files; exists.
        data_dir: where the data sets lie; None for the usual places.
    """

    recipe: Recipe
    method: Method
    seed: int
    directory: Path
    data_dir: Path | None = None


class _DeferredSignals:
    """Ctrl-C and requests to terminate, answered where that is safe.

    An exception out of a signal handler may strike within the standard library while it holds the lock of a future,
    which is then never released: the thread that manages the processes would wait for it for ever.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[..., object]] = {}
        self._arrived: list[int] = []

    def begin(self) -> None:
        """Note signals from here on; those that nobody handles in Python stay as they are."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, *_TERMINATING):
            handler = signal.getsignal(number)
            if callable(handler):
                self._handlers[number] = handler
                signal.signal(number, lambda number, _: self._arrived.append(number))

    def answer(self) -> None:
        """Call the handlers of what has arrived since, which may raise."""
        while self._arrived:
            number = self._arrived.pop(0)
            self._handlers[number](number, None)

    def end(self) -> None:
        """Signals are answered at once again."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


class TaskPool:
    """Processes that train runs; within a ``with`` block.

    Left by an exception the runs under way save their checkpoints, and the others are not begun. Within the block
    Ctrl-C and requests to terminate take effect in :meth:`wait` only, and at the end.

    Args:
        workers: processes at a time, >= 1.
        threads: torch threads in each process, >= 1.
    """

    def __init__(self, workers: int, threads: int = 1) -> None:
        context = _context()
        with _interrupts_held_back():  # multiprocessing's own helper starts here, and outlives a closed terminal too
            self._epochs: multiprocessing.Queue[tuple[Path, EpochMetrics]] = context.Queue()
            # without a lock: a process that is killed while it asks would hold it for ever
            self._stop = context.RawValue("b", 0)
        initial = (self._epochs, self._stop, threads, dict(os.environ))
        self._processes: set[BaseProcess] = set()
        self._signals = _DeferredSignals()
        self._pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=initial)

    def __enter__(self) -> TaskPool:
        """The pool itself; processes start with the first task."""
        self._signals.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop what is under way, and wait for it; another Ctrl-C does not end the waiting.

        Raises:
            ProcessDiedError: a process died.
            KeyboardInterrupt: the user pressed Ctrl-C after the last :meth:`wait`.
        """
        self._stop.value = 1
        try:
            self._pool.shutdown(cancel_futures=True)
        finally:
            self._signals.end()
        if error is None or isinstance(error, BrokenProcessPool):
            self._signals.answer()
        if isinstance(error, BrokenProcessPool):  # of a submit, or of an outcome that nobody waited for
            raise _process_died() from error

    def submit(self, task: Task) -> Future[RunResult | None]:
        """Train a run when a process is free.

        Args:
            task: the run.

        Returns:
            What becomes its outcome; None if it was stopped.
        """
        with _interrupts_held_back():  # the processes start here and inherit it: the parent alone is interrupted
            before = set(multiprocessing.active_children())
            future = self._pool.submit(_work, task)
            self._processes |= set(multiprocessing.active_children()) - before
        return future

    def wait(
        self,
        pending: Iterable[Future[RunResult | None]],
        on_epoch: Callable[[Path, EpochMetrics], None] = lambda *_: None,
    ) -> set[Future[RunResult | None]]:
        """Wait a moment.

        Args:
            pending: what was submitted.
            on_epoch: hears of the epochs since: a run's directory and its metrics.

        Returns:
            What is finished by now.

        Raises:
            ProcessDiedError: a process died.
            KeyboardInterrupt: the user pressed Ctrl-C, or asked to terminate, since the last call.
        """
        self._signals.answer()
        done, _ = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        with contextlib.suppress(queue.Empty):
            while True:
                on_epoch(*self._epochs.get_nowait())
        broken = next((e for future in done if isinstance(e := future.exception(), BrokenProcessPool)), None)
        # the executor notices the death of a process that it started last only at its next event
        if broken is not None or any(process.exitcode is not None for process in self._processes):
            self._signals.answer()  # what ends the processes may have been meant for all
            raise _process_died() from broken
        return done


def _context() -> Any:
    """How processes begin: with the modules there already, forked by a helper that has done nothing but import them.

    The import of torch is most of what the beginning of a process takes; where there is a helper, only it imports.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class ProcessDiedError(UserError):
    """A training process died; what it trained goes on from its checkpoint in another one."""


def _process_died() -> ProcessDiedError:
    return ProcessDiedError("a training process died (out of memory?): try fewer --workers; finished runs are kept")


def recipe_data(recipe: Recipe, data_dir: Path | None) -> Data:
    """The data of a recipe.

    Args:
        recipe: any recipe.
        data_dir: where the data sets lie; None for the usual places.

    Returns:
        Training, validation and test examples.

    Raises:
        UserError: they cannot be read, or something of the recipe is for images and they are text.
    """
    section = recipe.data
    data = load_data(
        section.name,
        data_dir=data_dir,
        validation_share=section.validation_share,
        num_train=section.num_train,
        context=section.context,
    )
    if isinstance(data, TextData):
        for_images = {f"data.{key}": getattr(section, key) for key in ("crop_padding", "flip", "cutout")}
        for_images["training.channels_last"] = recipe.training.channels_last
        for key, value in for_images.items():
            if value:
                raise UserError(f"{key}={value} is for images, and {section.name} is a text: leave it out")
    return data


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within the block a request to terminate (SIGTERM, SIGHUP) is what Ctrl-C is: checkpoints are saved.

    What was ignored before, such as SIGHUP under nohup, stays ignored.
    """

    def interrupt(number: int, _: object) -> None:
        raise Terminated(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in _TERMINATING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within the block Ctrl-C and a request to terminate are noted: the processes that train together stop together.

    Yields:
        Whether there was one.
    """
    requests: list[int] = []
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [number for name in names if (number := getattr(signal, name, None)) is not None]
    before = {number: signal.signal(number, lambda number, _: requests.append(number)) for number in numbers}
    try:
        yield lambda: bool(requests)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C waits until the end of the block; processes started within never hear of it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *_TERMINATING})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---------------------------------------------------------------------- within a process

_epochs: multiprocessing.Queue[tuple[Path, EpochMetrics]]
_stop: Any
_is_training = False
_is_terminated = False


def _on_terminate(*_: object) -> None:
    """A worker that is asked to terminate saves its checkpoint first."""
    global _is_terminated
    if not _is_training:
        os._exit(_EXIT_TERMINATED)
    _is_terminated = True


def _start_worker(
    epochs: multiprocessing.Queue[tuple[Path, EpochMetrics]], stop: Any, threads: int, environment: dict[str, str]
) -> None:
    global _epochs, _stop
    _epochs, _stop = epochs, stop
    os.environ.clear()  # the helper's is that of the moment when it began
    os.environ.update(environment)
    for name in ("SIGINT", "SIGHUP"):  # Ctrl-C and a closed terminal reach the whole group; the parent decides
        if (number := getattr(signal, name, None)) is not None:
            signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _on_terminate)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    prepare_process()
    torch.nn.Conv2d(1, 1, 3)(torch.zeros(1, 1, 8, 8)).sum().backward()  # torch's own start-up is not the first run's


def _end_with_parent() -> None:
    """A worker whose parent was killed must not go on writing beside the one that takes up its run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(_EXIT_TERMINATED)


def _work(task: Task) -> RunResult | None:
    """One run; None if it was stopped before its end."""

    def on_epoch(metrics: EpochMetrics) -> None:
        _epochs.put((task.directory, metrics))

    def should_stop() -> bool:
        return _is_terminated or bool(_stop.value)

    global _is_training
    if should_stop():  # it was in the queue of a process when the user stopped it all
        return None
    data = recipe_data(task.recipe.for_method(task.method), task.data_dir)
    _is_training = True
    try:
        return train(task.recipe, task.method, task.seed, data, task.directory, on_epoch, should_stop)
    except RunStoppedError:
        if _is_terminated:
            os._exit(_EXIT_TERMINATED)
        return None
    finally:
        _is_training = False
