"""Packed files: what goes in comes out, in few bytes, and a damaged file is one clear error."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
import zlib
from collections import UserDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import strongreg
from strongreg import PackedFileError, inspect_packed, load_packed, save_packed
from strongreg.compression import is_packed
from strongreg.compression.packing.directory import Entry, Stream, read_directory, write_directory
from strongreg.compression.packing.values import DTYPES
from strongreg.experiments.models import build_model


def sparse(*shape: int, density: float) -> torch.Tensor:
    """A random tensor of which a share is not 0."""
    weights = torch.randn(shape)
    return weights.masked_fill(torch.rand(shape) >= density, 0.0)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are of the same dtype, shape and bits."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    first, second = (t.detach().contiguous().reshape(-1) for t in (one, other))
    return not one.numel() or torch.equal(first.view(torch.uint8), second.view(torch.uint8))


def entropy(p: float) -> float:
    """Bits per element of a mask that is set with probability p."""
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.packed"


# ---------------------------------------------------------------------- round trips


@pytest.mark.parametrize("density", [0.0, 0.02, 0.1, 0.3, 0.96, 1.0])
@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_round_trips_bit_for_bit(file, name, density):
    dtype = DTYPES[name]
    size = dtype.itemsize
    raw = np.random.default_rng(0).integers(0, 256, (35, size), np.uint8)
    raw[np.random.default_rng(1).random(35) >= density] = 0
    if dtype == torch.bool:
        raw &= 1
    try:
        tensor = torch.from_numpy(raw.reshape(-1)).view(dtype).reshape(5, 7)
    except (RuntimeError, TypeError) as error:
        pytest.skip(f"torch builds no {name}: {error}")
    save_packed({"x": tensor}, file)
    assert same_bits(load_packed(file)["x"], tensor)


SPECIAL = torch.tensor(
    [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 3.4e38] + [0.0] * 40, dtype=torch.float32
)


@pytest.mark.parametrize(
    "tensor",
    [
        SPECIAL,
        torch.tensor([0x7FC00001, 0x7F800001, -0x3FFFFF], dtype=torch.int32).view(torch.float32),
        torch.tensor(3.5),
        torch.tensor(0, dtype=torch.int64),
        torch.empty(0),
        torch.empty(3, 0, 2, dtype=torch.float16),
        torch.arange(24.0).reshape(2, 3, 4).transpose(0, 2),
        torch.arange(100.0)[::7],
        torch.zeros(1000),
        torch.zeros(3).expand(5, 3),
        torch.randn(4, dtype=torch.complex64).conj(),
        nn.Parameter(torch.randn(3)),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    ],
    ids=lambda t: f"{t.dtype}{list(t.shape)}",
)
def test_odd_tensors_round_trip_bit_for_bit(file, tensor):
    save_packed({"x": tensor}, file)
    assert same_bits(load_packed(file)["x"], tensor.detach().resolve_conj())


@given(st.binary(max_size=400), st.integers(1, 300), st.randoms(use_true_random=False))
def test_any_bytes_at_any_places_round_trip(tmp_path_factory, values, spread, chance):
    tensor = torch.zeros(max(1, len(values) * spread), dtype=torch.uint8)
    for value in values:
        tensor[chance.randrange(len(tensor))] = value
    file = tmp_path_factory.getbasetemp() / "any.packed"
    save_packed({"x": tensor}, file)
    assert torch.equal(load_packed(file)["x"], tensor)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.4, 1.0])
def test_negative_zeros_round_trip(file, dtype, density):
    weights = sparse(31, 17, density=density).to(dtype) * -1.0
    weights[0] = 0.0
    save_packed({"x": weights}, file)
    assert same_bits(load_packed(file)["x"], weights)


def test_the_sign_of_a_zero_takes_a_bit(file):
    """As in weight * mask, which torch.nn.utils.prune computes."""
    weights = torch.randn(500, 500)
    contents = save_packed({"w": weights * (torch.rand_like(weights) < 0.02)}, file)
    bits = 8 * contents.file_bytes / weights.numel()
    assert bits <= 1.05 * (entropy(0.02) + 0.02 * 32 + 0.98)


def test_gaps_longer_than_a_byte_round_trip(file):
    for place in (0, 254, 255, 256, 509, 510, 511, 9_999):
        tensor = torch.zeros(10_000)
        tensor[place] = 1.0
        contents = save_packed({"x": tensor}, file)
        assert contents.tensors[0].num_stored == 1
        assert torch.equal(load_packed(file)["x"], tensor)


def test_tied_tensors_are_stored_once_and_are_one_tensor_again(file):
    model = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50))
    model[1].weight = model[0].weight
    contents = save_packed(model, file)
    assert [entry.tied_to for entry in contents.tensors] == [None, None, "0.weight", None]
    assert contents.num_elements == 2600
    assert contents.file_bytes < 4 * 2600 + 1500
    state = load_packed(file)
    assert state["1.weight"] is state["0.weight"]
    assert inspect_packed(file) == contents


class Lazy(UserDict):
    """Makes its tensors when they are asked for, such as a reader of a large file."""

    def __getitem__(self, name):
        """One that nothing else holds."""
        return torch.full((100, 100), self.data[name])


def test_tensors_that_live_one_after_another_are_not_tied(file):
    save_packed(Lazy({name: float(name) for name in "01234"}), file)
    assert {name: float(tensor[0, 0]) for name, tensor in load_packed(file).items()} == {n: float(n) for n in "01234"}


def test_what_has_no_tensors_is_an_error(file):
    with pytest.raises(TypeError, match=r"model=3: give a torch\.nn\.Module or its state_dict"):
        save_packed(3, file)


def test_views_of_one_storage_are_not_tied(file):
    base = torch.arange(10.0)
    save_packed({"a": base[:5], "b": base[5:], "c": base, "d": base.reshape(2, 5)}, file)
    state = load_packed(file)
    assert torch.equal(state["b"], base[5:])
    assert torch.equal(state["d"], base.reshape(2, 5))


@pytest.mark.parametrize("name", ["plain_cnn", "lenet300", "resnet20", "vit_tiny"])
def test_networks_load_into_networks(file, name):
    shape = (3, 32, 32) if name in ("resnet20", "vit_tiny") else (1, 8, 8)
    model, other = (build_model(name, shape, 10) for _ in range(2))
    save_packed(model, file)
    state = load_packed(file, other)
    assert list(state) == list(model.state_dict())
    for key, tensor in other.state_dict().items():
        assert same_bits(tensor, model.state_dict()[key])


def test_the_same_tensors_give_the_same_bytes_in_every_process(file):
    code = (
        "import torch, strongreg, sys; torch.manual_seed(0); model = torch.nn.Linear(30, 30); "
        "strongreg.save_packed(model, sys.argv[1], 'bf16')"
    )
    contents = set()
    for seed in "12":
        subprocess.run([sys.executable, "-c", code, file], check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        contents.add(file.read_bytes())
    assert len(contents) == 1


def test_any_reader_of_safetensors_can_open_the_file(file):
    save_packed({"x": torch.ones(3)}, file)
    assert list(safetensors.numpy.load_file(file)) == ["x"]


# ---------------------------------------------------------------------- fewer bits


def test_narrow_values_come_back_as_torch_rounds_them(file):
    weights = {"w": sparse(40, 60, density=0.3), "bias": torch.randn(40), "steps": torch.tensor(7)}
    for values, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        save_packed(weights, file, values)
        state = load_packed(file)
        assert torch.equal(state["w"], weights["w"].to(dtype).float())
        assert torch.equal(state["bias"], weights["bias"])
        assert torch.equal(state["steps"], weights["steps"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_int8_errs_by_at_most_half_a_step_per_channel(file, dtype):
    weights = sparse(40, 6, 3, 3, density=0.3).to(dtype) * torch.logspace(-30, 20, 40, dtype=dtype).reshape(-1, 1, 1, 1)
    weights[3] = 0
    save_packed({"w": weights}, file, "int8")
    found = load_packed(file)["w"]
    assert found.dtype == dtype
    assert not found[weights == 0].any()
    step = weights.abs().amax((1, 2, 3), keepdim=True) / 127
    assert ((found - weights).abs() <= 0.505 * step * (1 + 2**-8)).all()
    assert not found[3].any()


@pytest.mark.parametrize("values", ["bf16", "fp16", "int8"])
def test_narrow_values_drop_the_sign_of_zeros(file, values):
    contents = save_packed({"w": sparse(50, 50, density=0.1).mul_(-1.0)}, file, values)
    assert contents.tensors[0].num_negative_zeros == 0


@pytest.mark.parametrize(
    ("values", "number"), [("fp16", 1e5), ("bf16", 3.4e38), ("int8", math.nan), ("int8", math.inf), ("fp8", 1.0)]
)
def test_numbers_that_do_not_fit_are_an_error_and_leave_the_file_as_it_was(file, values, number):
    file.write_bytes(b"before")
    with pytest.raises(ValueError, match=f"values='{values}'.*choose"):
        save_packed({"w": torch.full((2, 2), number)}, file, values)
    assert file.read_bytes() == b"before"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(("values", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_infinity_and_nan_stay_in_sixteen_bits(file, values, dtype):
    weights = torch.tensor([[math.inf, -math.inf], [math.nan, 1.0]])
    save_packed({"w": weights}, file, values)
    assert torch.equal(load_packed(file)["w"].nan_to_num(5), weights.to(dtype).float().nan_to_num(5))


def test_a_packed_file_is_told_from_others(file, tmp_path):
    save_packed({"w": torch.ones(3)}, file)
    assert is_packed(file)
    safetensors.numpy.save_file({"w": np.ones(3)}, tmp_path / "plain")
    (tmp_path / "noise").write_bytes(b"noise" * 100)
    assert not is_packed(tmp_path / "plain")
    assert not is_packed(tmp_path / "noise")
    with pytest.raises(FileNotFoundError):
        is_packed(tmp_path / "none")


# ---------------------------------------------------------------------- few bytes


@pytest.mark.parametrize("density", [0.1, 0.02])
@pytest.mark.parametrize(("values", "bits"), [("fp32", 32), ("bf16", 16), ("fp16", 16), ("int8", 8)])
def test_random_zeros_take_little_more_than_their_entropy(file, density, values, bits):
    contents = save_packed({"w": sparse(1000, 1000, density=density)}, file, values)
    assert 8 * file.stat().st_size / 1e6 <= 1.10 * (entropy(density) + density * bits)
    assert contents.file_bytes == file.stat().st_size


def test_nine_times_fewer_weights_take_a_twelfth_of_the_bytes(file):
    model = build_model("lenet300", (1, 28, 28), 10)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.masked_fill_(torch.rand_like(parameter) >= 1 / 9, 0.0)
    contents = save_packed(model, file, "bf16")
    assert contents.file_bytes <= 0.08 * contents.dense_bytes
    assert contents.dense_bytes == 4 * sum(p.numel() for p in model.parameters())


def test_whole_channels_of_zeros_take_less_than_scattered_ones(file):
    scattered, whole = torch.randn(100, 1000), torch.randn(100, 1000)
    scattered.masked_fill_(torch.rand_like(scattered) >= 0.2, 0.0)
    whole[20:] = 0
    sizes = [save_packed({"w": w}, file).file_bytes for w in (scattered, whole)]
    assert sizes[1] < 0.9 * sizes[0]


def test_counts_are_those_of_a_hand_count(file):
    weights = torch.tensor([[0.0, -0.0, 2.0, 0.0, 0, 0, 0, 0, 0, 0], [math.nan, 0.0, 0.0, 0.0, 0, 0, 0, 0, 0, 0]])
    contents = save_packed({"w": weights, "bias": torch.tensor([1.0, 0.0])}, file)
    assert [(e.num_elements, e.num_nonzero) for e in contents.tensors] == [(20, 2), (2, 1)]
    assert [entry.num_negative_zeros for entry in contents.tensors] == [1, 0]
    assert contents.compression == 22 / 3
    assert contents.dense_bytes == 88
    assert contents.byte_ratio == 88 / file.stat().st_size


def test_the_table_shows_every_tensor_and_both_ratios(file):
    text = str(save_packed({"w": sparse(100, 100, density=0.1).mul_(-1.0), "tail": torch.ones(3)}, file))
    lines = text.splitlines()
    assert lines[0].split() == ["tensor", "shape", "stored", "as", "kept", "bytes", "share", "of", "dense"]
    assert lines[2].startswith("w")
    assert "100x100" in lines[2]
    assert "times fewer numbers" in text
    assert "times fewer bytes (40,012 to " in text
    assert "zeros are negative and take a bit each" in text
    assert "nothing left" in str(save_packed({"w": torch.zeros(2)}, file))
    shared = torch.ones(2)
    assert "= w" in str(save_packed({"w": shared, "v": shared}, file))


@pytest.mark.slow
@pytest.mark.parametrize("density", [1.0, 0.1])
def test_a_vgg16_is_saved_and_loaded_within_three_seconds(file, density):
    model = build_model("vgg16", (3, 32, 32), 10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.masked_fill_(torch.rand_like(parameter) >= density, 0.0)
    start = time.process_time()
    save_packed(model, file)
    saved = time.process_time()
    load_packed(file)
    assert saved - start < 3
    assert time.process_time() - saved < 3


# ---------------------------------------------------------------------- what cannot be saved, or not be loaded here


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("text", TypeError, "'x' is a str: a packed file holds tensors only"),
        (torch.ones(3).to_sparse(), TypeError, "'x' is of layout torch.sparse_coo"),
        (torch.empty(3, device="meta"), TypeError, "'x' is on the meta device"),
    ],
    ids=["text", "sparse", "meta"],
)
def test_what_is_no_dense_tensor_is_an_error_that_names_it(file, value, error, message):
    with pytest.raises(error, match=message):
        save_packed({"x": value}, file)
    assert not file.exists()


def test_the_name_that_safetensors_keeps_for_itself_is_an_error(file):
    with pytest.raises(ValueError, match="state_dict key '__metadata__'"):
        save_packed({"__metadata__": torch.ones(1)}, file)


def test_a_model_that_does_not_fit_is_an_error_and_stays_as_it_was(file):
    model = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_packed({"weight": torch.zeros(2, 3), "gain": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=r"it lacks \['bias'\], the model lacks \['gain'\]"):
        load_packed(file, model)
    save_packed({"weight": torch.zeros(2, 3), "bias": torch.zeros(5)}, file)
    with pytest.raises(ValueError, match=r"'bias' is \(5,\) there, \(2,\) here"):
        load_packed(file, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_without_safetensors_the_error_says_what_to_install(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[compression\]' in the clone"):
        save_packed({}, file)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(file, monkeypatch):
    save_packed({"x": torch.ones(3)}, file)
    before = file.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_packed({"x": torch.zeros(30)}, file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


# ---------------------------------------------------------------------- hostile files


def example_state() -> dict[str, torch.Tensor]:
    """Every layout, codec and kind of entry."""
    shared = torch.randn(4)
    return {
        "dense": torch.randn(6, 5),
        "gaps": sparse(30, 40, density=0.03),
        "mask": sparse(30, 40, density=0.3),
        "none": torch.zeros(5, 5),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3),
        "one": shared,
        "two": shared,
    }


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> tuple[dict[str, torch.Tensor], bytes]:
    """What a file holds, and the file."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("example") / "model.packed"
    save_packed(example_state(), file, "int8")
    return load_packed(file), file.read_bytes()


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def whole(header: dict[str, Any], data: bytes) -> bytes:
    """See parts."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def with_directory(content: bytes, rows: Any, version: str = "1") -> bytes:
    """A file whose directory is another one, with the right checksum."""
    header, data = parts(content)
    text = rows if isinstance(rows, str) else json.dumps(rows)
    checksum = f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"
    header["__metadata__"]["strongreg_packed"] = f"{version} {checksum} {text}"
    return whole(header, data)


def directory(content: bytes) -> list[dict[str, Any]]:
    """The rows of a file's directory."""
    return json.loads(parts(content)[0]["__metadata__"]["strongreg_packed"].split(" ", 2)[2])


