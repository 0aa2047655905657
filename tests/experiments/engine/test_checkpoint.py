"""A checkpoint is whole, of this run, and puts torch's own generators back."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from pathlib import Path

import pytest
import torch

from strongreg.experiments.engine.checkpoint import (
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from strongreg.experiments.errors import UserError

CPU = torch.device("cpu")
STATE = {
    "fingerprint": "mine",
    "world_size": 1,
    "weights": torch.arange(1000.0),
    "lines": ["a\n"],
    "nested": [{"x": 1.5, 2: None}],
}


def test_what_is_saved_is_loaded(tmp_path):
    save_checkpoint(tmp_path, STATE)
    loaded = load_checkpoint(tmp_path, "mine")
    assert torch.equal(loaded.pop("weights"), STATE["weights"])
    assert loaded == {"version": 3, **{key: value for key, value in STATE.items() if key != "weights"}}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_without_one_there_is_nothing_to_load(tmp_path):
    assert load_checkpoint(tmp_path, "mine") is None


def test_one_of_another_run_or_version_is_refused(tmp_path):
    save_checkpoint(tmp_path, STATE)
    with pytest.raises(UserError, match="of another recipe, method, seed or data: delete it"):
        load_checkpoint(tmp_path, "yours")
    for other in ({**STATE, "version": 0}, [1], {}):
        buffer = io.BytesIO()
        torch.save(other, buffer)
        _sign(tmp_path / "checkpoint.pt", buffer.getvalue())
        with pytest.raises(UserError, match="of another version of strongreg: delete it"):
            load_checkpoint(tmp_path, "mine")


def test_one_that_is_cut_off_anywhere_is_named(tmp_path):
    save_checkpoint(tmp_path, STATE)
    file = tmp_path / "checkpoint.pt"
    content = file.read_bytes()
    for length in (0, 1, 4, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(
            UserError, match=r"checkpoint\.pt is damaged, or of another version of strongreg: delete it"
        ):
            load_checkpoint(tmp_path, "mine")


def test_a_single_bit_that_flipped_is_named(tmp_path):
    save_checkpoint(tmp_path, STATE)
    file = tmp_path / "checkpoint.pt"
    content = file.read_bytes()
    for place in range(0, len(content), len(content) // 50):
        file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(UserError, match=r"checkpoint\.pt is damaged"):
            load_checkpoint(tmp_path, "mine")


@pytest.mark.parametrize("content", [b"hello", b"", b"\x80\x02}q\x00."])
def test_what_is_no_checkpoint_is_named_though_its_checksum_is_right(tmp_path, content):
    _sign(tmp_path / "checkpoint.pt", content)
    with pytest.raises(UserError, match=r"checkpoint\.pt is (damaged|of another version)"):
        load_checkpoint(tmp_path, "mine")


def _sign(file: Path, content: bytes) -> None:
    file.write_bytes(hashlib.sha256(content).digest() + content)


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_one_that_would_run_code_is_refused_and_does_not_run_it(tmp_path, how):
    file, mark = tmp_path / "checkpoint.pt", tmp_path / "mark"
    content = {"version": 3, "fingerprint": "mine", "world_size": 1, "evil": _Evil(mark)}
    buffer = io.BytesIO()
    torch.save(content, buffer) if how == "torch" else buffer.write(pickle.dumps(content, protocol=2))
    _sign(file, buffer.getvalue())
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(tmp_path, "mine")
    assert not mark.exists()


def test_torchs_own_generators_go_on(tmp_path):
    torch.manual_seed(3)
    torch.rand(5)
    save_checkpoint(tmp_path, {"fingerprint": "mine", "world_size": 1, "random": random_state(CPU)})
    expected = torch.rand(5)
    torch.manual_seed(4)
    set_random_state(load_checkpoint(tmp_path, "mine")["random"], CPU)
    assert torch.equal(torch.rand(5), expected)
