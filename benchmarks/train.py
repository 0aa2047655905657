"""How long a training step takes, forward, backward and optimizer, with a Regularizer and without: ratios of one run.

python benchmarks/train.py [--networks vgg16 resnet18] [--threads 2] [--rounds N] [--json FILE] [--markdown FILE]
python benchmarks/train.py --device cuda --dtype bf16 --channels-last [--graph]

About 12 minutes on one core, a minute on a GPU. Batches of 128 random images of CIFAR's shape, fused SGD with
momentum, L1 under the coherence gate. Both train the same network with the same optimizer: the Regularizer is attached
before its turn and detached after it, and who is first changes from round to round. The gate has to be open at every
step, so that both passes over the weights are paid for.

The ratio is that of the medians over the rounds, with the 95 % interval of a bootstrap. Where steps vary by more than
what the Regularizer costs, look at the second ratio, "by optimizer steps": within the same training steps the steps of
the optimizer are timed by themselves, and what the Regularizer adds to one is taken relative to a whole step without.
It leaves out what a colder cache may cost the next forward pass.

On a fast GPU a training step of these networks takes as long as Python needs to launch it, ours included. With --graph
the whole step is captured in a CUDA graph, with the Regularizer and without, and replayed: what is timed is the GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import strongreg
from rounds import (
    Marks,
    at_least_one,
    calls_within,
    describe,
    device_of,
    markdown_table,
    median_of,
    ratio_of_medians,
    seconds_per_call,
    take_turns,
    versions,
    write,
)
from strongreg.experiments.models import build_model

SHAPES = {"vgg16": (3, 32, 32), "resnet18": (3, 32, 32), "vit_tiny": (3, 32, 32), "lenet300": (1, 28, 28)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LIMITS = {"cpu": 1.02, "cuda": 1.03}
LR, STRENGTH, NUM_CLASSES = 1e-5, 1e-6, 10
WITH, WITHOUT = "with", "without"


class Training:
    """A network in training on one batch.

    Args:
        name: of the network.
        device: where it is.
        batch_size: number of images.
        dtype: autocast's; float32 for none.
        channels_last: the layout of images and weights.
    """

    def __init__(
        self, name: str, device: torch.device, batch_size: int, dtype: torch.dtype, *, channels_last: bool
    ) -> None:
        torch.manual_seed(0)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = build_model(name, SHAPES[name], NUM_CLASSES).to(device, memory_format=layout)
        self.images = torch.randn(batch_size, *SHAPES[name]).to(device, memory_format=layout)
        self.labels = torch.randint(NUM_CLASSES, (batch_size,)).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=0.9, fused=True)
        self.regularizer = strongreg.Regularizer(self.model, strongreg.L1(STRENGTH))
        self.device, self._dtype = device, dtype
        self.seconds_in_optimizer: dict[str, list[float]] = {WITH: [], WITHOUT: []}
        self._graphs: dict[str, torch.cuda.CUDAGraph] = {}

    def capture(self) -> None:
        """From here on a turn replays graphs."""
        current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        for kind in (WITHOUT, WITH):
            if kind == WITH:
                self.regularizer.attach(self.optimizer)
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._step()
            current.wait_stream(stream)
            self._graphs[kind] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graphs[kind]):
                self._step()
        self.regularizer.detach()

    def _step(self) -> None:
        self.backward()
        self.optimizer.step()

    def backward(self) -> Tensor:
        """The gradients of the batch."""
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            loss = nn.functional.cross_entropy(self.model(self.images), self.labels)
        loss.backward()
        return loss

    def turn(self, kind: str, number: int) -> float:
        """Seconds per training step of one turn."""
        if self._graphs:
            return seconds_per_call(self._graphs[kind].replay, number, self.device)
        if kind == WITH:
            self.regularizer.attach(self.optimizer)
            if self.device.type == "cuda":
                self._step()  # in the first one tables go to the GPU
        marks = Marks(self.device)
        for _ in range(number):
            marks.mark()
            self.backward()
            marks.mark()
            self.optimizer.step()
        marks.mark()
        if kind == WITH:
            self.regularizer.detach()
        seconds = marks.seconds()
        self.seconds_in_optimizer[kind].append(sum(seconds[1::2]) / number)
        return sum(seconds) / number


def measure(training: Training, rounds: int, seconds: float) -> dict[str, Any]:
    """Both, in turns."""
    training.turn(WITH, 1)  # compiles, and makes what a state holds
    number = calls_within(seconds, training.turn(WITHOUT, 1))
    training.seconds_in_optimizer = {WITH: [], WITHOUT: []}
    samples: dict[str, Callable[[], float]] = {
        kind: lambda kind=kind: training.turn(kind, number) for kind in (WITHOUT, WITH)
    }
    turns = take_turns(samples, rounds)
    share_open = training.regularizer.summary().total.open_fraction
    if share_open != 1:
        raise RuntimeError(f"the gate was open at {share_open:.0%} of the steps only: the proximal step is not timed")
    steps = {kind: statistics.median(times) for kind, times in training.seconds_in_optimizer.items() if times}
    whole = median_of(turns, WITHOUT)
    by_steps = 1 + (steps[WITH] - steps[WITHOUT]) / whole if steps else None
    return {
        "num_weights": sum(param.numel() for param in training.model.parameters()),
        "steps_per_turn": number,
        "without_ms": 1e3 * whole,
        "with_ms": 1e3 * median_of(turns, WITH),
        "images_per_second": len(training.images) / whole,
        "ratio": dataclasses.asdict(ratio_of_medians(turns, WITH, WITHOUT)),
        "optimizer_ms": {kind: 1e3 * each for kind, each in steps.items()},
        "ratio_by_optimizer_steps": by_steps,
        "turns": {kind: [turn[kind] for turn in turns] for kind in samples},
    }


def render(content: dict[str, Any]) -> str:
    """The table as Markdown."""
    of = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    layout = "channels last" if content["channels_last"] else "contiguous"
    how = f"{layout}, captured in a graph" if content["graph"] else layout
    head = (
        f"{content['device']}; {of}; threads: {content['threads']}, batch {content['batch_size']}, {content['dtype']}, "
        f"{how}, {content['rounds']} rounds; limit {content['limit']:g}\n\n"
    )
    header = ("network", "without, ms", "images/s", "with, ms", "ratio", "95 % interval", "by optimizer steps", "met")
    rows = []
    for row in content["networks"]:
        ratio = row["ratio"]
        times = (f"{row['without_ms']:.4g}", f"{row['images_per_second']:.4g}", f"{row['with_ms']:.4g}")
        ratios = (f"{ratio['median']:.3f}", f"{ratio['low']:.3f} to {ratio['high']:.3f}")
        by_steps = row["ratio_by_optimizer_steps"]
        shown = "" if by_steps is None else f"{by_steps:.3f}"
        rows.append((row["network"], *times, *ratios, shown, _verdict(row, content)))
    return head + markdown_table(header, rows)


def _verdict(row: dict[str, Any], content: dict[str, Any]) -> str:
    """Yes or no where the whole interval says so."""
    ratio, limit = row["ratio"], content["limit"]
    if ratio["high"] <= limit:
        return "yes"
    if ratio["low"] > limit:
        return "no"
    return "within the noise: " + ("yes" if ratio["median"] <= limit else "no")


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=SHAPES, default=["vgg16", "resnet18"], metavar="NAME")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of autocast; fp32 for none")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--graph", action="store_true", help="the whole step as one CUDA graph")
    parser.add_argument("--threads", type=int, help="of a CPU; torch's own choice by default")
    parser.add_argument("--rounds", type=at_least_one, default=20)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn; a step that takes longer is a turn")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument("--markdown", type=Path, help="file to write the table to")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.graph and arguments.device != "cuda":
        parser.error("--graph needs --device cuda: there are CUDA graphs on a GPU only")
    device, dtype = device_of(parser, arguments.device), DTYPES[arguments.dtype]
    networks = []
    for name in arguments.networks:
        training = Training(name, device, arguments.batch_size, dtype, channels_last=arguments.channels_last)
        if arguments.graph:
            training.capture()
        networks.append({"network": name} | measure(training, arguments.rounds, arguments.seconds))
    content = {
        "versions": versions(),
        "device": describe(device),
        "threads": torch.get_num_threads(),
        "batch_size": arguments.batch_size,
        "dtype": arguments.dtype,
        "channels_last": arguments.channels_last,
        "graph": arguments.graph,
        "rounds": arguments.rounds,
        "limit": LIMITS[device.type],
        "networks": networks,
    }
    write(render(content), content, arguments.markdown, arguments.json)


if __name__ == "__main__":
    main()
