"""What a Regularizer costs per weight, from 10 thousand weights to 1 billion, and per tensor: one run, by turns.

python benchmarks/scaling.py [--max-parameters N] [--rounds N] [--json FILE] [--markdown FILE] [--svg FILE]
python benchmarks/scaling.py --device cuda

About two minutes on one core. L1 under the coherence gate, attached to an optimizer that does nothing, so that the
time is the Regularizer's alone; beside it fused SGD without momentum and without a Regularizer. Weights and gradients
are float32 and random, in tensors of 4 million weights at most: 1 billion take 8 GB, and sizes for which there is not
enough memory are left out and named. Then 4 million weights in 1 to 1000 tensors. Medians over the rounds; a round is
a turn of each.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

import strongreg
from parameter_sets import add_gradients
from rounds import (
    Still,
    at_least_one,
    calls_within,
    describe,
    device_of,
    free_bytes,
    markdown_table,
    median_of,
    seconds_per_call,
    take_turns,
    versions,
    write,
)

SIZES = (10_000, 100_000, 1_000_000, 4_000_000, 10_000_000, 30_000_000, 100_000_000, 300_000_000, 1_000_000_000)
COUNTS = (1, 3, 10, 30, 100, 300, 1000)
LARGEST_TENSOR = 4_000_000
LR, STRENGTH = 1e-5, 1e-3
OURS, BARE = "regularizer", "fused SGD"
BYTES_PER_WEIGHT, SHARE_OF_FREE = 8, 0.9
LINEAR_FROM, LINEAR, FLAT = 10_000_000, 1.25, 1.5
TEXT, LINES = "#808a9a", {OURS: "#1f6feb", BARE: "#c98a1b"}


class Tensors(nn.Module):
    """Random weights in tensors of one size, and maybe a smaller one."""

    def __init__(self, num_weights: int, size: int, device: torch.device) -> None:
        super().__init__()
        sizes = [size] * (num_weights // size) + [num_weights % size] * (num_weights % size > 0)
        tensors = [torch.empty(1, each, device=device).normal_(0, 0.02) for each in sizes]
        self.params = nn.ParameterList([nn.Parameter(tensor) for tensor in tensors])


def measure(num_weights: int, size: int, device: torch.device, rounds: int, seconds: float) -> dict[str, Any]:
    """One row: seconds per step of the Regularizer alone, and of bare SGD."""
    torch.manual_seed(0)
    model = Tensors(num_weights, size, device)
    add_gradients(model)
    params = list(model.parameters())
    still, sgd = Still(params, LR), SGD(params, lr=LR, fused=True)
    regularizer = strongreg.Regularizer(model, strongreg.L1(STRENGTH), coherence_of="gradient").attach(still)
    steps: dict[str, Optimizer] = {OURS: still, BARE: sgd}
    numbers = {}
    for name, optimizer in steps.items():
        optimizer.step()
        numbers[name] = calls_within(seconds, seconds_per_call(optimizer.step, 1, device))
    samples = {
        name: lambda name=name, each=each: seconds_per_call(each.step, numbers[name], device)
        for name, each in steps.items()
    }
    turns = take_turns(samples, rounds)
    share = regularizer.summary().total.open_fraction
    if share != 1:
        raise RuntimeError(f"the gate was open at {share:.0%} of the steps only")
    return {"num_weights": num_weights, "num_tensors": len(params)} | {name: median_of(turns, name) for name in steps}


def by_size(largest: int, device: torch.device, rounds: int, seconds: float) -> tuple[list[dict[str, Any]], list[int]]:
    """A row per size, and the sizes for which there is no memory."""
    rows, left_out = [], []
    for num_weights in (size for size in SIZES if size <= largest):
        if BYTES_PER_WEIGHT * num_weights > SHARE_OF_FREE * free_bytes(device):
            left_out.append(num_weights)
        else:
            rows.append(measure(num_weights, LARGEST_TENSOR, device, rounds, seconds))
    return rows, left_out


def by_count(largest: int, device: torch.device, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A row per number of tensors, the same weights in all."""
    num_weights = min(LARGEST_TENSOR, largest)
    return [measure(num_weights, math.ceil(num_weights / count), device, rounds, seconds) for count in COUNTS]