def _mutated(content: bytes, chance: random.Random) -> bytes:
    kind = chance.randrange(6)
    place = chance.randrange(len(content))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + content[place + chance.randint(1, 20) :]
    if kind == 2:
        return content[:place] + chance.randbytes(chance.randint(1, 20)) + content[place:]
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 5, 50])):
        place = chance.randrange(len(content)) if kind < 5 else chance.randrange(parts_start(content))
        changed[place] = changed[place] ^ 1 << chance.randrange(8) if kind == 3 else chance.randrange(256)
    return bytes(changed)


def parts_start(content: bytes) -> int:
    """Where the data begin."""
    return 8 + int.from_bytes(content[:8], "little")


@pytest.mark.slow
def test_ten_thousand_damaged_files_are_refused_or_hold_what_they_held(example, file):
    state, content = example
    chance = random.Random(0)
    messages = []
    for _ in range(10_000):
        file.write_bytes(_mutated(content, chance))
        try:
            found = load_packed(file)
        except PackedFileError as error:
            messages.append(str(error))
        else:
            assert list(found) == list(state)
            assert all(same_bits(found[name], state[name]) for name in state)
    assert len(messages) > 9_900
    assert all(str(file) in message for message in messages)


NASTY = [0, 1, -1, 7, 255, 2**31, 2**62, 2**63, 10**30, 1.5, True, None]
NASTY += ["", "x", "float32", "int8", "gaps", [], [0], {}]


