"""The processes of torchrun find one another, and nothing that former ones have left."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore, Store

from strongreg.experiments.engine.rendezvous import own_store
from strongreg.experiments.errors import UserError

SOON = timedelta(seconds=20)


def _read_by_each(store: Store, round_name: str, order: tuple[int, ...], pause: float) -> list[list[str]]:
    """Let threads join in an order, in place of processes; what each reads of what all of them have written."""

    def join(rank: int) -> list[str]:
        own = own_store(store, rank, len(order), SOON)
        own.set(f"address {rank}", f"{round_name}, {rank}")
        return [own.get(f"address {other}").decode() for other in range(len(order))]

    with ThreadPoolExecutor(len(order)) as pool:
        futures = []
        for rank in order:
            futures.append(pool.submit(join, rank))
            time.sleep(pause)
        return [future.result() for future in futures]


@pytest.mark.parametrize("pause", [0.0, 0.15])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_who_joins_again_reads_nothing_of_the_former_round(order, pause):
    store = HashStore()
    for round_name in ("first", "second", "third"):
        written = [f"{round_name}, {rank}" for rank in range(3)]
        assert _read_by_each(store, round_name, order, pause) == [written] * 3


def test_a_round_that_broke_off_at_any_point_leaves_nothing_that_is_taken_for_the_next():
    store = HashStore()
    for ranks in ((0,), (1, 2), (0, 2)):  # of three: they never come together, and have ended before the next begin
        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(own_store, store, rank, 3, timedelta(seconds=0.3)) for rank in ranks]
            for future in futures:
                with pytest.raises(UserError, match=r"the other processes of torchrun did not come: .* start torchrun"):
                    future.result()
    assert _read_by_each(store, "whole", (2, 1, 0), 0.1) == [[f"whole, {rank}" for rank in range(3)]] * 3


def test_what_one_user_of_the_store_writes_is_out_of_the_way_of_others():
    store = HashStore()
    store.set("group", "of somebody else")
    _read_by_each(store, "first", (0, 1), 0.0)
    assert store.get("group") == b"of somebody else"
