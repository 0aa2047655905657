"""Checkpoints of a run: whole, safe to load, and enough to go on bit for bit."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from strongreg.experiments.errors import UserError
from strongreg.files import write_bytes

FILE_NAME = "checkpoint.pt"
_VERSION = 3
_DIGEST = hashlib.sha256


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; a kill at any moment leaves this one or the one before.

    Args:
        directory: of the run.
        state: tensors and plain data.

    Raises:
        OSError: it cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"version": _VERSION, **state}, buffer)
    content = buffer.getvalue()
    write_bytes(directory / FILE_NAME, _DIGEST(content).digest() + content)


def read_checkpoint(directory: Path) -> dict[str, Any] | None:
    """Read a run's checkpoint to look at it.

    Args:
        directory: of the run.

    Returns:
        What was saved, or None where there is none.

    Raises:
        UserError: it is damaged, or of another version.
    """
    file = directory / FILE_NAME
    if not file.exists():
        return None
    try:
        whole = file.read_bytes()
        digest, content = whole[: _DIGEST().digest_size], whole[_DIGEST().digest_size :]
        if digest != _DIGEST(content).digest():
            raise UserError(
                f"{file} is damaged, or of another version of strongreg: delete it to train that run from the start"
            )
        state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, ValueError, EOFError, LookupError, pickle.UnpicklingError) as error:
        raise UserError(f"{file} is damaged: delete it to train that run from the start") from error
    if not isinstance(state, dict) or state.get("version") != _VERSION:
        raise UserError(f"{file} is of another version of strongreg: delete it to train that run from the start")
    return state


def load_checkpoint(directory: Path, fingerprint: str, world_size: int = 1) -> dict[str, Any] | None:
    """Read a run's checkpoint to go on from it.

    Args:
        directory: of the run.
        fingerprint: what the checkpoint must have been saved with: recipe, method, seed and images.
        world_size: number of processes that it must be of.

    Returns:
        What was saved, or None where there is none.

    Raises:
        UserError: it is damaged, of another version, of another run, or of another number of processes.
    """
    file, state = directory / FILE_NAME, read_checkpoint(directory)
    if state is None:
        return None
    if state.get("fingerprint") != fingerprint:
        raise UserError(
            f"{file} is of another recipe, method, seed or data: delete it to train that run from the start"
        )
    if state.get("world_size") != world_size:
        raise UserError(
            f"{file} is of a run in {state.get('world_size')} processes, this is one in {world_size}: "
            "start as many with torchrun --nproc-per-node, or delete it to train that run from the start"
        )
    return state


def check_progress(state: dict[str, Any], num_epochs: int, num_batches: int) -> None:
    """Check how far a saved run has come, and what it has written.

    Args:
        state: what was saved.
        num_epochs: epochs of the whole run.
        num_batches: optimizer steps of an epoch.

    Raises:
        KeyError: an entry is missing.
        ValueError: an entry is none that this run can have.
    """
    for name, most in (("epoch", num_epochs), ("batch", num_batches)):
        if type(state[name]) is not int or not 0 <= state[name] <= most:
            raise ValueError(f"{name}={state[name]!r} is no whole number from 0 to {most}")
    if type(state["seconds"]) is not float or not 0 <= state["seconds"] < math.inf:
        raise ValueError(f"seconds={state['seconds']!r} is no time")
    lines = state["lines"]
    if not isinstance(lines, list) or len(lines) != state["epoch"] or not all(isinstance(x, str) for x in lines):
        raise ValueError(f"lines={lines!r} are not one text for each of {state['epoch']} epochs")


def check_shapes(param: Tensor, entries: Mapping[str, Any]) -> None:
    """Check that what was saved for a parameter is of its shape.

    Args:
        param: the parameter.
        entries: by name; what is no tensor, or one number, may stand for any parameter.

    Raises:
        ValueError: a tensor is of another shape.
    """
    for name, entry in entries.items():
        if isinstance(entry, Tensor) and entry.dim() and entry.shape != param.shape:
            raise ValueError(f"{name} has shape {tuple(entry.shape)}, the parameter {tuple(param.shape)}")


def random_state(device: torch.device) -> dict[str, Any]:
    """Where torch's own generators stand.

    Args:
        device: of the run.

    Returns:
        Tensors for :func:`set_random_state`.
    """
    on_device = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return {"cpu": torch.get_rng_state(), "cuda": on_device}


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put torch's own generators back.

    Args:
        state: what :func:`random_state` returned.
        device: of the run.
    """
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        for on_device in state["cuda"]:  # none where the run began on the CPU
            torch.cuda.set_rng_state(on_device, device)