def _twisted(rows: list[dict[str, Any]], chance: random.Random) -> list[dict[str, Any]]:
    rows = json.loads(json.dumps(rows))
    for _ in range(chance.choice([1, 1, 2, 5])):
        row = chance.choice(rows)
        key = chance.choice(list(row))
        if isinstance(row[key], list) and row[key] and chance.random() < 0.8:
            inner = row[key]
            place = chance.randrange(len(inner))
            if isinstance(inner[place], list) and inner[place]:
                inner, place = inner[place], chance.randrange(len(inner[place]))
            near = [inner[place] + 1, inner[place] - 1] if isinstance(inner[place], int) else []
            inner[place] = chance.choice([*near * 8, *NASTY])
        else:
            row[key] = chance.choice([*NASTY, *(other[key] for other in rows)])
    return rows


@pytest.mark.slow
def test_ten_thousand_lying_directories_are_refused_or_harmless(example, file):
    """Their checksums are right: only what they say about the tensors is wrong."""
    _, content = example
    chance = random.Random(1)
    rows = directory(content)
    num_refused = 0
    for _ in range(10_000):
        file.write_bytes(with_directory(content, _twisted(rows, chance)))
        try:
            load_packed(file, max_bytes=10**6)
        except PackedFileError:
            num_refused += 1
    assert num_refused > 8_000


