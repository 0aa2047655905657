"""--quiet, an option of every command."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

_Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show nothing but errors, and what --json prints; files are written.")
]


def with_quiet(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the option --quiet.

    Args:
        command: a function whose parameters are the options.

    Returns:
        A function of the same parameters and ``quiet``.
    """

    @functools.wraps(command)
    def quietened(*arguments: Any, quiet: bool = False, **options: Any) -> None:
        with contextlib.ExitStack() as stack:
            if quiet:
                nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stderr(nowhere))
                if not options.get("as_json"):
                    stack.enter_context(contextlib.redirect_stdout(nowhere))
            command(*arguments, **options)

    hints = {**get_type_hints(command, include_extras=True), "quiet": _Quiet}
    parameters = [p.replace(annotation=hints[p.name]) for p in inspect.signature(command).parameters.values()]
    parameters.append(inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Quiet))
    quietened.__annotations__ = hints
    quietened.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return quietened
