"""``strongreg doctor``: what is there, what is wrong with it and what helps; and completion in the shell."""

from __future__ import annotations

import json
import subprocess
from importlib import metadata

import numpy as np
import pytest

import strongreg
from cli.command import COMMAND, run
from strongreg.experiments import doctor
from strongreg.experiments.data.locate import DATA_VARIABLE


def _found(capsys, *options: object, code: int = 0) -> dict[tuple[str, str], dict[str, str]]:
    output, messages = run(capsys, "doctor", "--json", *options, code=code)
    assert (messages == "") == (code == 0)
    return {(finding["section"], finding["name"]): finding for finding in json.loads(output)}


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_everything_is_shown_and_nothing_is_left_behind(capsys, elsewhere):
    output, messages = run(capsys, "doctor")
    assert messages == ""
    sections = [line for line in output.splitlines() if not line.startswith(" ")]
    assert sections == ["versions", "devices", "data", "disk"]
    assert list(elsewhere.iterdir()) == []


def test_the_versions_are_those_that_run(capsys):
    found = _found(capsys)
    assert found["versions", "strongreg"]["found"] == strongreg.__version__
    for package in ("numpy", "numba", "onnx", "typer"):
        assert found["versions", package]["found"] == metadata.version(package)


def test_a_missing_package_comes_with_the_way_to_install_it(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda package: None if package == "onnx" else "1.0")
    found = _found(capsys)
    assert found["versions", "onnx"]["found"].startswith("not installed")
    assert ".[export]" in found["versions", "onnx"]["found"]
    assert found["versions", "onnx"]["problem"] == ""  # it is optional


def test_complete_data_is_found_and_incomplete_data_is_a_problem(capsys, elsewhere):
    (elsewhere / "data" / "mnist").mkdir(parents=True)
    for split in ("train", "test"):
        (elsewhere / "data" / "mnist" / f"{split}-00000-of-00001.parquet").write_bytes(b"x" * 1000)
    (elsewhere / "data" / "svhn").mkdir()
    (elsewhere / "data" / "svhn" / "train-00000-of-00002.parquet").write_bytes(b"x")
    found = _found(capsys, "--data-dir", elsewhere / "data", code=2)
    assert "mnist" in found["data", "mnist"]["found"]
    assert found["data", "mnist"]["problem"] == ""
    assert "train-00001-of-00002.parquet is missing" in found["data", "svhn"]["problem"]
    assert "ufldl-stanford" not in found["data", "svhn"]["found"]
    assert "uoft-cs/cifar10" in found["data", "cifar10"]["found"]


def test_a_data_folder_that_is_not_there_is_named_with_its_source(capsys, elsewhere, monkeypatch):
    monkeypatch.setenv(DATA_VARIABLE, str(elsewhere / "nowhere"))
    output, messages = run(capsys, "doctor", code=2)
    assert f"problem: there is no such folder: correct ${DATA_VARIABLE}" in output
    problem = f"{elsewhere / 'nowhere'} (${DATA_VARIABLE}): there is no such folder: correct ${DATA_VARIABLE}"
    assert messages == f"strongreg: error: something is wrong with data, folder: {problem}\n"
    assert run(capsys, "doctor", "--quiet", code=2) == ("", messages)


def test_of_several_problems_the_first_is_told_and_the_others_are_named(capsys, elsewhere, monkeypatch):
    monkeypatch.setattr(doctor, "_can_be_written", lambda place: False)
    _, messages = run(capsys, "doctor", "--quiet", "--data-dir", elsewhere / "nowhere", code=2)
    assert "correct --data-dir; and with disk, working folder; disk, temporary files\n" in messages


def test_code_that_is_not_installed_is_a_problem_and_no_traceback(capsys, monkeypatch):
    def nothing(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", nothing)
    monkeypatch.setattr(metadata, "requires", nothing)
    found = _found(capsys, code=2)
    own = found["versions", "strongreg"]
    assert own["found"].startswith(f"{strongreg.__version__}, not installed: its code is taken from ")
    assert "pip install" in own["problem"]
    assert found["versions", "numpy"]["found"] == np.__version__


@pytest.mark.parametrize("package", ["transformers", "lightning", "accelerate", "skorch"])
def test_host_frameworks_are_listed_with_the_way_to_install_them(capsys, monkeypatch, package):
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == package else "1.0")
    assert f".[{package}]" in _found(capsys)["versions", package]["found"]


def test_a_closed_standard_output_is_an_error():
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "doctor"]
    done = subprocess.run([*command, "--json"], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "strongreg: error: cannot write the output: Bad file descriptor\n")
    quiet = subprocess.run([*command, "--quiet"], stderr=subprocess.PIPE, text=True, check=False)
    assert (quiet.returncode, quiet.stderr) == (0, "")  # nothing was to be written


def test_a_folder_that_cannot_be_written_and_a_full_disk_are_problems(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_can_be_written", lambda place: False)
    assert "no file can be written there" in _found(capsys, code=2)["disk", "working folder"]["problem"]
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "_LITTLE_DISK", float("inf"))
    assert "little is left" in _found(capsys, code=2)["disk", "temporary files"]["problem"]


def test_a_folder_is_asked_by_writing(tmp_path):
    assert doctor._can_be_written(tmp_path)
    assert not doctor._can_be_written(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


def test_more_threads_than_cores_are_a_problem(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setattr(doctor.torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 2)
    cpu = _found(capsys, code=2)["devices", "cpu"]
    assert cpu["found"] == "64 threads for 2 cores (OMP_NUM_THREADS=64)"
    assert "set OMP_NUM_THREADS=2" in cpu["problem"]


def test_the_passes_are_said_to_be_compiled_or_how_they_become_so(capsys, monkeypatch):
    assert _found(capsys)["devices", "passes on the cpu"]["found"] == "compiled by numba"
    monkeypatch.setattr(doctor, "are_compiled", lambda: False)
    assert ".[fast]" in _found(capsys)["devices", "passes on the cpu"]["found"]
    monkeypatch.setenv("STRONGREG_COMPILED", "0")
    assert "STRONGREG_COMPILED=0" in _found(capsys)["devices", "passes on the cpu"]["found"]


@pytest.mark.slow
def test_the_shell_completes_commands(monkeypatch):
    monkeypatch.setenv("COMP_WORDS", "strongreg dia")
    monkeypatch.setenv("COMP_CWORD", "1")
    monkeypatch.setenv("_STRONGREG_COMPLETE", "complete_bash")
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["diagnose"]
    assert done.stderr == ""
