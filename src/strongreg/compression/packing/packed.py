"""Save and load a network in few bytes: zeros cost next to nothing, and there is no pickle (docs/packed-format.md)."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from strongreg.compression.errors import PackedFileError
from strongreg.compression.packing import codec, positions
from strongreg.compression.packing.contents import PackedContents
from strongreg.compression.packing.directory import Entry, Stream, read_directory, write_directory
from strongreg.compression.packing.values import (
    DTYPES,
    SCALE,
    VALUES,
    Bytes,
    Values,
    dtype_name,
    from_bytes,
    narrow,
    negative_zero,
    non_zero,
    set_sign,
    to_bytes,
    widen,
)
from strongreg.extras import how_to_install
from strongreg.files import write_bytes

_KEY = "strongreg_packed"
_RESERVED = "__metadata__"  # safetensors keeps its own here
_TRUSTED_BYTES = 2**30
_TRUSTED_RATIO = 1000
_DENSE_SHARE = 0.95  # from here on positions are not worth their bytes


def save_packed(
    model: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str], values: Values = "fp32"
) -> PackedContents:
    """Write a network's tensors into one small file; tensors with zeros as positions and values.

    The file is a safetensors file (no pickle), written whole or not at all, the same bytes for the same tensors.

    Args:
        model: the network, or a state_dict of tensors of any shape, dtype and device.
        path: where to write; an existing file is replaced.
        values: "fp32" keeps every tensor bit for bit. "bf16", "fp16" and "int8" (with one scale per output channel)
            store float32 and float64 tensors of two or more dimensions in fewer bits; all others stay as they are.

    Returns:
        What was written, tensor by tensor.

    Raises:
        TypeError: ``model`` is neither, or an entry of the state_dict is no dense tensor.
        ValueError: ``values`` is unknown, or cannot hold a number (too large, NaN or infinite for int8).
        ImportError: safetensors is not installed.
        OSError: the file cannot be written.

    Example:
        >>> import strongreg, tempfile, torch
        >>> model = torch.nn.Linear(100, 100)
        >>> with torch.no_grad():
        ...     model.weight *= model.weight.abs() > 0.09
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     contents = strongreg.save_packed(model, f"{folder}/model.packed")
        ...     state = strongreg.load_packed(f"{folder}/model.packed")
        >>> contents.byte_ratio > 5, torch.equal(state["weight"], model.weight)
        (True, True)
    """
    if values not in VALUES:
        raise ValueError(f"values={values!r}: choose one of {', '.join(VALUES)}")
    library = _safetensors()
    if not isinstance(model, nn.Module | Mapping):
        raise TypeError(f"model={model!r}: give a torch.nn.Module or its state_dict")
    state = model.state_dict() if isinstance(model, nn.Module) else model
    entries: list[Entry] = []
    payloads: dict[str, Any] = {}
    owners: dict[Any, str] = {}
    held = list(state.items())  # a tensor that a lazy mapping makes must live on, or another takes its address
    for name, tensor in held:
        _check_tensor(name, tensor)
        owner = owners.setdefault(_identity(name, tensor), name)
        if owner != name:
            entries.append(_tied(name, tensor, owner))
            continue
        entry, payload = _pack(name, tensor, values)
        entries.append(entry)
        payloads[name] = np.frombuffer(payload, np.uint8)
    content = library.numpy.save(payloads, {_KEY: write_directory(entries)})
    write_bytes(Path(path), content)
    return PackedContents(tuple(entries), len(content))


def load_packed(
    path: str | os.PathLike[str], model: nn.Module | None = None, *, max_bytes: int | None = None
) -> dict[str, Tensor]:
    """Read a file that :func:`save_packed` wrote. Safe with files of unknown origin.

    Args:
        path: the file.
        model: a network to load it into, strictly; it is left as it was if anything does not fit.
        max_bytes: how many bytes the tensors may take in memory. Default: 1 GiB, or 1000 times the file's size if that
            is more. While a tensor is read it may take some eight times its bytes.

    Returns:
        The state_dict, on the CPU, in the dtypes that were saved; tied tensors are one tensor.

    Raises:
        PackedFileError: the file is no packed file, damaged, of another version, or larger than ``max_bytes``.
        ValueError: it does not fit the model.
        ImportError: safetensors is not installed.
        OSError: the file cannot be read.

    Example:
        >>> import strongreg, tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     contents = strongreg.save_packed(torch.nn.Linear(3, 2), f"{folder}/model.packed")
        ...     state = strongreg.load_packed(f"{folder}/model.packed")
        >>> list(state), state["weight"].shape
        (['weight', 'bias'], torch.Size([2, 3]))
    """
    entries, payloads, _ = _open(path, max_bytes)
    state: dict[str, Tensor] = {}
    for entry in entries:
        try:
            state[entry.name] = _unpack(entry, payloads[entry.name]) if entry.tied_to is None else state[entry.tied_to]
        except PackedFileError as error:
            raise PackedFileError(f"{path}: tensor {entry.name!r}: {error}") from error
    if model is not None:
        load_into(model, state, path)
    return state


def inspect_packed(path: str | os.PathLike[str]) -> PackedContents:
    """What a packed file holds, without unpacking it. The counts are those that it states; loading checks them.

    Args:
        path: the file.

    Returns:
        Its tensors and sizes.

    Raises:
        PackedFileError: the file is no packed file, damaged, or of another version.
        ImportError: safetensors is not installed.
        OSError: the file cannot be read.

    Example:
        >>> import strongreg, tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     contents = strongreg.save_packed({"weight": torch.eye(100)}, f"{folder}/model.packed")
        ...     again = strongreg.inspect_packed(f"{folder}/model.packed")
        >>> again == contents, again.compression, again.tensors[0].layout
        (True, 100.0, 'gaps')
    """
    entries, payloads, num_bytes = _open(path, 2**63 - 1)
    for entry in entries:
        if entry.tied_to is None:
            try:
                _check_payload(entry, payloads[entry.name])
            except PackedFileError as error:
                raise PackedFileError(f"{path}: tensor {entry.name!r}: {error}") from error
    return PackedContents(tuple(entries), num_bytes)


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one that :func:`save_packed` wrote, by its header.

    Args:
        path: an existing file.

    Returns:
        False for any other file, a safetensors file too.

    Raises:
        ImportError: safetensors is not installed.
        OSError: the file cannot be read.
    """
    library = _safetensors()
    try:
        with library.safe_open(path, "numpy") as opened:
            return _KEY in (opened.metadata() or {})
    except library.SafetensorError:
        return False


