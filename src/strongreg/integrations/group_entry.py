"""A Regularizer's state where torch keeps it for who comes after the optimizer was loaded: in a parameter group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


def carry(optimizer: Optimizer, key: str, more: Callable[[], dict[str, Any]]) -> RemovableHandle:
    """Copy a Regularizer's state into the first parameter group of what ``optimizer.state_dict()`` returns.

    torch drops what nobody has asked for where it loads an optimizer, except in a parameter group. A host that loads
    before its callbacks can attach finds the state there. ``torch.save`` writes tensors that are shared once.

    Args:
        optimizer: the optimizer; the Regularizer is attached to it already.
        key: the entry of ``optimizer.state_dict()`` with its state.
        more: gives what is to be saved beside it, by which :func:`take` can be told a state that is out of date.

    Returns:
        What ends this, by ``remove()``.
    """

    def copy(_optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        state_dict["param_groups"][0][_entry(key)] = {**state_dict[key], **more()}

    handle: RemovableHandle = optimizer.register_state_dict_post_hook(copy)
    return handle


def take(optimizer: Optimizer, key: str) -> dict[str, Any] | None:
    """Take what has been loaded out of the optimizer.

    Args:
        optimizer: the optimizer.
        key: as when it was saved.

    Returns:
        The state with what was saved beside it; None if there is none.
    """
    state = optimizer.param_groups[0].pop(_entry(key), None)
    return state if isinstance(state, dict) else None


def _entry(key: str) -> str:
    return f"strongreg:{key}"  # never one of torch's own, such as "lr"
