"""JSON files are whole or not there at all."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from strongreg.experiments.errors import UserError
from strongreg.experiments.files import read_json, write_json


def test_what_is_written_is_read(tmp_path):
    content = {"runs": [{"accuracy": 0.1 + 0.2, "compression": None, "alive": True}], "name": "‖λr‖", "empty": {}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text(encoding="utf-8").endswith("}\n")


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"[1]", b"3", b"null", b"\xff\xfe", b"{} {}"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, content):
    file = tmp_path / "result.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match="is damaged: delete its folder to train again") as caught:
        read_json(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_know_are_an_error_and_leave_the_file_as_it_was(tmp_path, number):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"a": 2, "b": [number]})
    assert read_json(file) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("owner", "failing"), [(os, "fsync"), (Path, "replace")])
def test_a_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch, owner, failing):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})

    with monkeypatch.context() as patch:
        patch.setattr(owner, failing, Mock(side_effect=OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            write_json(file, {"a": 2})
    assert read_json(file) == {"a": 1}
    write_json(file, {"a": 3})
    assert read_json(file) == {"a": 3}
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_in_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_json(tmp_path / "missing" / "a.json", {})
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_plain_json(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [1.5]})
    assert list(json.loads((tmp_path / "a.json").read_text())) == ["b", "a"]
