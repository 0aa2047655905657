"""How much longer a training step takes with a Regularizer: ratios measured in one run, medians of interleaved rounds.

python benchmarks/step_overhead.py [--rounds N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import strongreg
from strongreg.experiments.models import build_model

BATCH_SIZE, STEPS = 64, 30


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lenet300": lambda: build_model("lenet300", (1, 8, 8), 10),
    "plain_cnn": lambda: build_model("plain_cnn", (1, 8, 8), 10),
    "mlp-1024": _mlp,
}
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
}
REGULARIZERS: dict[str, Callable[[nn.Module], strongreg.Regularizer] | None] = {
    "bare": None,
    "L1": lambda model: strongreg.Regularizer(model, strongreg.L1(1e-4)),
    "L1, no history": lambda model: strongreg.Regularizer(model, strongreg.L1(1e-4), history_every=0),
    "GroupL2": lambda model: strongreg.Regularizer(model, strongreg.GroupL2(1e-4)),
}


def _trainer(network: str, optimizer_name: str, regularizer: str) -> Callable[[], float]:
    """A function that trains for some steps and returns the seconds per step."""
    torch.manual_seed(0)
    model = NETWORKS[network]()
    optimizer = OPTIMIZERS[optimizer_name](model)
    build = REGULARIZERS[regularizer]
    if build is not None:
        build(model).attach(optimizer)
    images, labels = torch.rand(BATCH_SIZE, 1, 8, 8), torch.randint(10, (BATCH_SIZE,))

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    def train() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        return (time.perf_counter() - start) / STEPS

    return train


def measure(rounds: int) -> list[dict[str, str | float]]:
    """One row per network, optimizer and regularizer; the rounds of all regularizers are interleaved."""
    rows: list[dict[str, str | float]] = []
    for network in NETWORKS:
        for optimizer in OPTIMIZERS:
            trainers = {name: _trainer(network, optimizer, name) for name in REGULARIZERS}
            seconds = [{name: train() for name, train in trainers.items()} for _ in range(rounds + 1)][1:]
            for name in REGULARIZERS:
                ratio = statistics.median(times[name] / times["bare"] for times in seconds)
                milliseconds = 1e3 * statistics.median(times[name] for times in seconds)
                rows.append(
                    {
                        "network": network,
                        "optimizer": optimizer,
                        "regularizer": name,
                        "ms": milliseconds,
                        "ratio": ratio,
                    }
                )
    return rows


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of 30 steps each")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(arguments.rounds)
    print(f"{'network':12}{'optimizer':11}{'regularizer':17}{'ms per step':>12}{'ratio to bare':>15}")
    for row in rows:
        print(f"{row['network']:12}{row['optimizer']:11}{row['regularizer']:17}{row['ms']:12.2f}{row['ratio']:15.2f}")
    if arguments.json:
        versions = {"strongreg": strongreg.__version__, "torch": torch.__version__, "python": platform.python_version()}
        arguments.json.write_text(json.dumps({"versions": versions, "threads": 1, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
