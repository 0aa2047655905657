"""Runs the command, in this process or as one of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.recipes import recipe
from strongreg import cli

RECIPE = recipe(model="lenet300", epochs=2)
SMALL = ["--model", "lenet300", "--epochs", "2"]
COMMAND = [sys.executable, "-m", "strongreg"]


def run(capsys, *arguments: object, code: int = 0) -> tuple[str, str]:
    """Run the command in this process; its output and its messages."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    output, messages = capsys.readouterr()
    assert caught.value.code == code, messages
    return output, messages


def error(capsys, *arguments: object) -> str:
    """The one line that the command fails with."""
    output, messages = run(capsys, *arguments, code=2)
    assert output == ""
    assert messages.startswith("strongreg: error: ")
    assert messages.count("\n") == 1
    text = messages.removeprefix("strongreg: error: ").removesuffix("\n")
    assert text.strip()
    return text


def examples(help_text: str) -> list[list[str]]:
    """The arguments of the examples at the end of a command's help."""
    found = [line.split() for line in help_text.partition("Examples:")[2].splitlines() if line.strip()]
    assert all(script == "strongreg" for script, *_ in found)
    return [arguments[: arguments.index(">")] if ">" in arguments else arguments for _, *arguments in found]


def start(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start the command at the head of a process group, as a shell does."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
        start_new_session=True,
        preexec_fn=_hear_signals,
    )


def _hear_signals() -> None:
    """A suite that runs in the background of a shell, or under nohup, inherits that signals are ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def wait_for(pattern: str, process: subprocess.Popen[str], num_files: int = 1) -> None:
    """Wait until so many files of this pattern are there, and not empty."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if sum(file.stat().st_size > 0 for file in Path.cwd().glob(pattern)) >= num_files:
            return
        time.sleep(0.01)


def interrupt(arguments: list[str], pattern: str, delay: float = 0.0) -> subprocess.CompletedProcess[str]:
    """Press Ctrl-C once a file of this pattern is there: the signal goes to the whole process group."""
    process = start(*arguments)
    try:
        wait_for(pattern, process)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        output, messages = process.communicate(timeout=120)
    finally:
        process.kill()
    return subprocess.CompletedProcess(arguments, process.returncode, output, messages)
