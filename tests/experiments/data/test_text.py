"""Texts: read, divided into passages, and refused where they are not what they should be."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from experiments.data.test_real import place_of
from strongreg.experiments.data import TextData, input_format, load_data
from strongreg.experiments.data.text import Passages
from strongreg.experiments.errors import UserError

TEXT = bytes(range(256)) * 4  # 1024 bytes, of which the last 102 are the test text


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "own.txt"
    path.write_bytes(TEXT)
    return path


def _bytes(passages: Passages) -> list[bytes]:
    return [bytes(row.tolist()) for row in passages.tokens]


def test_passages_follow_one_another_and_share_the_byte_between(file):
    data = load_data(str(file), context=10)
    assert isinstance(data, TextData)
    assert (data.name, data.num_classes, data.input_shape) == (str(file), 256, (10,))
    assert _bytes(data.train) == [TEXT[i : i + 11] for i in range(0, 922 - 10, 10)]
    assert _bytes(data.test) == [TEXT[i : i + 11] for i in range(922, 1024 - 10, 10)]
    assert len(data.validation) == 0


def test_labels_are_the_bytes_that_follow(file):
    data = load_data(str(file), context=10)
    assert data.train.inputs[1].tolist() == list(range(10, 20))
    assert data.train.labels[1].tolist() == list(range(11, 21))
    assert data.train.labels.dtype == data.normalize(data.train.inputs).dtype == torch.int64
    assert data.normalize(data.train.inputs)[1].tolist() == list(range(10, 20))
    chosen = data.train.select(torch.tensor([3, 1]))
    assert chosen.inputs[:, 0].tolist() == [30, 10]


def test_the_validation_text_is_the_end_of_what_is_not_for_the_test(file):
    data, whole = load_data(str(file), context=10, validation_share=0.25), load_data(str(file), context=10)
    start = 922 - round(922 * 0.25)
    assert _bytes(data.validation) == [TEXT[i : i + 11] for i in range(start, 922 - 10, 10)]
    assert _bytes(data.test) == _bytes(whole.test)
    assert _bytes(data.train) == _bytes(whole.train)[: len(data.train)]


def test_fewer_passages_are_the_first_ones(file):
    data = load_data(str(file), context=10, num_train=7)
    assert _bytes(data.train) == [TEXT[i : i + 11] for i in range(0, 70, 10)]
    with pytest.raises(UserError, match=r"num_train=93: .*own\.txt has 92 passages to train on"):
        load_data(str(file), context=10, num_train=93)


def test_a_text_too_short_for_the_context_is_an_error_that_names_the_part(file):
    with pytest.raises(UserError, match=r"the test text of .*\(1,024 bytes in all\) holds no passage of context=128"):
        load_data(str(file))
    with pytest.raises(UserError, match=r"the validation text of .*own\.txt .* holds no passage of context=20 bytes"):
        load_data(str(file), context=20, validation_share=0.01)
    file.write_bytes(b"")
    with pytest.raises(
        UserError, match=r"the training text of .*\(0 bytes in all\).* smaller context, or a longer text"
    ):
        load_data(str(file), context=1)


def test_the_digest_is_that_of_text_and_division(file):
    digests = [load_data(str(file), context=c, validation_share=s).digest() for c, s in ((10, 0), (10, 0.2), (12, 0))]
    file.write_bytes(TEXT[::-1])
    digests.append(load_data(str(file), context=10).digest())
    assert len(set(digests)) == 4


def test_the_parts_move_to_a_device_together(file):
    moved = load_data(str(file), context=10).to(torch.device("meta"))
    assert {x.tokens.device.type for x in (moved.train, moved.validation, moved.test)} == {"meta"}


def test_what_a_network_must_fit_is_known_without_reading():
    assert input_format("tiny_shakespeare") == ((128,), 256)
    assert input_format("python_stdlib", 64) == ((64,), 256)


def test_a_context_is_not_for_images():
    with pytest.raises(UserError, match=r"context=64: digits holds images, and context is for text: leave it out"):
        load_data("digits", context=64)


@pytest.mark.parametrize("name", ["nope.txt", "no/such.txt"])
def test_a_file_that_is_not_there_is_not_said_to_hold_images(name):
    with pytest.raises(UserError, match=re.escape(name)) as error:
        load_data(name, context=64)
    assert "context" not in str(error.value)


@pytest.mark.parametrize("tokens", [torch.zeros(3, 4), torch.zeros(3, 1).byte(), torch.zeros(3).byte()])
def test_passages_that_are_none_are_an_error(tokens):
    with pytest.raises(ValueError, match=r"tokens=torch\.\w+ of shape .*: give uint8 of shape"):
        Passages(tokens)


def test_passages_of_different_lengths_are_an_error():
    parts = [Passages(torch.zeros(2, size).byte()) for size in (5, 5, 6)]
    with pytest.raises(ValueError, match=r"different lengths \[5, 6\]"):
        TextData("odd", *parts)


# ---------------------------------------------------------------------- the texts with names


def test_the_standard_library_is_the_same_each_time_and_mixes_its_modules():
    data = load_data("python_stdlib", context=256)
    assert data.digest() == load_data("python_stdlib", context=256).digest()
    assert len(data.train) > 10_000
    text = bytes(data.train.inputs.flatten().tolist())
    first = min(
        (path.relative_to(Path(os.__file__).parent).as_posix() for path in Path(os.__file__).parent.glob("*.py")),
        key=lambda name: hashlib.sha256(name.encode()).digest(),
    )
    assert (Path(os.__file__).parent / first).read_bytes()[:200] in text
    assert b"site-packages/" not in text[:1000]


def test_a_python_without_sources_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "__file__", str(tmp_path / "os.py"))
    with pytest.raises(UserError, match=r"there are no sources of the standard library in .*; name a text file"):
        load_data("python_stdlib")


def test_shakespeare_that_is_not_here_says_which_file_to_put_where(tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=rf"not here: put .* into {tmp_path}/tiny_shakespeare/input\.txt and give --data"
    ):
        load_data("tiny_shakespeare", data_dir=tmp_path)
    monkeypatch.delenv("STRONGREG_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"into {tmp_path}/data/tiny_shakespeare/input\.txt and give --data-dir data"):
        load_data("tiny_shakespeare")


def test_another_text_in_its_place_is_an_error(tmp_path):
    (tmp_path / "input.txt").write_bytes(TEXT)
    with pytest.raises(
        UserError, match=r"input\.txt is another text than tiny_shakespeare: .*or give its path as --data"
    ):
        load_data("tiny_shakespeare", data_dir=tmp_path)


def test_shakespeare_is_read_where_it_lies():
    place = place_of("tiny_shakespeare")
    data = load_data("tiny_shakespeare", data_dir=place, context=64, validation_share=0.1)
    assert sum(len(x) for x in (data.train, data.validation, data.test)) == 1_115_394 // 64 - 2
    assert bytes(data.train.inputs[0].tolist()).startswith(b"First Citizen:\nBefore we proceed")
    assert load_data("tiny_shakespeare", data_dir=place / "tiny_shakespeare", context=64).input_shape == (64,)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions")
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_an_error(file):
    file.chmod(0)
    with pytest.raises(UserError, match=r"own\.txt cannot be read: "):
        load_data(str(file))
