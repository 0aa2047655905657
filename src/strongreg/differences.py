"""What differs between two configurations, in words."""

from __future__ import annotations

from typing import Any


def describe_difference(before: Any, now: dict[str, Any]) -> str:
    """Name every key whose value has changed.

    Args:
        before: a configuration as plain data; whatever else says nothing.
        now: another one; sections are dictionaries within.

    Returns:
        Text in brackets for the middle of a message, with a space in front; empty where ``before`` is none.
    """
    if not isinstance(before, dict):
        return ""
    old, new = _flat(before), _flat(now)
    keys = [*new, *(key for key in old if key not in new)]
    changed = [f"{key}={old.get(key)!r} there, {new.get(key)!r} now" for key in keys if old.get(key) != new.get(key)]
    return f" ({', '.join(changed)})"


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, values in config.items():
        flat |= {f"{section}.{k}": v for k, v in values.items()} if isinstance(values, dict) else {section: values}
    return flat
