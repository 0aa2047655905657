"""How much memory a step takes beyond weights, gradients and the optimizer's state, and what is kept after it.

python benchmarks/memory.py [--networks vgg16 ...] [--json FILE] [--markdown FILE]
python benchmarks/memory.py --device cuda

About five minutes. Each case is a process of its own: an optimizer that has its state already takes some steps, bare or
with L1 and gate; of the three steps the last two, or the last, may be those of a refit.

- peak: what a step takes and gives back, at its highest.
- kept: what is still allocated after the last step and was not before the first. A history keeps 20 bytes per tensor
  and step, in blocks of 256 steps.

On a CPU both are sums of torch's allocations, as its profiler records them, and of Python's and numpy's, as
tracemalloc does; the peaks of the two are added, as if they were at the same moment. "Resident" is how far the
resident memory of the process rises during other such steps, as Linux counts it: an independent look that misses
nothing, but for what fits into pages already there. On a GPU the numbers are those of torch's allocator. All in bytes,
and as shares of the parameters' bytes.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.profiler import ProfilerActivity, profile

import strongreg
from parameter_sets import NETWORKS, build
from rounds import describe, device_of, markdown_table, versions, write

LR, STRENGTH, STEPS = 1e-5, 1e-3, 3
LIMIT = 0.01
A_BIT_EACH = 1 / 32  # of float32
NO_HISTORY = "L1, no history"
REFIT, AFTER_CLOSED = "L1, refit", "L1, refit after a closed gate"


@dataclass(frozen=True)
class OpenAtFirst(strongreg.Gate):
    """A gate that is open at the first step only."""

    def is_open(self, coherence: Tensor, step: Tensor) -> Tensor:
        """See :meth:`strongreg.Gate.is_open`."""
        return (step < 1).expand_as(coherence)


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "SGD, fused": lambda model: SGD(model.parameters(), lr=LR, momentum=0.9, fused=True),
    "AdamW, fused": lambda model: AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True),
}
REGULARIZERS: dict[str, dict[str, Any] | None] = {
    "none": None,
    NO_HISTORY: {"history_every": 0},
    "L1": {},
    REFIT: {"history_every": 0, "schedule": strongreg.Refit(1)},
    AFTER_CLOSED: {"history_every": 0, "gate": OpenAtFirst(), "schedule": strongreg.Refit(2)},
}
NOTES = {
    "SGD, fused": "the gate looks at the gradients",
    "AdamW, fused": "the gate looks at the step: on the CPU it is foreseen, on a GPU the weights are copied during it",
}


def measure(network: str, optimizer_name: str, regularizer: str, device: torch.device) -> dict[str, Any]:
    """One case; to be called in a fresh process."""
    _warm_up(optimizer_name, regularizer, device)
    model = build(network, device)
    optimizer = OPTIMIZERS[optimizer_name](model)
    optimizer.step()  # makes its state
    num_bytes = sum(param.numel() * param.element_size() for param in model.parameters())
    case = {"network": network, "optimizer": optimizer_name, "regularizer": regularizer, "parameter_bytes": num_bytes}
    found: dict[str, int | None] = {"resident": None, "peak": 0, "kept": 0}
    for look in (_on_gpu,) if device.type == "cuda" else (_resident, _by_python, _by_torch):
        attached = _attach(model, optimizer, regularizer)  # a new one each time: what it keeps is counted
        found |= {key: number + (found[key] or 0) for key, number in look(optimizer).items()}
        if attached is not None:
            attached.detach()
    return case | found


def _warm_up(optimizer_name: str, regularizer: str, device: torch.device) -> None:
    """Load and compile what is loaded and compiled once, on a network of a few weights."""
    model = nn.Linear(4, 4).to(device)
    optimizer = OPTIMIZERS[optimizer_name](model)
    _attach(model, optimizer, regularizer)
    for _ in range(2):
        model(torch.ones(1, 4, device=device)).sum().backward()
        optimizer.step()
    if device.type == "cpu":
        _by_torch(optimizer)


def _attach(model: nn.Module, optimizer: Optimizer, regularizer: str) -> strongreg.Regularizer | None:
    options = REGULARIZERS[regularizer]
    if options is None:
        return None
    return strongreg.Regularizer(model, strongreg.L1(STRENGTH), **options).attach(optimizer)


def _on_gpu(optimizer: Optimizer) -> dict[str, Any]:
    before, peaks = torch.cuda.memory_allocated(), []
    for _ in range(STEPS):
        torch.cuda.reset_peak_memory_stats()
        optimizer.step()
        peaks.append(torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated())
    return {"peak": max(peaks), "kept": torch.cuda.memory_allocated() - before}


def _by_python(optimizer: Optimizer) -> dict[str, int]:
    """What Python and numpy allocate."""
    gc.collect()
    tracemalloc.start()
    before, peaks = tracemalloc.get_traced_memory()[0], []
    for _ in range(STEPS):
        tracemalloc.reset_peak()
        optimizer.step()
        after, highest = tracemalloc.get_traced_memory()
        peaks.append(highest - after)
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return {"peak": max(peaks), "kept": kept}


def _by_torch(optimizer: Optimizer) -> dict[str, int]:
    """What torch allocates on the CPU."""
    peaks, kept = [], 0
    for _ in range(STEPS):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            optimizer.step()
        level = highest = 0
        for num_bytes in _torch_allocations(recorded):
            level += num_bytes
            highest = max(highest, level)
        peaks.append(highest - level)
        kept += level
    return {"peak": max(peaks), "kept": kept}


def _torch_allocations(recorded: profile) -> list[int]:
    """Bytes allocated, or less than 0 where they were freed, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    chosen = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    return [event["args"]["Bytes"] for event in sorted(chosen, key=lambda event: event["ts"])]


