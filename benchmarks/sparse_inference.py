"""How much faster `strongreg.sparsify` makes a sparse network, from which sparsity on a layer is, and by which kernel.

python benchmarks/sparse_inference.py [--rounds N] [--seconds S] [--json FILE]

One thread, float32, zeros at random places. Dense and sparse take turns within a round; a number is the median over the
rounds, and of the ratios the smallest and the largest are recorded too.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import strongreg
from strongreg.compression import SparseLinear
from strongreg.experiments.models import build_model
from strongreg.timing import interleaved_medians

SPARSITIES, BATCH_SIZES = (0.95, 0.98), (1, 64)
LAYERS = ((300, 784), (100, 300), (1024, 1024))
ROWS = (1, 2, 3, 4, 16, 64)
GRID = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
BREAK_EVEN = 1.05


def _mlp() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in ((784, 1024), (1024, 1024), (1024, 1024)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(1024, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lenet300": lambda: build_model("lenet300", (1, 28, 28), 10),
    "mlp-1024": _mlp,
}


def _with_zeros(model: nn.Module, sparsity: float) -> nn.Module:
    """The model in eval mode, with a share of the numbers of every weight set to 0 at random places."""
    with torch.no_grad():
        for param in model.parameters():
            if param.dim() >= 2:
                places = torch.randperm(param.numel())[: round(sparsity * param.numel())]
                param.view(-1)[places] = 0.0
    return model.eval()


def _times(dense: nn.Module, sparse: nn.Module, inputs: Tensor, rounds: int, seconds: float) -> dict[str, float]:
    """Milliseconds per call of both, and dense / sparse."""
    with torch.no_grad():
        both = [
            interleaved_medians([lambda: dense(inputs), lambda: sparse(inputs)], seconds=seconds) for _ in range(rounds)
        ]
    ratios = [times[0] / times[1] for times in both]
    return {
        "dense_ms": 1e3 * statistics.median(times[0] for times in both),
        "sparse_ms": 1e3 * statistics.median(times[1] for times in both),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def measure_networks(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """One row per network, sparsity and batch size."""
    rows = []
    for name, build in NETWORKS.items():
        for sparsity in SPARSITIES:
            for batch_size in BATCH_SIZES:
                torch.manual_seed(0)
                model, inputs = _with_zeros(build(), sparsity), torch.rand(batch_size, 1, 28, 28)
                fast, report = strongreg.sparsify_and_report(model, inputs)
                row = {"network": name, "sparsity": sparsity, "batch_size": batch_size, "layers": len(report.layers)}
                row |= {"converted": len(report.converted)}
                rows.append(row | _times(model, fast, inputs, rounds, seconds))
    return rows


def measure_layers(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """One row per shape of a layer and batch size, with the ratio at each sparsity and where it breaks even."""
    rows = []
    for shape in LAYERS:
        for batch_size in BATCH_SIZES:
            torch.manual_seed(0)
            inputs, ratios = torch.rand(batch_size, shape[1]), {}
            for sparsity in GRID:
                layer = _with_zeros(nn.Linear(shape[1], shape[0]), sparsity)
                sparse = SparseLinear(layer.weight, layer.bias)
                ratios[f"{sparsity:g}"] = _times(layer, sparse, inputs, rounds, seconds)["ratio"]
            enough = [sparsity for sparsity, ratio in ratios.items() if ratio >= BREAK_EVEN]
            even = min(map(float, enough), default=None)
            rows.append({"layer": shape, "batch_size": batch_size, "break_even": even, "ratios": ratios})
    return rows


def _kernels(layer: SparseLinear, inputs: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The ways of torch to multiply by a CSR weight that give contiguous rows."""
    csr, bias, (num, _) = layer._csr(), layer.bias, inputs.shape
    indices = csr.crow_indices().long(), csr.col_indices().long()
    long = torch.sparse_csr_tensor(*indices, csr.values(), csr.shape, check_invariants=True)
    column, output = bias[:, None], torch.empty(num, len(bias))

    def bag() -> Tensor:
        columns = inputs.t().contiguous()
        rows = {"per_sample_weights": layer.values, "mode": "sum", "include_last_offset": True}
        return (
            (functional.embedding_bag(layer.col_indices, columns, layer.crow_indices, **rows) + column).t().contiguous()
        )

    kernels = {
        "addmm": lambda: torch.addmm(column, csr, inputs.t()).t().contiguous(),
        "addmm, columns kept": lambda: torch.addmm(column, csr, inputs.t()).t(),
        "addmm, int64": lambda: torch.addmm(column, long, inputs.t()).t().contiguous(),
        "addmm into rows": lambda: torch.addmm(column, csr, inputs.t(), out=output.t()).t(),
        "linear": lambda: functional.linear(inputs, csr, bias),
        "embedding_bag": bag,
    }
    return {"addmv": lambda: torch.addmv(bias, csr, inputs[0])[None], **kernels} if num == 1 else kernels


def measure_kernels(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """One row per number of input rows: times faster than dense by kernel, for a layer of 1024x1024 with 95 % zeros."""
    rows = []
    torch.manual_seed(0)
    dense = _with_zeros(nn.Linear(1024, 1024), 0.95)
    layer = SparseLinear(dense.weight, dense.bias)
    for batch_size in ROWS:
        inputs = torch.rand(batch_size, 1024)
        with torch.no_grad():
            kernels = _kernels(layer, inputs)
            assert all(torch.allclose(kernel(), dense(inputs), atol=1e-5) for kernel in kernels.values())
            functions = [lambda inputs=inputs: dense(inputs), *kernels.values()]
            times = [interleaved_medians(functions, seconds=seconds) for _ in range(rounds)]
        ratios = {
            name: statistics.median(first / others[i] for first, *others in times) for i, name in enumerate(kernels)
        }
        rows.append({"batch_size": batch_size, "ratios": ratios})
    return rows


def _print_table(header: tuple[str, ...]) -> None:
    _print_row(*header)
    print(f"|{'---|' * len(header)}")


def _print_row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.1, help="of a round of one network; a layer gets a third")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    networks = measure_networks(arguments.rounds, arguments.seconds)
    _print_table(("network", "zeros", "batch", "dense, us", "sparsified, us", "times faster", "in CSR"))
    for row in networks:
        times = (f"{1e3 * row['dense_ms']:.0f}", f"{1e3 * row['sparse_ms']:.0f}", f"{row['ratio']:.2f}")
        _print_row(
            row["network"],
            f"{row['sparsity']:.0%}",
            row["batch_size"],
            *times,
            f"{row['converted']} of {row['layers']}",
        )
    layers = measure_layers(arguments.rounds, arguments.seconds / 3)
    print()
    _print_table(("layer", "batch", "faster from", *(f"{sparsity:.0%}" for sparsity in GRID)))
    for row in layers:
        even = "-" if row["break_even"] is None else f"{row['break_even']:.0%}"
        ratios = (f"{ratio:.2f}" for ratio in row["ratios"].values())
        _print_row("x".join(map(str, row["layer"])), row["batch_size"], even, *ratios)
    kernels = measure_kernels(arguments.rounds, arguments.seconds)
    print()
    _print_table(("rows", *(names := tuple(kernels[0]["ratios"]))))
    for row in kernels:
        _print_row(
            row["batch_size"], *(f"{row['ratios'][name]:.2f}" if name in row["ratios"] else "-" for name in names)
        )
    if arguments.json:
        versions = {"strongreg": strongreg.__version__, "torch": torch.__version__, "python": platform.python_version()}
        content = {"versions": versions, "threads": 1, "networks": networks, "layers": layers, "kernels": kernels}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