def load_into(model: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Load tensors into a network, strictly; it is left as it was if anything does not fit.

    Args:
        model: the network.
        state: tensors by name.
        path: where they come from, for the message.

    Raises:
        ValueError: a tensor is missing, foreign, or of another shape.
    """
    own = model.state_dict()
    missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or foreign:
        raise ValueError(f"{path} does not fit the model: it lacks {missing[:5]}, the model lacks {foreign[:5]}")
    for name, tensor in own.items():
        if isinstance(tensor, Tensor) and tensor.shape != state[name].shape:
            there, here = tuple(state[name].shape), tuple(tensor.shape)
            raise ValueError(f"{path} does not fit the model: {name!r} is {there} there, {here} here")
    model.load_state_dict(dict(state))


# ---------------------------------------------------------------------- one tensor


def _pack(name: str, tensor: Tensor, values: Values) -> tuple[Entry, bytes]:
    dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    stored, scales = narrow(name, dense, values)
    raw = to_bytes(stored)
    mask = non_zero(raw)
    negative = negative_zero(raw, dtype_name(stored.dtype))
    if negative is not None:
        mask &= ~negative
    num_set = int(np.count_nonzero(mask))
    parts: list[tuple[str, bytes, int]] = []
    if scales is not None:
        parts.append(_coded(to_bytes(scales).tobytes()))
    layout = "dense"
    if num_set < _DENSE_SHARE * len(mask):
        if negative is not None:
            parts.append(_coded(positions.encode_mask(negative[~mask])))
        layout, where = _pack_positions(mask, num_set)
        parts.append(where)
        raw = raw[mask]
    parts.append(_coded(_planes(raw)))
    payload = b"".join(coded for _, coded, _ in parts)
    entry = Entry(
        name=name,
        dtype=dtype_name(tensor.dtype),
        shape=tuple(tensor.shape),
        stored_as=dtype_name(stored.dtype),
        layout=layout,
        num_stored=len(raw),
        num_nonzero=_count_nonzero(stored, num_set),
        num_negative_zeros=0 if negative is None else int(np.count_nonzero(negative)),
        streams=tuple(Stream(name, len(coded), size) for name, coded, size in parts),
        crc32=zlib.crc32(payload),
    )
    return entry, payload


def _pack_positions(mask: positions.Mask, num_set: int) -> tuple[str, tuple[str, bytes, int]]:
    """The shorter of a bit mask and coded gaps."""
    found = {"mask": _coded(positions.encode_mask(mask))}
    if positions.gaps_allowed(len(mask), num_set):
        found["gaps"] = _coded(positions.encode_gaps(mask))
    layout = min(found, key=lambda name: len(found[name][1]))
    return layout, found[layout]


def _check_payload(entry: Entry, payload: bytes) -> None:
    if len(payload) != entry.packed_bytes or zlib.crc32(payload) != entry.crc32:
        raise PackedFileError("it is damaged (its checksum differs)")


def _unpack(entry: Entry, payload: bytes) -> Tensor:
    _check_payload(entry, payload)
    raws, start = [], 0
    for stream in entry.streams:
        coded = payload[start : start + stream.num_bytes]
        raws.append(codec.decode(stream.codec, coded, stream.num_raw_bytes))
        start += stream.num_bytes
    stored_as = DTYPES[entry.stored_as]
    size = stored_as.itemsize
    raw: Bytes = np.frombuffer(raws[-1], np.uint8).reshape(size, entry.num_stored).T
    raw = np.array(raw, order="C") if entry.layout == "dense" else _spread(raw, entry, raws[:-1])
    stored = from_bytes(raw, stored_as, entry.shape)
    scales = None
    if entry.num_scales:
        scales = from_bytes(np.frombuffer(raws[0], np.uint8).copy(), SCALE, (entry.num_scales,))
    return widen(stored, scales, DTYPES[entry.dtype])


def _spread(raw: Bytes, entry: Entry, raws: Sequence[bytes]) -> Bytes:
    """The stored values at their places, zeros elsewhere."""
    decode = positions.decode_mask if entry.layout == "mask" else positions.decode_gaps
    where = decode(raws[-1], entry.num_elements, entry.num_stored)
    size = raw.shape[1]
    filled = np.zeros((entry.num_elements, size), np.uint8)
    filled.view(f"V{size}")[where, 0] = np.ascontiguousarray(raw).view(f"V{size}")[:, 0]
    if entry.has_signs:
        zeros = np.ones(entry.num_elements, np.bool_)
        zeros[where] = False
        signs = positions.decode_mask(raws[-2], entry.num_elements - entry.num_stored, entry.num_negative_zeros)
        zeros[zeros] = signs
        set_sign(filled, zeros)
    return filled


def _planes(raw: Bytes) -> bytes:
    """The first byte of every number, then the second ...: bytes of a kind stand together and are coded well."""
    return raw.T.tobytes()


def _coded(raw: bytes) -> tuple[str, bytes, int]:
    name, coded = codec.encode(raw)
    return name, coded, len(raw)


def _count_nonzero(stored: Tensor, num_set: int) -> int:
    try:
        return int(torch.count_nonzero(stored))
    except (RuntimeError, NotImplementedError):  # dtypes that torch only stores
        return num_set


# ---------------------------------------------------------------------- tied tensors, and what is no tensor


def _check_tensor(name: str, tensor: Any) -> None:
    if not isinstance(name, str) or name == _RESERVED:
        raise ValueError(f"state_dict key {name!r}: a packed file needs text other than {_RESERVED!r}")
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name!r} is a {type(tensor).__name__}: a packed file holds tensors only, save it beside")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        kind = "on the meta device" if tensor.device.type == "meta" else f"of layout {tensor.layout}, {tensor.dtype}"
        raise TypeError(f"{name!r} is {kind}: a packed file holds dense tensors with values (to_dense, dequantize)")
    if dtype_name(tensor.dtype) not in DTYPES:
        raise TypeError(f"{name!r} is of {tensor.dtype}, which a packed file does not hold")


def _identity(name: str, tensor: Tensor) -> Any:
    """The same for two names of one tensor."""
    if not tensor.numel():
        return name
    place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.is_conj(), tensor.is_neg())
    return (*place, tuple(tensor.shape), tensor.stride())


def _tied(name: str, tensor: Tensor, owner: str) -> Entry:
    dtype = dtype_name(tensor.dtype)
    return Entry(name, dtype, tuple(tensor.shape), dtype, "tied", 0, 0, 0, (), 0, tied_to=owner)


# ---------------------------------------------------------------------- the container


def _open(path: str | os.PathLike[str], max_bytes: int | None) -> tuple[list[Entry], dict[str, bytes], int]:
    """The checked directory, and what belongs to each tensor."""
    library = _safetensors()
    content = Path(path).read_bytes()
    limit = max(_TRUSTED_BYTES, _TRUSTED_RATIO * len(content)) if max_bytes is None else max_bytes
    try:
        payloads = dict(library.deserialize(content))
        entries = read_directory(_metadata(content), limit)
    except library.SafetensorError as error:
        raise PackedFileError(f"{path} is no packed file, or damaged: {error}") from error
    except PackedFileError as error:
        raise PackedFileError(f"{path}: {error}") from error
    if any(payload["dtype"] != "U8" for payload in payloads.values()):
        raise PackedFileError(f"{path} is damaged: its streams are no bytes")
    if set(payloads) != {entry.name for entry in entries if entry.tied_to is None}:
        raise PackedFileError(f"{path} is damaged: its directory names other tensors than it holds")
    return entries, {name: bytes(payload["data"]) for name, payload in payloads.items()}, len(content)


def _metadata(content: bytes) -> str:
    """The directory's text, of a file whose header safetensors has read without complaint."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = header.get(_RESERVED, {}).get(_KEY)
    if text is None:
        raise PackedFileError("a safetensors file, but no packed one (strongreg.save_packed writes these)")
    return str(text)


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(f"packed files need the package safetensors: {how_to_install('compression')}") from error
    return safetensors
