"""What it gains on the CPU that memory which a step has freed is kept for the next one, as the commands do on Linux.

    python benchmarks/freed_memory.py [--networks vgg_narrow ...] [--rounds 5] [--seconds 3] [--json FILE]

Steps of training, one thread, in a process with and in one without, in turns: milliseconds of a step, medians over the
rounds, their ratio within a round, and the most memory that the process took.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from strongreg.experiments.engine.process import keep_freed_memory
from strongreg.experiments.models import MODELS, build_model
from strongreg.experiments.models.inputs import example_inputs

NETWORKS = ("plain_cnn", "vgg_narrow", "resnet20", "decoder")
_BATCH, _CLASSES = 64, 256


def measure(name: str, *, keeps: bool, seconds: float) -> dict[str, float]:
    """Steps of one network in this process."""
    torch.set_num_threads(1)
    if keeps and not keep_freed_memory():
        raise SystemExit("error: this system, or a MALLOC_ variable of its environment, leaves nothing to compare")
    step = _step(name)
    for _ in range(3):
        step()
    started, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - started < seconds:
        step()
        count += 1
    milliseconds = 1e3 * (time.perf_counter() - started) / count
    return {"milliseconds": milliseconds, "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _step(name: str) -> Callable[[], Any]:
    shape = (64,) if MODELS[name].reads == "text" else (1, 8, 8) if name == "plain_cnn" else (3, 32, 32)
    model = build_model(name, shape, _CLASSES)
    inputs = example_inputs(_BATCH, shape, _CLASSES, torch.Generator().manual_seed(0))
    labels = torch.randint(_CLASSES, inputs.shape if len(shape) == 1 else inputs.shape[:1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs).flatten(0, -2), labels.flatten()).backward()
        optimizer.step()

    return step


def main() -> int:
    """Measure every network and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(MODELS), default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of steps, in each process")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is not None:
        name, keeps = arguments.case
        print(json.dumps(measure(name, keeps=keeps == "kept", seconds=arguments.seconds)))
        return 0
    rows = []
    print(
        "| network | given back, ms | kept, ms | times faster | given back, MB | kept, MB |\n|---|---|---|---|---|---|"
    )
    for name in arguments.networks:
        found: dict[str, list[dict[str, float]]] = {"given back": [], "kept": []}
        for _ in range(arguments.rounds):
            for kind, results in found.items():
                command = [sys.executable, __file__, "--case", name, kind, "--seconds", str(arguments.seconds)]
                results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        both = zip(*found.values(), strict=True)
        ratio = statistics.median(before["milliseconds"] / after["milliseconds"] for before, after in both)
        times, sizes = (
            [statistics.median(result[key] for result in results) for results in found.values()]
            for key in ("milliseconds", "megabytes")
        )
        cells = [name, *(f"{each:.1f}" for each in times), f"{ratio:.2f}", *(f"{each:.0f}" for each in sizes)]
        print(f"| {' | '.join(cells)} |", flush=True)
        rows.append({"network": name, "ratio": ratio, "rounds": found})
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"torch": torch.__version__, "networks": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
