"""The hooks of a Regularizer on an optimizer."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.optim import Optimizer

from strongreg.checkpoint import Progress, warn_of_missing
from strongreg.groups import Target

_KEYS_OF_TORCH = ("state", "param_groups")
_OF_DISABLING = tuple(str(Path(str(torch.__file__)).parent / name) for name in ("_compile.py", "_dynamo/eval_frame.py"))


class Attachment:
    """The hooks of one Regularizer on an optimizer, from here on until :meth:`remove`.

    Attributes:
        optimizer: the optimizer.
        key: the entry of ``optimizer.state_dict()`` that carries the Regularizer's state.
        targets: gives the penalized parameters.
        nesting: which steps are under way.

    Args:
        optimizer: the optimizer.
        key: see above.
        targets: see above.
        before_step: hook, as torch calls it.
        after_step: hook, as torch calls it.
        save: gives the Regularizer's state.
        read: reads such a state without changing anything.
        resume: continues where it was saved.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        key: str,
        targets: Callable[[], Sequence[Target]],
        *,
        before_step: Callable[..., Any],
        after_step: Callable[..., Any],
        save: Callable[[], dict[str, Any]],
        read: Callable[[dict[str, Any]], Progress],
        resume: Callable[[Progress], None],
    ) -> None:
        self.optimizer, self.key, self.targets = optimizer, key, targets
        self.nesting = StepNesting()
        self._handles = [
            optimizer.register_step_pre_hook(before_step),
            optimizer.register_step_post_hook(after_step),
            optimizer.register_state_dict_post_hook(self._save_into),
            optimizer.register_load_state_dict_pre_hook(self._load_from),
            optimizer.register_load_state_dict_post_hook(self._finish_load),
        ]
        self._save, self._read, self._resume = save, read, resume
        self._loaded: Progress | None = None
        _attached.setdefault(optimizer, weakref.WeakSet()).add(self)

    def remove(self) -> None:
        """Remove every hook; the optimizer is as it was before."""
        for handle in self._handles:
            handle.remove()
        _attached[self.optimizer].discard(self)

    def _save_into(self, _optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        state_dict[self.key] = self._save()

    def _load_from(self, _optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        self._loaded = None
        if self.key in state_dict:
            self._loaded = self._read(state_dict.pop(self.key))
            return
        warn_of_missing(self.key)

    def _finish_load(self, _optimizer: Optimizer) -> None:
        """Torch has taken its own part: had it refused, the Regularizer would be as it was, too."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self._resume(loaded)


_attached: weakref.WeakKeyDictionary[Optimizer, weakref.WeakSet[Attachment]] = weakref.WeakKeyDictionary()


def check_key(key: str) -> None:
    """Check the name of the entry of ``optimizer.state_dict()`` that carries a state.

    Args:
        key: the name.

    Raises:
        TypeError: it is no string.
        ValueError: it is empty, or torch keeps its own state there.
    """
    if not isinstance(key, str):
        raise TypeError(f"attach(key={key!r}): key must be a string, the name of an entry of optimizer.state_dict()")
    if not key or key in _KEYS_OF_TORCH:
        raise ValueError(f"attach(key={key!r}): torch keeps its own state there; choose another name")


def check_neighbours(targets: Sequence[Target], key: str, optimizer: Optimizer) -> None:
    """Check that Regularizers on one optimizer do not get into one another's way.

    Args:
        targets: what the newcomer penalizes.
        key: where it keeps its state.
        optimizer: where it is to be attached.

    Raises:
        ValueError: another one penalizes the same parameter or has the same key.
    """
    for neighbour in _attached.get(optimizer, ()):
        taken = {id(t.param) for t in neighbour.targets()}
        shared = [t.name for t in targets if id(t.param) in taken]
        if shared:
            raise ValueError(
                f"another Regularizer on this optimizer penalizes {shared} already: detach it, or exclude them from one"
            )
        if key == neighbour.key:
            raise ValueError(
                f"another Regularizer on this optimizer has the key {key!r}: pass another one, key=, to attach or "
                "to the callback of a host"
            )


class StepNesting:
    """Tells a step from the steps within it: torch calls the hooks at ``super().step()`` of a subclass, too.

    A step that fails never leaves. What it has entered is recognized as over by its frame, which is no longer among the
    callers of the next one.
    """

    def __init__(self) -> None:
        self._entered: list[tuple[int, int]] = []

    def enter(self) -> bool:
        """A step begins; to be called by the hook itself, which torch's wrapper around ``step`` calls.

        Returns:
            Whether it is the outermost one.
        """
        frame = _caller_of_hook(sys._getframe(1))
        self._forget_failed(frame.f_back)
        self._entered.append(_identity(frame))
        return len(self._entered) == 1

    def leave(self) -> bool:
        """A step has ended well; to be called where its frame is among the callers.

        Returns:
            Whether it was the outermost one.
        """
        if len(self._entered) > 1:
            self._forget_failed(sys._getframe())
        if self._entered:
            self._entered.pop()
        return not self._entered

    def _forget_failed(self, frame: FrameType | None) -> None:
        if not self._entered:
            return
        running: set[tuple[int, int]] = set()
        while frame is not None:
            running.add(_identity(frame))
            frame = frame.f_back
        self._entered = [entered for entered in self._entered if entered in running]


def _caller_of_hook(frame: FrameType) -> FrameType:
    """What calls a hook that is kept from torch.compile: torch's own frames for that lie between."""
    caller = frame.f_back
    while caller is not None and caller.f_code.co_filename in _OF_DISABLING:
        caller = caller.f_back
    assert caller is not None
    return caller


def _identity(frame: FrameType) -> tuple[int, int]:
    """The frame, without keeping it alive; with its code, for the place of a frame that has ended is used again."""
    return id(frame), id(frame.f_code)
