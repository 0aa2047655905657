"""The command that makes a trained network physically smaller."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from strongreg.cli import trained
from strongreg.cli.output import target_of, tell, writing
from strongreg.cli.packed import ValuesName
from strongreg.compression import ShrinkReport, load_packed, load_shrunk, save_packed, shrink_and_report
from strongreg.compression.packing.values import VALUES
from strongreg.experiments.errors import UserError, check_known

_BATCH_SIZE = 2  # of the example: some code takes one image for none

EPILOG_SHRINK = """Examples:

strongreg shrink strongreg-out/train-1 -o small.packed

strongreg shrink model.packed --recipe strongreg-out/train-1/recipe.toml --values bf16 -o small.packed

strongreg shrink model.packed --model plain_cnn --image-shape 1,8,8 --num-classes 10 -o small.packed

strongreg export small.packed --recipe strongreg-out/train-1/recipe.toml --onnx small.onnx"""


def shrink(
    source: trained.Source,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Packed file to write. Default: beside the weights.")
    ] = None,
    values: ValuesName = "fp32",
    round_to: Annotated[
        int, typer.Option(min=1, help="Leave sizes at multiples of it, which runs faster in some libraries: 8 or 16.")
    ] = 1,
    weights: trained.Weights = None,
    recipe: trained.Recipe = None,
    model: trained.Model = None,
    image_shape: trained.Shape = None,
    num_classes: trained.NumClasses = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Remove the channels, neurons and heads that zeros have made useless, and write what is left into a small file.

    Give that file, with the recipe of the run, to export; strongreg.load_shrunk reads it in Python.
    """
    check_known("values", values, VALUES)
    network = trained.load(source, weights, recipe, model, image_shape, num_classes)
    target = target_of(out, network.weights, ".small.packed")
    inputs = network.example(_BATCH_SIZE)
    try:
        small, report = shrink_and_report(network.model, inputs, round_to=round_to)
        again = _again(network.model, small)
        with writing(target):
            contents = save_packed(small, target, values)  # type: ignore[arg-type]
    except ValueError as error:  # a ShrinkError is one
        raise UserError(str(error)) from error
    again.load_state_dict(load_packed(target))
    outcome = _Outcome(
        path=str(target),
        weights=str(network.weights),
        values=values,
        num_parameters=report.num_parameters,
        flops_per_image=(report.flops[0] // _BATCH_SIZE, report.flops[1] // _BATCH_SIZE),
        dense_bytes=(_dense_bytes(network.model), _dense_bytes(small)),
        file_bytes=(network.weights.stat().st_size, contents.file_bytes),
        difference=_difference(network.model, again, inputs),
    )
    if as_json:
        removed = {"shrunk": [asdict(x) for x in report.shrunk], "left": [asdict(x) for x in report.left]}
        typer.echo(json.dumps({**asdict(outcome), **removed}, indent=2))
    else:
        typer.echo(f"{report}\n{outcome}")
    if not report.shrunk:
        tell(_nothing_removed(report))
    tell(f"wrote {target}")


@dataclass(frozen=True)
class _Outcome:
    """What the report of shrinking does not say; numbers are before and after."""

    path: str
    weights: str
    values: str
    num_parameters: tuple[int, int]
    flops_per_image: tuple[int, int]
    dense_bytes: tuple[int, int]
    file_bytes: tuple[int, int]
    difference: float

    def __str__(self) -> str:
        """Three lines."""
        before, after = self.file_bytes
        apart = f"differ by {self.difference:.1e} of the largest" if self.difference else "do not differ"
        narrow = "" if self.values == "fp32" else f", with values as {self.values}"
        return "\n".join(
            [
                "FLOPs per input: {:,} to {:,}".format(*self.flops_per_image),
                "bytes: {:,} to {:,} dense, ".format(*self.dense_bytes)
                + f"{before:,} in {self.weights}, {after:,} in {self.path}",
                f"outputs of {self.path} {apart}, on random inputs{narrow}",
            ]
        )


def _again(model: nn.Module, small: nn.Module) -> nn.Module:
    """The smaller network, as whoever reads its file will build it."""
    try:
        return load_shrunk(copy.deepcopy(model), small.state_dict())
    except ValueError as error:
        raise UserError(
            f"{error}: what was left could not be read back, so nothing was written; give its layers a bias, "
            "or keep it by torch.save(strongreg.shrink(model, images))"
        ) from error


def _dense_bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _difference(model: nn.Module, other: nn.Module, images: Tensor) -> float:
    """The largest difference of the outputs, relative to the largest output."""
    with torch.no_grad():
        expected, found = model.eval()(images), other.eval()(images)
    largest = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return float((found - expected).abs().max() / largest)


def _nothing_removed(report: ShrinkReport) -> str:
    if report.left:
        return "nothing was removed: the rows and columns of zeros that there are cannot go, for the reasons above"
    return (
        "nothing was removed: no row or column of a weight is all zeros; GroupL2 and SparseGroup make such, if strong"
    )
