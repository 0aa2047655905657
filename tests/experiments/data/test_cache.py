"""Decoded images are kept once, whole, and never stand in the way."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from strongreg.experiments.data import Split
from strongreg.experiments.data.cache import cache_directory, cached
from strongreg.experiments.data.splits import Source
from strongreg.experiments.errors import UserError


@pytest.fixture
def source() -> Source:
    images = torch.randint(256, (6, 3, 4, 5), dtype=torch.uint8)
    labels = torch.arange(6) % 2
    return Source(Split(images[:4], labels[:4]), Split(images[4:], labels[4:]), ("a", "ü"))


@pytest.fixture
def files(tmp_path) -> list[Path]:
    found = [tmp_path / name for name in ("a.parquet", "b.parquet")]
    for file in found:
        file.write_bytes(b"content")
    return found


def _same(a: Source, b: Source) -> bool:
    pairs = [(a.train, b.train), (a.test, b.test)]
    equal = [torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) for x, y in pairs]
    return all(equal) and a.class_names == b.class_names


def _kept() -> list[Path]:
    return sorted(cache_directory().iterdir())


@pytest.fixture
def read(source) -> Mock:
    return Mock(return_value=source)


def test_a_data_set_is_read_once(files, read, source):
    assert _same(cached("set", files, read), source)
    assert _same(cached("set", files, read), source)
    read.assert_called_once()
    (kept,) = _kept()
    assert kept.name.startswith("set-")
    assert kept.suffix == ".safetensors"


def test_what_is_kept_can_be_written_to_without_changing_it(files, read, source):
    cached("set", files, read)
    cached("set", files, read).train.images.zero_()
    assert _same(cached("set", files, read), source)
    read.assert_called_once()


def _grow(files):
    files[0].write_bytes(b"more content")


def _touch(files):
    os.utime(files[1], ns=(1, 1))


def _rename(files):
    files[1] = files[1].rename(files[1].with_name("c.parquet"))


@pytest.mark.parametrize("change", [_grow, _touch, _rename, lambda files: files.pop(), lambda files: files.reverse()])
def test_other_files_are_read_again(files, read, change):
    cached("set", files, read)
    change(files)
    cached("set", files, read)
    assert read.call_count == 2


def test_another_name_is_read_again_and_may_hold_any_character(files, read):
    cached("set", files, read)
    cached("my set/ü", files, read)
    assert read.call_count == 2
    assert all(kept.parent == cache_directory() for kept in _kept())


def _flip_a_bit(kept):
    content = bytearray(kept.read_bytes())
    content[-3] ^= 4
    kept.write_bytes(content)


def _lose_a_tensor(kept):
    tensors = load_file(kept)
    del tensors["test_labels"]
    save_file(tensors, kept, {"checksum": "0", "class_names": "[]"})


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: kept.write_bytes(b""),
        lambda kept: kept.write_bytes(b"no safetensors at all"),
        lambda kept: kept.write_bytes(kept.read_bytes()[:-1]),
        lambda kept: kept.write_bytes(kept.read_bytes()[:20]),
        lambda kept: save_file({"x": torch.zeros(1)}, kept),
        _flip_a_bit,
        _lose_a_tensor,
    ],
)
def test_a_damaged_file_is_ignored_and_written_anew(files, read, source, damage):
    cached("set", files, read)
    damage(_kept()[0])
    assert _same(cached("set", files, read), source)
    assert read.call_count == 2
    assert _same(cached("set", files, read), source)
    assert read.call_count == 2


def test_a_folder_in_the_place_of_the_file_is_no_error(files, read, source):
    cached("set", files, read)
    kept = _kept()[0]
    kept.unlink()
    kept.mkdir()
    assert _same(cached("set", files, read), source)
    assert _kept() == [kept]


def test_a_cache_that_cannot_be_written_is_no_error(files, read, source, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("STRONGREG_CACHE", str(tmp_path / "file" / "cache"))
    assert _same(cached("set", files, read), source)
    assert _same(cached("set", files, read), source)
    assert read.call_count == 2


def test_an_interrupted_write_leaves_nothing(files, read, monkeypatch):
    def interrupted(_tensors, file, _metadata):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached("set", files, read)
    assert _kept() == []


def test_a_full_disk_leaves_nothing_and_is_no_error(files, read, source, monkeypatch):
    def full(_tensors, file, _metadata):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    assert _same(cached("set", files, read), source)
    assert _kept() == []


def test_nothing_is_kept_of_what_cannot_be_read(files):
    with pytest.raises(UserError, match="damaged"):
        cached("set", files, Mock(side_effect=UserError("damaged")))
    assert not cache_directory().exists() or _kept() == []


def test_the_directory_follows_the_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("STRONGREG_CACHE", "~/own")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "own"
    monkeypatch.delenv("STRONGREG_CACHE")
    assert cache_directory() == tmp_path / "xdg" / "strongreg"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_directory() == tmp_path / ".cache" / "strongreg"


def test_a_user_without_a_home_reads_each_time(files, read, source, monkeypatch):
    monkeypatch.delenv("STRONGREG_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError("no home")))
    assert _same(cached("set", files, read), source)
