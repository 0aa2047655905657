"""How long an optimizer's step takes, bare, with a Regularizer, and with what other libraries do: ratios of one run.

python benchmarks/step.py [--networks vgg16 ...] [--threads 1 2] [--rounds N] [--json FILE] [--markdown FILE]
python benchmarks/step.py --device cuda

About 15 minutes per number of threads on a CPU, 6 without transformer-124m. Peers need `pip install '.[benchmarks]'`;
one that is missing is left out and named.

All contenders of a network work on the same weights and the same random gradients, which are set back before each
turn, and those with the same optimizer on the same state: no one has better places in memory, and transformer-124m
fits into 8 GB. Within a round they take turns; a ratio is taken within a round, the median and the quartiles over the
rounds are shown. A turn is one step of a large network and many of a small one, after an untimed one but for
transformer-124m. The learning rate is so small that the weights stay, and every entry takes part in the proximal step.
Each gate is checked to have been open, or closed, at all steps as its name says.

A step of fused SGD with L1 and gate has to move 9 words per weight: SGD reads weight, gradient and momentum and writes
two of them, the gate reads weight and gradient, the proximal step reads and writes the weight. The floor is the time of
so many words, by copies of all weights (a copy moves 2) and by multiplications in place (2, too). "Regularizer alone"
is attached to an optimizer that does nothing; it moves 4 words, as 2 copies do. Fused SGD between a dot product of
weights and gradients and a multiplication of the weights in place moves the same nine words, at the same places in the
step, with no decision: what is left to gain is the difference.

How many threads were busy in fused SGD is shown: where it is well below the number of threads, other processes had the
cores, and the figures are worth little.

L1 and L2 in the loss are autograd of strength * sum |w|, backward into .grad, and fused SGD. PAT is torchao's
PruneOptimizer with ProxLasso on fused SGD. Cautious Weight Decay is `BaseOptimizer.apply_cautious_weight_decay` of
pytorch-optimizer 3.9 to 4.0, which only its experimental Ranger25 calls, after fused SGD and with its momentum as the
update.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from contenders import ALONE, COPY, IN_PLACE, L1_GATE, L1_IN_LOSS, PAT, SGD_FUSED, Arena, Contender
from parameter_sets import NETWORKS, build
from rounds import (
    Interval,
    at_least_one,
    calls_within,
    describe,
    device_of,
    markdown_table,
    median_of,
    quartiles_of_ratio,
    seconds_per_call,
    take_turns,
    versions,
    write,
)

MOST_WITH_AN_UNTIMED_STEP = 10**8  # beyond it the first step's own work is nothing, and a step takes seconds
WORDS_OF_A_COPY, WORDS_OF_A_STEP, WORDS_OF_THE_REGULARIZER = 2, 9, 4


def main() -> None:
    """Measure, and print tables and a verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="of a CPU; each in a process of its own")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=at_least_one, default=15)
    parser.add_argument("--seconds", type=float, default=0.02, help="of fused SGD in a turn, about")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument("--markdown", type=Path, help="file to write the tables to")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = device_of(parser, arguments.device)
    if arguments.worker is not None:
        torch.set_num_threads(arguments.threads[0])
        networks = [measure(name, device, arguments.rounds, arguments.seconds) for name in arguments.networks]
        arguments.worker.write_text(json.dumps(networks), encoding="utf-8")
        return
    networks = []
    for threads in arguments.threads if arguments.device == "cpu" else [1]:
        networks += _in_a_process(arguments, threads)
    content = {
        "versions": versions("torchao", "pytorch-optimizer"),
        "device": describe(device),
        "rounds": arguments.rounds,
        "networks": networks,
        "verdicts": [verdict for network in networks for verdict in judge(network, arguments.device)],
    }
    write(render(content), content, arguments.markdown, arguments.json)


