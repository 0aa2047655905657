"""What is there on this machine for strongreg to work with: versions, devices, data sets, disk."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import strongreg
from strongreg.experiments.data.catalog import PUBLISHED
from strongreg.experiments.data.locate import DATA_VARIABLE, data_folder, find_published
from strongreg.experiments.errors import UserError
from strongreg.extras import how_to_install
from strongreg.kernels import are_compiled

_TESTED_PYTHON = ((3, 11), (3, 14))
_LITTLE_DISK = 1e9
_GIGA = 1e9
# the smallest first
_EXTRAS = ("compression", "fast", "experiments", "export", "accelerate", "lightning", "skorch", "transformers")
_OPTIONAL = re.compile(r"(?P<package>[\w.-]+).*extra == ['\"](?P<extra>\w+)")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        section: what it belongs to.
        name: its name.
        found: what was found.
        problem: what is wrong with it and what helps; empty where nothing is.
    """

    section: str
    name: str
    found: str
    problem: str = ""


def examine(data_dir: Path | None = None) -> list[Finding]:
    """Look at everything; nothing is downloaded, and nothing is left behind.

    Args:
        data_dir: folder of the data sets; by default what $STRONGREG_DATA names.

    Returns:
        What was found, section by section.
    """
    sections: list[Callable[[], Iterator[Finding]]] = [_versions, _devices, lambda: _data(data_dir), _disk]
    return [finding for section in sections for finding in section()]


def _versions() -> Iterator[Finding]:
    first, last = _TESTED_PYTHON
    is_tested = first <= tuple(map(int, platform.python_version_tuple()[:2])) < last
    remedy = f"strongreg is tested with Python {first[0]}.{first[1]} to {last[0]}.{last[1] - 1}: use one of these"
    yield _own_version()
    yield Finding("versions", "python", platform.python_version(), "" if is_tested else remedy)
    yield Finding("versions", "torch", torch.__version__)
    yield Finding("versions", "numpy", np.__version__)
    for package, extra in _optional_packages().items():
        yield Finding("versions", package, _version(package) or f"not installed; for it {how_to_install(extra)}")


def _own_version() -> Finding:
    if _version("strongreg") is not None:
        return Finding("versions", "strongreg", strongreg.__version__)
    place = Path(strongreg.__file__).parent
    return Finding(
        "versions",
        "strongreg",
        f"{strongreg.__version__}, not installed: its code is taken from {place}",
        f"which optional packages it can use is not known without its metadata; {how_to_install('experiments')}",
    )


def _optional_packages() -> dict[str, str]:
    """The extra that brings each optional package, the smallest one of several."""
    try:
        requirements = importlib.metadata.requires("strongreg") or []
    except importlib.metadata.PackageNotFoundError:  # its code is on the path, and it is not installed
        requirements = []
    matches = [_OPTIONAL.match(requirement) for requirement in requirements]
    packages: dict[str, str] = {}
    for extra in _EXTRAS:
        for match in matches:
            if match is not None and match["extra"] == extra:
                packages.setdefault(match["package"], extra)
    return packages


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[Finding]:
    count = os.cpu_count() or 1
    threads = f"{torch.get_num_threads()} threads for {count} cores"
    if (asked := os.environ.get("OMP_NUM_THREADS")) is not None:
        threads += f" (OMP_NUM_THREADS={asked})"
    too_many = f"more threads than cores wait for one another: set OMP_NUM_THREADS={count}"
    yield Finding("devices", "cpu", threads, too_many if torch.get_num_threads() > count else "")
    yield Finding("devices", "passes on the cpu", _passes())
    if not torch.cuda.is_available():
        built = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no GPU"
        yield Finding("devices", "cuda", f"none: {built}")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding("devices", f"cuda:{index}", f"{properties.name}, {properties.total_memory / _GIGA:.0f} GB")
    yield Finding("devices", "mps", "available" if torch.backends.mps.is_available() else "none")
    together = dist.is_available() and dist.is_gloo_available()
    yield Finding("devices", "several processes", "torchrun works" if together else "not with this build of torch")


def _passes() -> str:
    if are_compiled():
        return "compiled by numba"
    if os.environ.get("STRONGREG_COMPILED") == "0":
        return "torch operations: STRONGREG_COMPILED=0 switches numba off"
    return f"torch operations, slower; for compiled ones {how_to_install('fast')}"


def _data(data_dir: Path | None) -> Iterator[Finding]:
    place = data_folder(data_dir)
    source = "--data-dir" if data_dir is not None else f"${DATA_VARIABLE}"
    if place is None:
        yield Finding("data", "folder", f"none: ${DATA_VARIABLE} is not set")
    else:
        problem = "" if place.is_dir() else f"there is no such folder: correct {source}"
        yield Finding("data", "folder", f"{place} ({source})", problem)
    yield Finding("data", "digits", "comes with scikit-learn" if _version("scikit-learn") else "needs scikit-learn")
    for name, published in PUBLISHED.items():
        try:
            files = find_published(name, published, place)
        except UserError as error:
            yield Finding("data", name, "incomplete", str(error))
            continue
        if files is None:
            yield Finding("data", name, f"not in the folder; otherwise from the hub, {published.repository}")
        else:
            size = sum(path.stat().st_size for path in (*files.train, *files.test))
            yield Finding("data", name, f"{files.folder}, {size / 1e6:.0f} MB")


def _disk() -> Iterator[Finding]:
    places = {"working folder": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    for name, place in places.items():
        free = shutil.disk_usage(place).free
        problem = ""
        if not _can_be_written(place):
            problem = "no file can be written there: choose another working folder, or give --out"
        elif free < _LITTLE_DISK:
            problem = "little is left: a run keeps its weights twice, and a checkpoint of three times their size"
        yield Finding("disk", name, f"{place}, {free / _GIGA:.1f} GB free", problem)


def _can_be_written(place: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=place) as stream:
            stream.write(b"strongreg")
            stream.flush()
    except OSError:
        return False
    return True
