"""The command as processes: whatever ends it, none stays behind, and what was begun is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cli.command import start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")]

LONG = ["compare", "--model", "lenet300", "--epochs", "3000", "--workers", "2", "--out", "out"]
LONG += ["--set", "training.checkpoint_every=0"]  # none but at the end
ENDED = 60.0  # a loaded machine; on an idle one it takes a second or two


def _members(group: int) -> list[int]:
    """The living processes of a process group, zombies left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group, *_ = stat.read_text().rpartition(")")[2].split()
        except OSError:  # ended just now
            continue
        if int(its_group) == group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def _wait_for_the_end(group: int) -> float:
    """Seconds until no process of the group is left."""
    started = time.monotonic()
    while _members(group) and time.monotonic() - started < ENDED:
        time.sleep(0.02)
    assert _members(group) == []
    return time.monotonic() - started


@pytest.fixture
def begun():
    """The command with two runs under way; nothing of it outlives the test."""
    process = start(*LONG)
    try:
        wait_for("out/runs/*/metrics.jsonl", process, num_files=2)
        assert process.poll() is None, process.communicate()
        assert len(_members(process.pid)) >= 3
        yield process
    finally:
        if _members(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _begun_runs() -> list[Path]:
    return [file.parent for file in Path("out/runs").glob("*/metrics.jsonl")]


def _assert_interrupted(process: subprocess.Popen[str], code: int) -> None:
    output, messages = process.communicate(timeout=ENDED)
    assert process.returncode == code
    assert output == ""
    assert messages.splitlines() == [
        "interrupting: the runs under way save their checkpoints",
        "strongreg: error: interrupted: 0 of 4 runs are finished and kept in out; the same command with --out out "
        "goes on",
    ]
    _wait_for_the_end(process.pid)
    assert len(_begun_runs()) >= 2
    for folder in _begun_runs():
        assert (folder / "checkpoint.pt").stat().st_size > 0
    assert not list(Path("out/runs").glob("*/*.part"))


def test_a_request_to_terminate_saves_every_run_that_was_begun_and_leaves_no_process(begun):
    begun.send_signal(signal.SIGTERM)
    _assert_interrupted(begun, 128 + signal.SIGTERM)


def test_a_closed_terminal_reaches_the_whole_group_and_does_the_same(begun):
    os.killpg(begun.pid, signal.SIGHUP)
    _assert_interrupted(begun, 128 + signal.SIGHUP)


def test_a_request_to_terminate_to_the_whole_group_saves_every_run_too(begun):
    os.killpg(begun.pid, signal.SIGTERM)
    begun.communicate(timeout=ENDED)
    _wait_for_the_end(begun.pid)
    assert begun.returncode == 128 + signal.SIGTERM
    assert len([folder for folder in _begun_runs() if (folder / "checkpoint.pt").exists()]) >= 2


def test_processes_whose_parent_was_killed_end_by_themselves(begun):
    begun.kill()
    begun.wait()
    _wait_for_the_end(begun.pid)
    before = {file: file.stat().st_mtime_ns for file in Path("out").rglob("*") if file.is_file()}
    time.sleep(0.5)
    assert {file: file.stat().st_mtime_ns for file in Path("out").rglob("*") if file.is_file()} == before


def test_a_second_ctrl_c_does_not_leave_a_process_behind(begun):
    for _ in range(3):
        begun.send_signal(signal.SIGINT)
        time.sleep(0.05)
    begun.communicate(timeout=ENDED)
    _wait_for_the_end(begun.pid)
    assert begun.returncode != 0


_IMPORTED = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(10**6): pass
except BaseException: {reaction}
"""


@pytest.mark.parametrize("reaction", ["pass", "raise", "raise ImportError('broken')"])
def test_ctrl_c_during_the_imports_is_one_line_whatever_they_make_of_it(tmp_path, reaction):
    """Torch within ``import strongreg`` comes before anything of ours that could answer."""
    (tmp_path / "typer.py").write_text(_IMPORTED.format(reaction=reaction))
    process = start("compare", environment={"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"})
    output, messages = process.communicate(timeout=ENDED)
    assert (process.returncode, output, messages) == (2, "", "strongreg: error: interrupted\n")
