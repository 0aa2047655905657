"""The command that writes a trained network as ONNX or pt2."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from strongreg.cli import trained
from strongreg.cli.output import check_target, writing
from strongreg.compression import ExportedFile, ExportError, export_onnx, export_pt2
from strongreg.experiments.errors import UserError

_BATCH_SIZE = 2  # of the example, where any will do

EPILOG_EXPORT = """Examples:

strongreg export strongreg-out/train-1 --onnx model.onnx

strongreg export strongreg-out/train-1 --onnx model.onnx --pt2 model.pt2 --opset 20

strongreg export model.packed --recipe strongreg-out/train-1/recipe.toml --pt2 model.pt2

strongreg export model.packed --model plain_cnn --image-shape 1,8,8 --num-classes 10 --onnx model.onnx"""


def export(
    source: trained.Source,
    onnx: Annotated[Path | None, typer.Option(help="ONNX file to write.", metavar="FILE")] = None,
    pt2: Annotated[Path | None, typer.Option(help="File to write for torch.export.load.", metavar="FILE")] = None,
    opset: Annotated[int | None, typer.Option(help="Version of ONNX's operators. Default: torch's choice.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Fix the number of images per batch. Default: any number.", min=1)
    ] = None,
    weights: trained.Weights = None,
    recipe: trained.Recipe = None,
    model: trained.Model = None,
    image_shape: trained.Shape = None,
    num_classes: trained.NumClasses = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Write a trained network as ONNX or pt2, and check in onnxruntime or torch that it computes the same."""
    if onnx is None and pt2 is None:
        raise UserError("nothing to write: give --onnx FILE, --pt2 FILE, or both")
    if opset is not None and onnx is None:
        raise UserError(f"--opset {opset} is of ONNX: give --onnx FILE too")
    if onnx == pt2:
        raise UserError(f"--onnx and --pt2 are both {onnx}: choose two files")
    for option, target in (("--onnx", onnx), ("--pt2", pt2)):
        if target is not None:
            check_target(target, option)
    network = trained.load(source, weights, recipe, model, image_shape, num_classes)
    if network.weights in (onnx, pt2):
        raise UserError(f"{network.weights} would be overwritten: choose another file")
    inputs = network.example(batch_size or _BATCH_SIZE)
    dynamic = batch_size is None
    written: list[ExportedFile] = []
    for target in filter(None, (onnx, pt2)):
        try:
            with writing(target):
                if target == onnx:
                    written.append(export_onnx(network.model, inputs, target, opset=opset, dynamic_batch=dynamic))
                else:
                    written.append(export_pt2(network.model, inputs, target, dynamic_batch=dynamic))
        except (ExportError, ImportError, ValueError) as error:
            raise UserError(str(error).replace("dynamic_batch=False", "fix it with --batch-size")) from error
    if as_json:
        typer.echo(json.dumps({"files": [asdict(file) | {"path": str(file.path)} for file in written]}, indent=2))
        return
    for file in written:
        typer.echo(str(file))
