"""Checks of hyper-parameters, with errors that name the object, the value and the remedy."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any


def check_number(
    owner: object, name: str, *, minimum: float, maximum: float = math.inf, exclusive: bool = False
) -> None:
    """Check that a hyper-parameter is a finite real number within bounds, and make it a plain float.

    Numbers of numpy would not load from a checkpoint with ``weights_only=True``.

    Args:
        owner: the object that carries the attribute.
        name: the attribute's name.
        minimum: smallest allowed value.
        maximum: largest allowed value.
        exclusive: whether the minimum itself is not allowed.

    Raises:
        TypeError: it is not a real number.
        ValueError: it is not finite or out of bounds.
    """
    number = getattr(owner, name)
    label = f"{type(owner).__name__}({name}={number!r})"
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise TypeError(f"{label}: {name} must be a number, got {type(number).__name__}")
    number = float(number)
    if not (math.isfinite(number) and minimum <= number <= maximum) or (exclusive and number == minimum):
        bounds = (
            f"{'>' if exclusive else '>='} {minimum:g}"
            if maximum == math.inf
            else f"between {minimum:g} and {maximum:g}"
        )
        raise ValueError(f"{label}: {name} must be finite and {bounds}")
    object.__setattr__(owner, name, number)


def check_steps(owner: object, name: str, *, minimum: int) -> None:
    """Check that a hyper-parameter is a whole number of optimizer steps, and make it a plain int.

    Args:
        owner: the object that carries the attribute.
        name: the attribute's name.
        minimum: smallest allowed value.

    Raises:
        TypeError: it is not an int.
        ValueError: it is below the minimum.
    """
    number = getattr(owner, name)
    label = f"{type(owner).__name__}({name}={number!r})"
    if isinstance(number, bool) or not isinstance(number, numbers.Integral):
        raise TypeError(f"{label}: {name} must be an int: optimizer steps, which are epochs times steps per epoch")
    if number < minimum:
        raise ValueError(f"{label}: {name} must be >= {minimum}")
    object.__setattr__(owner, name, int(number))


def check_type(name: str, part: Any, kind: type[Any], remedy: str = "") -> Any:
    """Check that an argument is one of the library's parts.

    Args:
        name: the argument's name.
        part: its value.
        kind: the class it must be an instance of.
        remedy: what to do instead, for the message.

    Returns:
        The value.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(part, type) and issubclass(part, kind):
        remedy = f": that is the class, write {part.__name__}(...)"
    if not isinstance(part, kind):
        owner = "torch.nn" if kind.__module__.startswith("torch.nn.") else "strongreg"
        raise TypeError(f"{name} must be a {owner}.{kind.__name__}, got {part!r}{remedy}")
    return part


def check_choice(name: str, choice: Any, choices: Sequence[str]) -> Any:
    """Check that an argument is one of some words.

    Args:
        name: the argument's name.
        choice: its value.
        choices: the words.

    Returns:
        The value.

    Raises:
        ValueError: it is none of them.
    """
    if choice not in choices:
        raise ValueError(f"{name}={choice!r}: must be one of {', '.join(map(repr, choices))}")
    return choice