def _in_a_process(arguments: argparse.Namespace, threads: int) -> list[dict[str, Any]]:
    """Measure in a process that has so many threads from its beginning."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "networks.json"
        options = ("--device", arguments.device, "--rounds", str(arguments.rounds), "--seconds", str(arguments.seconds))
        command = [sys.executable, __file__, "--networks", *arguments.networks, "--threads", str(threads), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run([*command, "--worker", str(file)], check=True, env=environment)
        networks: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        return networks


def measure(name: str, device: torch.device, rounds: int, seconds: float) -> dict[str, Any]:
    """All contenders on one network."""
    print(f"{name}, threads: {torch.get_num_threads()}", file=sys.stderr, flush=True)
    arena = Arena(build(name, device))
    contenders = arena.contenders()
    for each in contenders.values():  # compiles, and makes what a state holds
        _turn(arena, each, 1)
    number = calls_within(seconds, _turn(arena, contenders[SGD_FUSED], 3))
    wall, busy = time.perf_counter(), time.process_time()
    _turn(arena, contenders[SGD_FUSED], 4 * number)
    busy_threads = (time.process_time() - busy) / (time.perf_counter() - wall)
    samples = {key: _sample(arena, each, number) for key, each in contenders.items()}
    turns = take_turns(samples, rounds)
    _check_gates(contenders)
    return {
        "network": name,
        "threads": torch.get_num_threads(),
        "busy_threads": busy_threads,
        "num_weights": arena.num_weights,
        "num_penalized": sum(weight.numel() for weight in arena.weights),
        "num_tensors": len(arena.params),
        "steps_per_turn": number,
        "left_out": arena.left_out,
        "rows": [_row(turns, key, each) for key, each in contenders.items()],
        "turns": {key: [turn[key] for turn in turns] for key in contenders},
    }


def _sample(arena: Arena, contender: Contender, number: int) -> Callable[[], float]:
    return lambda: _turn(arena, contender, number)


def _turn(arena: Arena, contender: Contender, number: int) -> float:
    """Seconds per step of one turn."""
    arena.restorer.restore()
    contender.begin()
    if arena.num_weights <= MOST_WITH_AN_UNTIMED_STEP:
        contender.step()
    seconds = seconds_per_call(contender.step, number, arena.device)
    contender.end()
    return seconds


def _check_gates(contenders: dict[str, Contender]) -> None:
    """See that the penalties acted, or not, as the names say."""
    for name, each in contenders.items():
        if each.regularizer is not None:
            share = each.regularizer.summary().total.open_fraction
            if share != float(each.opens):
                raise RuntimeError(
                    f"{name}: the gate was open at {share:.0%} of the steps, not {float(each.opens):.0%}"
                )


def _row(turns: list[dict[str, float]], name: str, contender: Contender) -> dict[str, Any]:
    ratio = quartiles_of_ratio(turns, name, contender.base)
    median = 1e3 * median_of(turns, name)
    return {"contender": name, "kind": contender.kind, "ms": median, "base": contender.base} | dataclasses.asdict(ratio)


def judge(network: dict[str, Any], device: str) -> list[dict[str, Any]]:
    """Each bar with what was measured."""
    turns = [dict(zip(network["turns"], times, strict=True)) for times in zip(*network["turns"].values(), strict=True)]
    words = WORDS_OF_A_STEP / WORDS_OF_A_COPY
    bars: list[tuple[str, str, str, float, str, float]] = [
        ("with L1 and gate / fused SGD", L1_GATE, SGD_FUSED, 1, "<=", 2.1),
        ("with L1 and gate / 9 words by copies", L1_GATE, COPY, words, "<=", 1.25),
        ("with L1 and gate / 9 words in place", L1_GATE, IN_PLACE, words, "<=", 1.25),
        ("PAT / with L1 and gate", PAT, L1_GATE, 1, ">=", 4),
        ("L1 in the loss / with L1 and gate", L1_IN_LOSS, L1_GATE, 1, ">=", 2),
    ]
    if device == "cuda":
        words = WORDS_OF_THE_REGULARIZER / WORDS_OF_A_COPY
        bars.append(("regularizer alone / a copy of the same bytes", ALONE, COPY, words, "<=", 2))
    verdicts = []
    for bar, name, base, times, sense, limit in bars:
        if name in network["turns"]:
            whole = quartiles_of_ratio(turns, name, base)
            ratio = Interval(whole.median / times, whole.low / times, whole.high / times)
            met = ratio.median <= limit if sense == "<=" else ratio.median >= limit
            where = {"network": network["network"], "threads": network["threads"], "bar": bar}
            verdicts.append(where | dataclasses.asdict(ratio) | {"limit": f"{sense} {limit:g}", "met": met})
    return verdicts


def render(content: dict[str, Any]) -> str:
    """The tables as Markdown."""
    of = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    parts = [f"{content['device']}; {of}; {content['rounds']} rounds\n"]
    for network in content["networks"]:
        parts.append(
            f"\n{network['network']}: {network['num_weights']:,} weights in {network['num_tensors']} tensors, "
            f"{network['num_penalized']:,} penalized, {network['steps_per_turn']} steps per turn, "
            f"threads: {network['threads']} ({network['busy_threads']:.1f} busy in fused SGD)\n\n"
        )
        header = ("contender", "ms per step", "ratio", "quartiles", "to")
        rows = [_cells(row) for row in network["rows"]]
        parts.append(markdown_table(header, rows))
        parts += [f"\nLeft out: {name} ({remedy})\n" for name, remedy in network["left_out"].items()]
    return "".join([*parts, "\n", _verdict_table(content["verdicts"])])


def _verdict_table(verdicts: list[dict[str, Any]]) -> str:
    """A row per network and number of threads, a column per bar."""
    bars = list(dict.fromkeys((verdict["bar"], verdict["limit"]) for verdict in verdicts))
    places = list(dict.fromkeys((verdict["network"], verdict["threads"]) for verdict in verdicts))
    cells = {
        (verdict["network"], verdict["threads"], verdict["bar"]): (
            f"{verdict['median']:.2f} ({_spread(verdict)}): {'yes' if verdict['met'] else 'no'}"
        )
        for verdict in verdicts
    }
    header = ("network", "threads", *(f"{bar} {limit}" for bar, limit in bars))
    return markdown_table(header, [(*place, *(cells.get((*place, bar), "-") for bar, _ in bars)) for place in places])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    name, base, ms = row["contender"], row["base"], f"{row['ms']:.3g}"
    if name in (COPY, IN_PLACE):
        words = WORDS_OF_A_STEP / WORDS_OF_A_COPY
        return (
            f"9 words by {name}",
            f"{words * row['ms']:.3g}",
            f"{words * row['median']:.2f}",
            _spread(row, words),
            base,
        )
    return name, ms, f"{row['median']:.2f}", _spread(row), base


def _spread(row: dict[str, Any], times: float = 1) -> str:
    return f"{times * row['low']:.2f} to {times * row['high']:.2f}"


if __name__ == "__main__":
    main()
