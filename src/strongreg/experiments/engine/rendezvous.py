"""How the processes of torchrun find one another, also those that take the place of former ones."""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

from torch.distributed.distributed_c10d import PrefixStore, Store

from strongreg.experiments.errors import UserError

_LOOK_AGAIN = 0.05  # seconds


def own_store(store: Store, rank: int, size: int, timeout: timedelta = timedelta(minutes=10)) -> Store:
    """A part of a store that holds nothing of former processes.

    After a failure ``torchrun --max-restarts`` starts all processes anew with the store of the former ones (torch 2.8
    to 2.14), where the addresses still lie at which those listened: a process that reads them before they are
    overwritten waits for one that has ended. Its count of restarts does not tell the groups apart: with several
    machines each counts its own. So the first process names the group by a random number, all answer with random
    numbers of their own, and it lists these; a list without one's own number is of a former group.

    Args:
        store: of torchrun, reached by all processes.
        rank: number of this process, from 0.
        size: number of processes, >= 2.
        timeout: how long to wait for the others.

    Returns:
        The same part in all processes.

    Raises:
        UserError: the others did not come in time.
    """
    store = PrefixStore("strongreg", store)
    end = time.monotonic() + timeout.total_seconds()
    own = uuid.uuid4().hex
    group = own
    if rank == 0:
        store.set("group", group)
        answers = [_read(store, f"{group}/{other}", end) for other in range(1, size)]
        store.set(f"{group}/members", ",".join(answers))
        return PrefixStore(group, store)
    while True:
        group = _read(store, "group", end)
        store.set(f"{group}/{rank}", own)
        while group == _read(store, "group", end):
            if store.check([f"{group}/members"]) and own in _read(store, f"{group}/members", end).split(","):
                return PrefixStore(group, store)
            _pause(end)


def _read(store: Store, key: str, end: float) -> str:
    while not store.check([key]):
        _pause(end)
    value: bytes = store.get(key)
    return value.decode()


def _pause(end: float) -> None:
    if time.monotonic() > end:
        raise UserError("the other processes of torchrun did not come: see what they print, and start torchrun again")
    time.sleep(_LOOK_AGAIN)
