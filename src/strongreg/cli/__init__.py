"""The ``strongreg`` command."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from strongreg.extras import how_to_install

_DISTRIBUTED = "strongreg.experiments.engine.distributed"
_EXIT_USER_ERROR = 2
_EXIT_INTERRUPTED = 130  # what typer makes of Ctrl-C


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; every error of the user is one line on standard error and exit code 2.

    Training that was asked to terminate saves its checkpoints and ends with what a shell reports for the signal.

    Args:
        arguments: the command's arguments; those of the process by default.

    Raises:
        SystemExit: always; 0 for success, 2 for an error of the user or Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
    """
    try:
        code = _run(arguments)
    except KeyboardInterrupt:  # before or after the work itself
        code = _fail("interrupted")
    if (engine := sys.modules.get(_DISTRIBUTED)) is not None:  # not loaded where the command could not be started
        engine.end_process(code)
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> int:
    try:  # slow, and absent where only the library is installed
        with _interrupted_at_once():
            import typer

            from strongreg.cli.app import app
            from strongreg.experiments.engine.distributed import Launch
            from strongreg.experiments.errors import UserError
    except ImportError as error:
        if not error.name or error.name.partition(".")[0] == __package__.partition(".")[0]:  # there, but broken
            return _fail(f"cannot be started: {error}")
        return _fail(f"the command needs the package {error.name!r}: {how_to_install('experiments')}")
    # BadParameter -> UsageError -> ClickException: click's own, or the copy that newer typers carry
    click_exception: type[Exception] = typer.BadParameter.__mro__[2]
    # under torchrun an error of the user is one of all processes. The first shows it; another that failed too would
    # make torchrun end the first before it has
    fail = _fail if Launch.read().rank == 0 else _stay_silent
    try:
        with _closed_output_noticed():
            code = app(arguments, standalone_mode=False, prog_name="strongreg")
        return _fail("interrupted") if code == _EXIT_INTERRUPTED else code if isinstance(code, int) else 0
    except UserError as error:
        return fail(str(error), error.exit_code)
    except click_exception as error:
        return fail(_describe(error))
    except typer.Abort:
        return _fail("interrupted")
    except OSError as error:  # of standard output: a full disk, a closed pipe
        return _fail(f"cannot write the output: {error.strerror or error}")


def _describe(error: Any) -> str:
    """What typer says of a mistake, with the value, which its newer versions leave out, and where the choices are."""
    text = error.format_message().rstrip(".")
    if hasattr(error.__cause__, "errors"):  # of pydantic
        text += f", got {error.__cause__.errors()[0]['input']!r}"
    text += "" if text.endswith("?") else ";"
    context = getattr(error, "ctx", None)
    return f"{text} {context.command_path if context else 'strongreg'} --help shows what there is"


class _ClosedOutput(io.TextIOBase):
    """Stands in for a standard output that is closed, for which Python has None: what is written would be dropped."""

    def write(self, _: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


@contextlib.contextmanager
def _closed_output_noticed() -> Iterator[None]:
    if sys.stdout is not None:
        yield
        return
    with contextlib.redirect_stdout(_ClosedOutput()):
        yield


@contextlib.contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """Ctrl-C ends the process: an exception within an import may be swallowed there, and leave half a module."""

    def end(*_: object) -> None:
        os._exit(_fail("interrupted"))

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stay_silent(message: str, code: int = _EXIT_USER_ERROR) -> int:
    del message, code
    return 0


def _fail(message: str, code: int = _EXIT_USER_ERROR) -> int:
    one_line = " ".join(message.split())
    sys.stderr.write(f"strongreg: error: {one_line}\n")
    sys.stderr.flush()
    return code
