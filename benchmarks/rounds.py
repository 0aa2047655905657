"""Times by turns: what the speed benchmarks share. Not a command of its own.

The things that are compared take turns within a round, and a ratio is taken within a round, so that a machine that
becomes slower does so for all of them.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

import strongreg

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A number and how sure it is: the median of some rounds, and two bounds around it."""

    median: float
    low: float
    high: float


class Still(Optimizer):
    """An optimizer whose step does nothing: what is left of the time is the regularizer's."""

    def __init__(self, params: Sequence[torch.nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Leave every weight as it is."""
        return None if closure is None else closure()


class Marks:
    """Points in time; on a GPU of its own clock, when it gets there."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def mark(self) -> None:
        """Now."""
        if self._device.type != "cuda":
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """The times between the marks."""
        pairs = itertools.pairwise(self._marks)
        if self._device.type != "cuda":
            return [last - first for first, last in pairs]
        torch.cuda.synchronize(self._device)
        return [first.elapsed_time(last) / 1e3 for first, last in pairs]


def seconds_per_call(function: Callable[[], object], number: int, device: torch.device) -> float:
    """The time of a call."""
    marks = Marks(device)
    marks.mark()
    for _ in range(number):
        function()
    marks.mark()
    return marks.seconds()[0] / number


def calls_within(seconds: float, of_a_call: float, most: int = 200) -> int:
    """How many calls make a sample of about so many seconds, at least one."""
    return min(max(1, round(seconds / max(of_a_call, 1e-7))), most)


def take_turns(samples: dict[str, Callable[[], float]], rounds: int) -> list[dict[str, float]]:
    """The seconds of each sample in each round; each round begins with another one, the neighbours stay the same."""
    names = list(samples)
    turns = []
    for i in range(rounds):
        first = i % len(names)
        order = names[first:] + names[:first]
        turns.append({name: samples[name]() for name in order})
    return turns


def median_of(turns: Sequence[dict[str, float]], name: str) -> float:
    """The median seconds of one sample."""
    return statistics.median(turn[name] for turn in turns)


def quartiles_of_ratio(turns: Sequence[dict[str, float]], name: str, base: str) -> Interval:
    """The ratio of two samples of a round: its median over the rounds, and the quartiles."""
    ratios = [turn[name] / turn[base] for turn in turns]
    return Interval(statistics.median(ratios), *map(float, np.quantile(ratios, (0.25, 0.75))))


def ratio_of_medians(turns: Sequence[dict[str, float]], name: str, base: str) -> Interval:
    """The ratio of the medians of two samples, with the 95 % interval of a bootstrap over the rounds."""
    pairs = np.array([(turn[name], turn[base]) for turn in turns])
    rows = np.random.default_rng(0).integers(len(pairs), size=(NUM_RESAMPLES, len(pairs)))
    medians = np.median(pairs[rows], axis=1)
    ratio = np.median(pairs, axis=0)
    return Interval(float(ratio[0] / ratio[1]), *map(float, np.quantile(medians[:, 0] / medians[:, 1], (0.025, 0.975))))


def versions(*optional: str) -> dict[str, str]:
    """The versions of what is measured, and of optional packages, those only that are installed."""
    found = {"strongreg": strongreg.__version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in ("numba", "numpy", *optional):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_of(parser: argparse.ArgumentParser, name: str) -> torch.device:
    """The device of a name; ends with a message of the command where it is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; leave it out, or use a machine and a torch with CUDA")
    return torch.device(name)


def at_least_one(text: str) -> int:
    """A number of rounds."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: must be at least 1")
    return number


def describe(device: torch.device) -> str:
    """What the device is."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"CPU, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"


def free_bytes(device: torch.device) -> int:
    """Memory that can be taken without taking it from something else."""
    gc.collect()  # a Regularizer and its optimizer refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":") for line in meminfo.read_text(encoding="ascii").splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; the first column is flush left, the others flush right."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def write(text: str, content: dict[str, Any], markdown: Path | None, json_file: Path | None) -> None:
    """Print the text, and write text and content to the files that were asked for."""
    print(text, end="", flush=True)
    if markdown is not None:
        markdown.write_text(text, encoding="utf-8")
    if json_file is not None:
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
