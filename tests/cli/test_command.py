"""What every command has: --quiet, --json, and one line where it is asked to terminate."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from cli.command import error, run
from strongreg import cli
from strongreg.cli import packed
from strongreg.cli.app import app

COMMANDS = [command.callback.__name__ for command in app.registered_commands]
SMALL = ("--model", "lenet300", "--epochs", "1", "--set", "data.num_train=64")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_both(capsys, command):
    output, _ = run(capsys, command, "--help")
    assert "--quiet" in output
    assert "--json" in output


def test_quiet_before_the_command_is_an_error_that_says_where_it_stands(capsys):
    assert error(capsys, "--quiet", "doctor") == "--quiet stands behind the command: strongreg doctor --quiet"


def test_quiet_commands_write_their_files_and_say_nothing(capsys):
    folder = "out/runs/coherent-seed0"
    commands = {
        "out/report.html": ["train", *SMALL, "--out", "out"],
        "page.html": ["report", "out", "--out", "page.html"],
        "small.packed": ["compress", folder, "--out", "small.packed"],
        "plain.safetensors": ["unpack", "small.packed", "--out", "plain.safetensors"],
    }
    for written, arguments in commands.items():
        assert run(capsys, *arguments, "-q") == ("", "")
        assert Path(written).stat().st_size > 0
    for arguments in (["inspect", "small.packed"], ["diagnose", "out"], ["doctor"]):
        assert run(capsys, *arguments, "--quiet") == ("", "")
        output, messages = run(capsys, *arguments, "--quiet", "--json")
        assert json.loads(output)
        assert messages == ""
    output, messages = run(capsys, "train", "--resume", "out", "--quiet", "--json")
    assert [finished["method"] for finished in json.loads(output)["runs"]] == ["coherent"]
    assert messages == ""


def test_errors_are_shown(capsys):
    assert "nowhere holds no finished run" in error(capsys, "report", "nowhere", "--quiet")


def test_report_and_unpack_say_as_json_what_they_wrote(capsys, out):
    drawn = json.loads(run(capsys, "report", "out", "--json")[0])
    assert drawn["file"] == "report.html"
    assert set(drawn["runs"]) == {str(path.relative_to(out.parent)) for path in out.glob("runs/*")}
    assert drawn["left_out"] == []
    packed = "out/runs/coherent-seed0/model.packed"
    written = json.loads(run(capsys, "unpack", packed, "--out", "w.safetensors", "--json")[0])
    assert written["file"] == "w.safetensors"
    assert written["file_bytes"] == Path("w.safetensors").stat().st_size
    assert written["tensors"] == [f"{i}.{kind}" for i in (1, 3, 5) for kind in ("weight", "bias")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_terminate_a_command_that_does_not_train_is_one_line(capsys, out, monkeypatch, number):
    former = (out / "runs/coherent-seed0/model.packed").read_bytes()

    def terminated(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)

    before = signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored
    monkeypatch.setattr(packed, "save_packed", terminated)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main(["compress", "out/runs/coherent-seed0", "--out", "small.packed"])
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert ended.value.code == 128 + number
    output, messages = capsys.readouterr()
    assert output == ""
    assert messages == f"strongreg: error: interrupted by {number.name}: no file is left half written\n"
    assert not Path("small.packed").exists()
    assert (out / "runs/coherent-seed0/model.packed").read_bytes() == former
