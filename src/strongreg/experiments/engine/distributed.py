"""One run in several processes: what they agree on, and what only the first of them does."""

from __future__ import annotations

import abc
import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from strongreg.experiments.engine.rendezvous import own_store
from strongreg.experiments.errors import UserError

Result = TypeVar("Result")

_STEPS_BETWEEN_QUESTIONS = 20  # on an accelerator, whose queue of work a question would let run dry


class World(abc.ABC):
    """The processes that train one run together, each on its share of every batch.

    Weights, optimizers, penalties and gates are the same in all of them, bit for bit: they begin with the same weights
    and take the same steps along the same mean gradient. All must call the same methods in the same order.
    """

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints, writes files and evaluates."""
        return self.rank == 0

    @abc.abstractmethod
    def device(self, name: str) -> torch.device:
        """The device of this process.

        Args:
            name: of a recipe.

        Returns:
            The device; of several GPUs the one of this process.

        Raises:
            UserError: there is none for it.
        """

    @abc.abstractmethod
    def seed_draws(self, seed: int) -> None:
        """Seed torch's own generators so that the processes draw different numbers, for dropout.

        Args:
            seed: of the run.
        """

    @abc.abstractmethod
    def parallel(self, model: nn.Module) -> nn.Module:
        """A network whose backward pass leaves in ``.grad`` the mean gradient over the processes.

        Args:
            model: the network, on its device.

        Returns:
            A module of the same parameters.
        """

    @abc.abstractmethod
    def no_sync(self, parallel: nn.Module) -> contextlib.AbstractContextManager[object]:
        """Within the block gradients are summed up, and not yet averaged over the processes.

        Args:
            parallel: what :meth:`parallel` returned.

        Returns:
            A context.
        """

    @abc.abstractmethod
    def steps_between_questions(self, device: torch.device) -> int:
        """How often the processes ask one another whether one of them is to stop.

        Args:
            device: of this process.

        Returns:
            A number of optimizer steps, >= 1.
        """

    @abc.abstractmethod
    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process.

        Args:
            flag: of this process.

        Returns:
            The same in all.
        """

    @abc.abstractmethod
    def mean(self, number: Tensor) -> float:
        """The mean over the processes.

        Args:
            number: of this process, 0-d.

        Returns:
            The same in all.
        """

    @abc.abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """What every process has.

        Args:
            value: of this process; plain data, and tensors on the CPU.

        Returns:
            One entry per process, by rank.
        """

    @abc.abstractmethod
    def on_main(self, function: Callable[[], Result]) -> Result:
        """Call a function in the first process only, while the others wait.

        Args:
            function: reads or writes files, prints, or evaluates.

        Returns:
            What it returned, in all processes.

        Raises:
            UserError: the function did, in all processes.
            OSError: the function did, in all processes.
        """

    @abc.abstractmethod
    def everywhere(self, function: Callable[[], Result]) -> Result:
        """Call a function in every process; if it fails in one, it fails in all.

        Args:
            function: to call; it must not wait for other processes.

        Returns:
            What it returned in this process.

        Raises:
            UserError: the function did in a process; the first such process's, in all.
        """


@dataclass(frozen=True)
class OneProcess(World):
    """A run that is trained by one process: nothing to agree on."""

    rank = 0
    size = 1

    def device(self, name: str) -> torch.device:
        """See :meth:`World.device`."""
        return torch.device(name)

    def seed_draws(self, seed: int) -> None:
        """See :meth:`World.seed_draws`; they go on from the initial weights."""

    def parallel(self, model: nn.Module) -> nn.Module:
        """See :meth:`World.parallel`."""
        return model

    def no_sync(self, parallel: nn.Module) -> contextlib.AbstractContextManager[object]:
        """See :meth:`World.no_sync`."""
        del parallel
        return contextlib.nullcontext()

    def steps_between_questions(self, device: torch.device) -> int:
        """See :meth:`World.steps_between_questions`."""
        del device
        return 1

    def any(self, flag: bool) -> bool:
        """See :meth:`World.any`."""
        return flag

    def mean(self, number: Tensor) -> float:
        """See :meth:`World.mean`."""
        return float(number)

    def gather(self, value: Any) -> list[Any]:
        """See :meth:`World.gather`."""
        return [value]

    def on_main(self, function: Callable[[], Result]) -> Result:
        """See :meth:`World.on_main`."""
        return function()

    def everywhere(self, function: Callable[[], Result]) -> Result:
        """See :meth:`World.everywhere`."""
        return function()


ALONE = OneProcess()
_has_joined = False


