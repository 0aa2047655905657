"""What every command has: the option --quiet, and an answer to a request to terminate."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from strongreg.experiments.engine.distributed import Launch
from strongreg.experiments.errors import StoppedError, Terminated
from strongreg.experiments.pool import interruptible

_Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show nothing but errors, and what --json prints; files are written.")
]


@contextlib.contextmanager
def _no_warnings_in_processes() -> Iterator[None]:
    """Processes that are started within write to the terminal, not to where this one's messages go."""
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"
    try:
        yield
    finally:
        del os.environ["PYTHONWARNINGS"]
        if before is not None:
            os.environ["PYTHONWARNINGS"] = before


def as_command(function: Callable[..., None]) -> Callable[..., None]:
    """A function as one of the commands.

    Args:
        function: its parameters are the options.

    Returns:
        A function of the same parameters and ``quiet``. Asked to terminate it raises what the command ends with.
    """

    @functools.wraps(function)
    def command(*arguments: Any, quiet: bool = False, **options: Any) -> None:
        with contextlib.ExitStack() as stack:
            if quiet:
                nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stderr(nowhere))
                stack.enter_context(_no_warnings_in_processes())
                if not options.get("as_json"):
                    stack.enter_context(contextlib.redirect_stdout(nowhere))
            if Launch.read().size == 1:  # torchrun's processes agree on it, or die by it
                stack.enter_context(interruptible())
            try:
                function(*arguments, **options)
            except Terminated as request:
                name = signal.Signals(request.signal_number).name
                raise StoppedError(f"interrupted by {name}: no file is left half written", request) from None

    hints = {**get_type_hints(function, include_extras=True), "quiet": _Quiet}
    parameters = [p.replace(annotation=hints[p.name]) for p in inspect.signature(function).parameters.values()]
    parameters.append(inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Quiet))
    command.__annotations__ = hints
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command
