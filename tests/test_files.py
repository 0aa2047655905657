"""Files are whole or not there at all."""

from __future__ import annotations

import os
import threading

import pytest

from strongreg.files import write_bytes


def test_two_that_write_one_file_do_not_disturb_each_other(tmp_path):
    file, errors = tmp_path / "model.packed", []

    def write(content):
        try:
            for _ in range(50):
                write_bytes(file, content)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter * 10_000,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert file.read_bytes() in (b"a" * 10_000, b"b" * 10_000)
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_of_that_name_with_an_ending_is_left_alone(tmp_path):
    (tmp_path / "a.part").write_text("mine")
    write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a.part").read_text() == "mine"


def test_of_a_link_the_file_that_it_points_to_is_written(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe is no regular file"):
        write_bytes(tmp_path / "pipe", b"new")
    assert (tmp_path / "pipe").is_fifo()


def test_a_new_file_has_the_rights_that_files_get(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_bytes(tmp_path / "new", b"")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