@dataclass(frozen=True)
class ProcessGroup(World):
    """The processes of torchrun, joined by :func:`joined`.

    Args:
        rank: number of this process, from 0.
        size: number of processes, >= 2.
        local_rank: number of this process on its machine.
    """

    rank: int
    size: int
    local_rank: int

    def device(self, name: str) -> torch.device:
        """See :meth:`World.device`."""
        device = torch.device(name)
        if device.type == "cpu":
            return device
        if name != "cuda":
            raise UserError(f"device {name!r}: the processes of torchrun train on cpu, or on cuda, one GPU each")
        num_devices = torch.cuda.device_count()
        if self.local_rank >= num_devices:
            raise UserError(f"{num_devices} GPUs here: give torchrun --nproc-per-node {num_devices}, or --device cpu")
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def seed_draws(self, seed: int) -> None:
        """See :meth:`World.seed_draws`."""
        torch.manual_seed(seed + self.rank)

    def parallel(self, model: nn.Module) -> nn.Module:
        """See :meth:`World.parallel`; buffers (batch normalization's running statistics) are those of rank 0."""
        return DistributedDataParallel(model)

    def no_sync(self, parallel: nn.Module) -> contextlib.AbstractContextManager[object]:
        """See :meth:`World.no_sync`."""
        context: contextlib.AbstractContextManager[object] = parallel.no_sync()  # type: ignore[operator]
        return context

    def steps_between_questions(self, device: torch.device) -> int:
        """See :meth:`World.steps_between_questions`."""
        return 1 if device.type == "cpu" else _STEPS_BETWEEN_QUESTIONS

    def any(self, flag: bool) -> bool:
        """See :meth:`World.any`."""
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def mean(self, number: Tensor) -> float:
        """See :meth:`World.mean`."""
        total = number.detach().clone()
        dist.all_reduce(total)
        return float(total) / self.size

    def gather(self, value: Any) -> list[Any]:
        """See :meth:`World.gather`."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def on_main(self, function: Callable[[], Result]) -> Result:
        """See :meth:`World.on_main`."""
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except (UserError, OSError) as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome)
        result, failure = outcome
        if failure is not None:
            raise failure
        return result  # type: ignore[no-any-return]

    def everywhere(self, function: Callable[[], Result]) -> Result:
        """See :meth:`World.everywhere`."""
        results: list[Result] = []
        failure: UserError | None = None
        try:
            results.append(function())
        except UserError as error:
            failure = error
        failures = [error for error in self.gather(failure) if error is not None]
        if failures:
            raise failures[0]
        return results[0]


@dataclass(frozen=True)
class Launch:
    """What torchrun tells each of its processes.

    Args:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Launch:
        """Read the environment variables RANK, WORLD_SIZE and LOCAL_RANK.

        Args:
            environment: where they are.

        Returns:
            What they say; one process where one of them is missing or no number.
        """
        texts = [environment.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
        return cls(*map(int, texts)) if all(text.isdecimal() for text in texts) else cls()


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """Join the processes that torchrun started; one process without torchrun, or where it started one.

    Yields:
        They, until the end of the block: gloo carries what is on the CPU, NCCL what is on GPUs. Warnings are shown by
        the first process.

    Raises:
        UserError: this build of torch cannot train in several processes, the others did not come, or one has ended.
    """
    launch = Launch.read()
    if launch.size == 1:
        yield ALONE
        return
    if not (dist.is_available() and dist.is_gloo_available()):
        raise UserError("this build of torch cannot train in several processes: start without torchrun")
    store, rank, size = next(rendezvous("env://"))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=own_store(store, rank, size),
        rank=rank,
        world_size=size,
    )
    global _has_joined
    _has_joined = True
    try:
        with warnings.catch_warnings():
            if launch.rank > 0:
                warnings.simplefilter("ignore")
            yield ProcessGroup(launch.rank, launch.size, launch.local_rank)
    except RuntimeError as error:
        if "by peer" not in str(error):  # as gloo says that a connection was closed or reset
            raise
        raise UserError("another process of torchrun has ended: see what it or the kernel says") from error
    finally:
        dist.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """End this process, which may have :func:`joined` others.

    DistributedDataParallel keeps gloo's threads alive beyond ``destroy_process_group`` (its reducer and its logger hold
    one another, torch 2.13). One that is still about to free a tensor while the interpreter shuts down aborts the
    process, so that torchrun takes a finished run for a failed one: where there may be such threads, the interpreter's
    shutdown is left out.

    Args:
        code: exit code.

    Raises:
        SystemExit: this process never joined others.
    """
    if not _has_joined:
        sys.exit(code)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # a full disk, a closed pipe
        code = code or 1
    os._exit(code)