@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_refused(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "noise.packed"
    file.write_bytes(content)
    with pytest.raises(PackedFileError):
        load_packed(file)


def _changed(content: bytes, name: str, **changes: Any) -> bytes:
    rows = directory(content)
    for row in rows:
        if row["name"] == name:
            row.update(changes)
    return with_directory(content, rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: with_directory(c, directory(c), version="2"), "version 2 of the format, this reads 1: update"),
        (lambda c: with_directory(c, directory(c), version="x"), "does not begin with its version"),
        (lambda c: with_directory(c, "[" * 100_000), "no JSON"),
        (lambda c: with_directory(c, "9" * 5000), "no JSON"),
        (lambda c: with_directory(c, "{}"), "no list"),
        (lambda c: with_directory(c, "[1]"), "other fields"),
        (lambda c: with_directory(c, directory(c)[1:]), "names other tensors"),
        (lambda c: with_directory(c, directory(c)[:1] * 2), "comes twice"),
        (lambda c: _changed(c, "dense", shape=[2**40, 2**40]), "too large"),
        (lambda c: _changed(c, "dense", shape=[1] * 65), "no list of sizes"),
        (lambda c: _changed(c, "dense", dtype="float99"), "dtype 'float99' is unknown"),
        (lambda c: _changed(c, "dense", stored_as="complex128"), "float32 stored as complex128"),
        (lambda c: _changed(c, "dense", layout="gaps"), "too many values for coded gaps"),
        (lambda c: _changed(c, "dense", crc32=5), "tensor 'dense': it is damaged"),
        (lambda c: _changed(c, "dense", num_stored=29), "29 values for 30|does not store every"),
        (lambda c: _changed(c, "two", tied_to="two"), "is no such tensor before it"),
        (lambda c: _changed(c, "two", tied_to=None), "contradict"),
        (lambda c: _changed(c, "two", shape=[2, 2]), "is no such tensor before it"),
        (lambda c: whole({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"abcd"), "no packed one"),
        (lambda c: c[:-1], "no packed file, or damaged"),
        (lambda c: b"", "no packed file, or damaged"),
    ],
    ids=range(21),
)
def test_each_lie_is_named(example, file, change, message):
    file.write_bytes(change(example[1]))
    with pytest.raises(PackedFileError, match=message):
        load_packed(file)