def _resident(optimizer: Optimizer) -> dict[str, int]:
    """How far the resident memory rises during some steps; nothing where the system does not say."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the largest so far
        before = _status("VmRSS")
        for _ in range(STEPS):
            optimizer.step()
        return {"resident": max(_status("VmHWM") - before, 0)}
    except OSError:
        return {}


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def judge(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bars: next to no memory during a step, and none kept per weight; a history is kept per tensor and step.

    A refit may have a bit for each weight, during its steps or, where the gate was closed, until it opens again.
    """
    verdicts = []
    for case in cases:
        if case["regularizer"] == "none":
            continue
        same = (case["network"], case["optimizer"], "none")
        bare = next(c for c in cases if (c["network"], c["optimizer"], c["regularizer"]) == same)
        names = {"network": case["network"], "optimizer": case["optimizer"], "regularizer": case["regularizer"]}
        for bar in ("peak",) if case["regularizer"] == "L1" else ("peak", "kept"):
            share = (case[bar] - bare[bar]) / case["parameter_bytes"]
            limit = LIMIT + A_BIT_EACH * (case["regularizer"] in (REFIT, AFTER_CLOSED))
            verdicts.append(names | {"bar": bar, "share": share, "limit": limit, "met": share <= limit})
    return verdicts


def render(content: dict[str, Any]) -> str:
    """The tables as Markdown."""
    of = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    header = ("network", "optimizer", "regularizer", "parameters", "peak", "", "kept", "", "resident", "")
    rows = []
    for case in content["cases"]:
        cells: list[str] = [case["network"], case["optimizer"], case["regularizer"], f"{case['parameter_bytes']:,}"]
        for key in ("peak", "kept", "resident"):
            known = case[key] is not None
            cells += [f"{case[key]:,}", f"{case[key] / case['parameter_bytes']:.2%}"] if known else ["-", "-"]
        rows.append(cells)
    notes = "".join(f"\n{name}: {note}.\n" for name, note in NOTES.items() if any(name in row for row in rows))
    bars = ("network", "optimizer", "regularizer", "more than bare", "share of parameters", "limit", "met")
    verdicts = [
        (
            *(
                v["network"],
                v["optimizer"],
                v["regularizer"],
                v["bar"],
                f"{v['share']:.2%}",
                f"<= {100 * v['limit']:.3g}%",
            ),
            "yes" if v["met"] else "no",
        )
        for v in content["verdicts"]
    ]
    head = f"{content['device']}; {of}; bytes\n\n"
    return head + markdown_table(header, rows) + notes + "\n" + markdown_table(bars, verdicts)


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS), metavar="NAME")
    parser.add_argument("--regularizers", nargs="+", choices=REGULARIZERS, default=list(REGULARIZERS), metavar="NAME")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument("--markdown", type=Path, help="file to write the tables to")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = device_of(parser, arguments.device)
    if arguments.case is not None:
        print(json.dumps(measure(arguments.networks[0], *arguments.case, device)))
        return
    cases = []
    for network in arguments.networks:
        for optimizer in arguments.optimizers:
            for regularizer in dict.fromkeys(["none", *arguments.regularizers]):
                options = ("--networks", network, "--device", arguments.device, "--case", optimizer, regularizer)
                command = [sys.executable, __file__, *options]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode != 0:  # otherwise there is nothing but the profiler's own lines
                    sys.exit(done.stderr)
                cases.append(json.loads(done.stdout))
    content = {"versions": versions(), "device": describe(device), "cases": cases, "verdicts": judge(cases)}
    write(render(content), content, arguments.markdown, arguments.json)


if __name__ == "__main__":
    main()
