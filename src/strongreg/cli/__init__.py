"""The ``strongreg`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_EXIT_USER_ERROR = 2
_EXIT_INTERRUPTED = 130  # what typer makes of Ctrl-C


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; every error of the user is one line on standard error and exit code 2.

    Args:
        arguments: the command's arguments; those of the process by default.

    Raises:
        SystemExit: always; 0 for success, 2 for an error of the user or an interrupt.
    """
    try:
        code = _run(arguments)
    except KeyboardInterrupt:  # before or after the work itself
        code = _fail("interrupted")
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> int:
    try:  # slow, and absent where only the library is installed
        import typer

        from strongreg.cli.app import app
        from strongreg.experiments.engine.distributed import Launch
        from strongreg.experiments.errors import UserError
    except ImportError as error:
        return _fail(f"the command needs the package {error.name!r}: pip install 'strongreg[experiments]'")
    # BadParameter -> UsageError -> ClickException: click's own, or the copy that newer typers carry
    click_exception: type[Exception] = typer.BadParameter.__mro__[2]
    # under torchrun an error of the user is one of all processes. The first shows it; another that failed too would
    # make torchrun end the first before it has
    fail = _fail if Launch.read().rank == 0 else _stay_silent
    try:
        code = app(arguments, standalone_mode=False, prog_name="strongreg")
        return _fail("interrupted") if code == _EXIT_INTERRUPTED else code if isinstance(code, int) else 0
    except UserError as error:
        return fail(str(error))
    except click_exception as error:
        hint = "" if arguments or sys.argv[1:] else " strongreg --help shows them"
        return fail(error.format_message() + hint)  # type: ignore[attr-defined]
    except typer.Abort:
        return _fail("interrupted")
    except OSError as error:  # of standard output: a full disk, a closed pipe
        return _fail(f"cannot write the output: {error.strerror or error}")


def _stay_silent(message: str) -> int:
    del message
    return 0


def _fail(message: str) -> int:
    one_line = " ".join(message.split())
    sys.stderr.write(f"strongreg: error: {one_line}\n")
    return _EXIT_USER_ERROR