def test_a_small_file_that_unpacks_to_much_is_refused_unless_it_is_asked_for(file):
    save_packed({"x": torch.zeros(300_000_000, dtype=torch.int8).reshape(3, -1), "y": torch.zeros(200_000_000)}, file)
    assert file.stat().st_size < 2_000
    with pytest.raises(PackedFileError, match=r"take more than 1073741824 bytes: .* choose a larger max_bytes"):
        load_packed(file)
    assert inspect_packed(file).dense_bytes == 1_100_000_000
    assert load_packed(file, max_bytes=1_100_000_000)["y"].shape == (200_000_000,)


def test_scales_of_nothing_count_as_what_they_take():
    streams = (Stream("stored", 200_000, 200_000), Stream("stored", 0, 0))
    entry = Entry("a", "float32", (100_000, 0), "int8", "dense", 0, 0, 0, streams, 0)
    text = write_directory([entry])
    assert read_directory(text, 200_000) == [entry]
    with pytest.raises(PackedFileError, match="take more than 199999 bytes"):
        read_directory(text, 199_999)


def test_a_stream_that_inflates_to_more_than_it_said_is_refused(file):
    bomb = zlib.compress(bytes(50_000_000), 9)
    save_packed({"x": torch.randn(10)}, file)
    rows = directory(file.read_bytes())
    rows[0].update(streams=[["deflate", len(bomb), 40]], crc32=zlib.crc32(bomb))
    header, _ = parts(file.read_bytes())
    header["x"].update(shape=[len(bomb)], data_offsets=[0, len(bomb)])
    file.write_bytes(with_directory(whole(header, bomb), rows))
    with pytest.raises(PackedFileError, match=r"does not end where it should|or more"):
        load_packed(file)


def test_offsets_that_overlap_are_refused(example, file):
    header, data = parts(example[1])
    header["gaps"]["data_offsets"] = header["mask"]["data_offsets"]
    header["gaps"]["shape"] = header["mask"]["shape"]
    file.write_bytes(whole(header, data))
    with pytest.raises(PackedFileError, match="no packed file, or damaged"):
        load_packed(file)


def test_a_missing_file_is_the_systems_own_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_packed(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        load_packed(tmp_path)


def test_the_error_is_a_value_error_and_public():
    assert issubclass(strongreg.PackedFileError, ValueError)
    assert Path(strongreg.__file__).parent.name == "strongreg"


def test_a_damaged_file_is_not_shown(file):
    save_packed({"a": sparse(100, 100, density=0.1)}, file)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(PackedFileError, match=r"'a': it is damaged \(its checksum differs\)"):
        inspect_packed(file)


def test_a_file_that_is_larger_says_so(file):
    save_packed({"a": torch.ones(2)}, file)
    assert " times more bytes (8 to " in str(inspect_packed(file))
