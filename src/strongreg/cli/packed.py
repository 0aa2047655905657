"""The commands for packed files: compress, inspect and unpack."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from safetensors import SafetensorError
from safetensors.torch import save

from strongreg.cli.output import target_of, tell, writing
from strongreg.compression import PackedContents, PackedFileError, inspect_packed, load_packed, save_packed
from strongreg.compression.packing.values import VALUES
from strongreg.experiments.engine.record import PACKED_FILE
from strongreg.experiments.errors import UserError, check_known
from strongreg.experiments.trained import read_weights, weights_file
from strongreg.files import write_bytes

EPILOG_COMPRESS = """Examples:

strongreg compress strongreg-out/train-1/runs/coherent-seed0 -o model.packed

strongreg compress model.safetensors --values bf16 -o model.packed"""
EPILOG_INSPECT = """Examples:

strongreg inspect model.packed

strongreg inspect model.packed --json"""
EPILOG_UNPACK = """Examples:

strongreg unpack model.packed -o model.safetensors"""

ValuesName = Annotated[
    str, typer.Option(help=f"What weights are stored as, one of {', '.join(VALUES)}; fp32 is lossless.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print the table as JSON.")]


def compress(
    source: Annotated[Path, typer.Argument(help="Directory of a run, or its weights, packed or not.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Packed file to write. Default: beside the weights.")
    ] = None,
    values: ValuesName = "fp32",
    as_json: _Json = False,
) -> None:
    """Write a network's weights into a small file, and say what every tensor takes there."""
    check_known("values", values, VALUES)
    weights, _ = weights_file(source)
    target = target_of(out, weights, ".packed")
    state = read_weights(weights)
    try:
        with writing(target):
            contents = save_packed(state, target, values)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(str(error)) from error
    _show(contents, as_json=as_json)
    tell(f"wrote {target}")


def inspect(
    file: Annotated[Path, typer.Argument(help="A packed file.")],
    as_json: _Json = False,
) -> None:
    """Show what a packed file holds."""
    with _reading(file):
        contents = inspect_packed(file)
    _show(contents, as_json=as_json)


def unpack(
    file: Annotated[Path, typer.Argument(help="A packed file.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Safetensors file to write. Default: beside the packed one.")
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(help="Largest size of all tensors. Default: 1 GiB, or 1000 times the file.", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write the tensors of a packed file into a plain safetensors file, which any library reads."""
    target = target_of(out, file, ".safetensors")
    with _reading(file):
        state = load_packed(file, max_bytes=max_bytes)
    try:
        # safetensors knows no tied tensors
        content = save({name: tensor.clone() for name, tensor in state.items()})
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"safetensors cannot hold the tensors of {file}: {error}") from error
    with writing(target):
        write_bytes(target, content)
    if as_json:
        typer.echo(json.dumps({"file": str(target), "file_bytes": len(content), "tensors": list(state)}, indent=2))
    tell(f"wrote {target}")


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except PackedFileError as error:
        raise UserError(str(error).replace("larger max_bytes", "larger --max-bytes")) from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}; {_packed_remedy(file)}") from error


def _packed_remedy(file: Path) -> str:
    if (file / PACKED_FILE).is_file():
        return f"give {file / PACKED_FILE}"
    return f"give a packed file, such as {PACKED_FILE} of a finished run"


def _show(contents: PackedContents, *, as_json: bool) -> None:
    if not as_json:
        typer.echo(str(contents))
        return
    tensors = [
        {**asdict(entry), "packed_bytes": entry.packed_bytes, "dense_bytes": entry.dense_bytes}
        for entry in contents.tensors
    ]
    whole = {"file_bytes": contents.file_bytes, "dense_bytes": contents.dense_bytes}
    counts = {"num_elements": contents.num_elements, "num_nonzero": contents.num_nonzero}
    typer.echo(json.dumps({**whole, **counts, "tensors": tensors}, indent=2))
