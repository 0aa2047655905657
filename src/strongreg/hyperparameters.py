"""Hyper-parameters of penalties, gates and schedules as plain data, for checkpoints."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any, TypeVar

_T = TypeVar("_T")


def describe(part: Any) -> dict[str, Any]:
    """A dataclass as plain data.

    Args:
        part: a penalty, gate or schedule: a dataclass of numbers, strings, tuples and other parts.

    Returns:
        ``{"class": name, field: value, ...}``; tuples become lists, parts are described in turn.

    Raises:
        TypeError: ``part`` is not a dataclass instance, holds more than its fields, or a field holds something else.
    """
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        raise TypeError(
            f"{part!r} cannot be saved: penalties, gates and schedules are dataclasses; decorate its class with "
            "@dataclass(frozen=True)"
        )
    unsaved = set(getattr(part, "__dict__", ())) - {f.name for f in dataclasses.fields(part)}
    if unsaved and "__dataclass_params__" not in vars(type(part)):
        raise TypeError(
            f"{part!r} cannot be saved: {sorted(unsaved)} are not fields; decorate {type(part).__name__} with "
            "@dataclass(frozen=True) and declare them"
        )
    return {
        "class": type(part).__name__,
        **{f.name: _plain(part, f.name, getattr(part, f.name)) for f in dataclasses.fields(part) if f.init},
    }


def restore(part: _T, saved: dict[str, Any]) -> _T:
    """A part like ``part`` with saved hyper-parameters.

    Args:
        part: a penalty, gate or schedule.
        saved: what ``describe`` returned for a part of the same class.

    Returns:
        A new object of the same class.

    Raises:
        ValueError: ``saved`` describes another class.
    """
    if saved["class"] != type(part).__name__:
        raise ValueError(
            f"the saved state is for {saved['class']}, but this Regularizer was built with "
            f"{type(part).__name__}: build it with the same parts, "
            "or leave its state out of the checkpoint to begin anew"
        )
    fields = {name: _restore_field(getattr(part, name), value) for name, value in saved.items() if name != "class"}
    return dataclasses.replace(part, **fields)  # type: ignore[type-var]


def _plain(owner: Any, name: str, value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return describe(value)
    if isinstance(value, tuple):
        return [_plain(owner, name, entry) for entry in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    # numbers of numpy would not load from a checkpoint with weights_only=True
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(
        f"{type(owner).__name__}({name}={value!r}) cannot be saved: the fields of penalties, gates and schedules are "
        f"numbers, strings, None, other such parts and tuples of them, not {type(value).__name__}"
    )


def _restore_field(current: Any, saved: Any) -> Any:
    if isinstance(saved, dict):
        return restore(current, saved)
    if not isinstance(saved, list):
        return saved
    if not any(isinstance(entry, dict | list) for entry in saved):
        return tuple(saved)
    if not isinstance(current, tuple) or len(current) != len(saved):
        raise ValueError(
            f"the saved state holds {len(saved)} parts where this Regularizer was built with {current!r}: build it "
            "with the same parts"
        )
    return tuple(_restore_field(now, entry) for now, entry in zip(current, saved, strict=True))