def judge(sizes: list[dict[str, Any]], counts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bars: linear in the weights, flat in the number of tensors."""
    flat = counts[-1][OURS] / counts[0][OURS]
    bar = f"{counts[-1]['num_tensors']:,} tensors / 1 tensor, {counts[0]['num_weights']:,} weights"
    verdicts = [{"bar": bar, "measured": flat, "limit": FLAT, "met": flat <= FLAT}]
    large = [row for row in sizes if row["num_weights"] >= LINEAR_FROM]
    if len(large) > 1:
        linear = _ns_per_weight(large[-1]) / _ns_per_weight(large[0])
        bar = f"per weight, {large[-1]['num_weights']:,} / {large[0]['num_weights']:,} weights"
        verdicts.append({"bar": bar, "measured": linear, "limit": LINEAR, "met": linear <= LINEAR})
    return verdicts


def _ns_per_weight(row: dict[str, Any], name: str = OURS) -> float:
    return 1e9 * row[name] / row["num_weights"]


def render(content: dict[str, Any]) -> str:
    """The tables as Markdown."""
    of = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    parts = [f"{content['device']}; {of}; threads: {content['threads']}, {content['rounds']} rounds\n"]
    header = ("weights", "tensors", "regularizer, ms", "ns per weight", "fused SGD, ms", "ns per weight")
    for rows in (content["sizes"], content["counts"]):
        cells = [
            (
                *(f"{row['num_weights']:,}", f"{row['num_tensors']:,}"),
                *(f"{1e3 * row[OURS]:.3g}", f"{_ns_per_weight(row):.2f}"),
                *(f"{1e3 * row[BARE]:.3g}", f"{_ns_per_weight(row, BARE):.2f}"),
            )
            for row in rows
        ]
        parts += ["\n", markdown_table(header, cells)]
    first, last = content["counts"][0], content["counts"][-1]
    per_tensor = 1e6 * (last[OURS] - first[OURS]) / (last["num_tensors"] - first["num_tensors"])
    parts.append(f"\nRegularizer: {per_tensor:.1f} us more per tensor\n")
    parts += [f"\nLeft out for want of memory: {size:,} weights\n" for size in content["left_out"]]
    verdicts = [
        (each["bar"], f"{each['measured']:.2f}", f"<= {each['limit']:g}", "yes" if each["met"] else "no")
        for each in content["verdicts"]
    ]
    return "".join([*parts, "\n", markdown_table(("bar", "measured", "limit", "met"), verdicts)])


def draw(content: dict[str, Any]) -> str:
    """Both curves as SVG: transparent, in colours that can be read on white and on black."""
    from matplotlib.figure import Figure

    from strongreg.experiments.drawing import Palette, draw_file

    def fill(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        for ax, rows, over in ((left, content["sizes"], "num_weights"), (right, content["counts"], "num_tensors")):
            for name, color in LINES.items():
                times = [_ns_per_weight(row, name) for row in rows]
                ax.plot(
                    [row[over] for row in rows], times, "o-", color=color, linewidth=1.4, markersize=3.5, label=name
                )
            ax.grid(color=TEXT, alpha=0.25)
            ax.set(xscale="log", ylabel="ns per weight")
        left.set(xlabel="weights", yscale="log")
        right.set(ylim=(0, None), xlabel=f"tensors of {content['counts'][0]['num_weights']:,} weights in all")
        left.legend()

    palette = Palette(ink=TEXT, soft=TEXT, grid=TEXT, paper="none", methods={})
    return draw_file(fill, height=3.2, width=9, palette=palette).decode()


def main() -> None:
    """Measure, print tables, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-parameters", type=float, default=SIZES[-1], help="sizes beyond it are left out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--rounds", type=at_least_one, default=7)
    parser.add_argument("--seconds", type=float, default=0.05, help="of a turn; a step that takes longer is a turn")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument("--markdown", type=Path, help="file to write the tables to")
    parser.add_argument("--svg", type=Path, help="file to write the drawing to")
    arguments = parser.parse_args()
    largest = int(arguments.max_parameters)
    if largest < SIZES[0]:
        parser.error(f"--max-parameters {largest:,}: must be {SIZES[0]:,} or more")
    torch.set_num_threads(arguments.threads)
    device = device_of(parser, arguments.device)
    counts = by_count(largest, device, arguments.rounds, arguments.seconds)
    sizes, left_out = by_size(largest, device, arguments.rounds, arguments.seconds)
    content = {
        "versions": versions(),
        "device": describe(device),
        "threads": torch.get_num_threads(),
        "rounds": arguments.rounds,
        "sizes": sizes,
        "counts": counts,
        "left_out": left_out,
        "verdicts": judge(sizes, counts),
    }
    write(render(content), content, arguments.markdown, arguments.json)
    if arguments.svg is not None:
        arguments.svg.write_text(draw(content), encoding="utf-8")


if __name__ == "__main__":
    main()
