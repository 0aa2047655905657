"""Write a network as ONNX or as torch.export's pt2, and see that the file computes what the network does."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from strongreg.compression.errors import ExportError
from strongreg.compression.exporting.agreement import compare
from strongreg.compression.exporting.capture import Candidate
from strongreg.compression.torch_export import quiet, reason
from strongreg.extras import how_to_install
from strongreg.files import write_bytes

FIRST_OPSET = 18
"""What torch's translations are written for; below it torch may write another opset than it was asked for."""
_MAX_ONNX_BYTES = 2**31 - 1  # of a protobuf message


@dataclass(frozen=True)
class ExportedFile:
    """A network that was exported, and how it compares with torch.

    Args:
        path: of the file.
        file_bytes: its size.
        opset: version of ONNX's operators; None for pt2.
        dynamic_batch: whether it takes batches of any size, or that of the example only.
        batch_sizes: at which it was compared with torch, that of the example first.
        difference: the largest one from torch's outputs, relative to the largest number of an output.
    """

    path: Path
    file_bytes: int
    opset: int | None
    dynamic_batch: bool
    batch_sizes: tuple[int, ...]
    difference: float

    def __str__(self) -> str:
        """The same in one line."""
        opset = "" if self.opset is None else f"opset {self.opset}, "
        batch = "any batch size" if self.dynamic_batch else f"batches of {self.batch_sizes[0]} only"
        apart = f"differs by {self.difference:.1e} of the largest output" if self.difference else "no difference"
        tried = f"compared with torch at batches of {', '.join(map(str, self.batch_sizes))}"
        return f"{self.path}: {self.file_bytes:,} bytes, {opset}{batch}; {tried}: {apart}"


def export_onnx(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
) -> ExportedFile:
    """Write a network as one ONNX file, weights within, after onnxruntime has computed the same with it as torch.

    The network is exported in evaluation mode, on the CPU, from a copy. The file is written whole or not at all. A zero
    takes as many bytes in it as any number: shrink the network first. Inputs are named as in the network's ``forward``;
    the outputs ``output``, or ``output_0``, ``output_1``, ... where there are several.

    Args:
        model: on any device and in any mode; it is left as it is.
        example_inputs: a tensor or several, what ``model`` is called with. The first dimension of the first is the
            batch, and so is that of every other of the same size.
        path: where to write; an existing file is replaced.
        opset: version of ONNX's operators, 18 or later; torch's choice by default.
        dynamic_batch: whether the file is to take batches of any size, or that of the example only.

    Returns:
        Size, opset, and the largest difference from torch: on the example, and on random inputs of the same kind at two
        other batch sizes.

    Raises:
        TypeError: the inputs are no tensors, the model is none, or it returns something else than tensors.
        ValueError: the opset is out of range, or the inputs have no batch.
        ExportError: torch cannot export the network, it has one batch size only, it is beyond ONNX's 2 GB, or the
            outputs differ by more than 1e-4 of the largest (1e-2 for float16).
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        OSError: the file cannot be written.

    Example:
        >>> import strongreg, tempfile, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 10))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = strongreg.export_onnx(model, torch.randn(4, 20), f"{folder}/model.onnx", opset=20)
        >>> exported.opset, exported.dynamic_batch, exported.batch_sizes, exported.difference < 1e-5
        (20, True, (4, 1, 5), True)
    """
    onnx, runtime = _libraries()
    last = onnx.defs.onnx_opset_version()
    if opset is not None and not (isinstance(opset, int) and FIRST_OPSET <= opset <= last):
        raise ValueError(f"opset={opset!r}: must be between {FIRST_OPSET} and {last}")
    target = _checked(path)
    candidate = Candidate.of(model, example_inputs)
    if candidate.num_bytes > _MAX_ONNX_BYTES:
        raise ExportError(
            f"{candidate.name} takes {candidate.num_bytes:,} bytes, an ONNX file at most {_MAX_ONNX_BYTES:,}: "
            "use float16, or export_pt2"
        )
    content, written = _onnx(candidate, opset, dynamic_batch=dynamic_batch)
    if opset not in (None, written):
        raise ExportError(f"opset={opset}: torch cannot write {candidate.name} in it, only in {written}")
    run = _in_onnxruntime(candidate, content, runtime)
    agreement = compare(candidate, run, dynamic_batch=dynamic_batch, label="the ONNX file")
    write_bytes(target, content)
    return ExportedFile(target, len(content), written, dynamic_batch, agreement.batch_sizes, agreement.difference)


def export_pt2(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = True,
) -> ExportedFile:
    """Write a network as torch.export saves it, after the saved one has computed the same: it needs no code of yours.

    ``torch.export.load(path).module()`` runs it. It is exported in evaluation mode, on the CPU, from a copy. Neither
    the example inputs nor paths of the source go along. The file is written whole or not at all.

    Args:
        model: on any device and in any mode; it is left as it is.
        example_inputs: a tensor or several, what ``model`` is called with. The first dimension of the first is the
            batch, and so is that of every other of the same size.
        path: where to write; an existing file is replaced.
        dynamic_batch: whether the file is to take batches of any size, or that of the example only.

    Returns:
        Size, and the largest difference from the network: on the example, and on random inputs of the same kind at two
        other batch sizes.

    Raises:
        TypeError: the inputs are no tensors, the model is none, or it returns something else than tensors.
        ValueError: the inputs have no batch.
        ExportError: torch cannot export the network, it has one batch size only, or the outputs differ by more than
            1e-4 of the largest (1e-2 for float16, 1e-1 for bfloat16).
        OSError: the file cannot be written.

    Example:
        >>> import strongreg, tempfile, torch
        >>> model = torch.nn.Linear(20, 10)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = strongreg.export_pt2(model, torch.randn(4, 20), f"{folder}/model.pt2")
        ...     outputs = torch.export.load(f"{folder}/model.pt2").module()(torch.randn(7, 20))
        >>> outputs.shape, exported.difference
        (torch.Size([7, 10]), 0.0)
    """
    target = _checked(path)
    candidate = Candidate.of(model, example_inputs)
    program = candidate.capture(dynamic_batch=dynamic_batch)
    try:
        content = _pt2(program)
        with quiet():
            loaded = torch.export.load(io.BytesIO(content)).module()
    except Exception as error:
        raise ExportError(f"torch cannot save {candidate.name}: {reason(error)}") from error
    agreement = compare(candidate, lambda inputs: loaded(*inputs), dynamic_batch=dynamic_batch, label="the pt2 file")
    write_bytes(target, content)
    return ExportedFile(target, len(content), None, dynamic_batch, agreement.batch_sizes, agreement.difference)


def _onnx(candidate: Candidate, opset: int | None, *, dynamic_batch: bool) -> tuple[bytes, int]:
    """The file's bytes and its opset."""
    from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass

    program = candidate.capture(dynamic_batch=dynamic_batch)
    names = [f"output_{i}" for i in range(candidate.num_outputs)] if candidate.num_outputs > 1 else ["output"]
    # one input names the dimension, which they share
    shapes = [{0: "batch"} if dynamic_batch and i == 0 else {} for i in range(len(candidate.inputs))]
    try:
        with quiet():
            exported: Any = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                output_names=names,
                dynamic_shapes=tuple(shapes),
            )
            ClearMetadataAndDocStringPass()(exported.model)  # a stack trace per node, with paths of the source
            content = exported.model_proto.SerializeToString()
    except Exception as error:
        raise ExportError(f"torch cannot write {candidate.name} as ONNX: {reason(error)}") from error
    return content, exported.model.opset_imports[""]


def _in_onnxruntime(
    candidate: Candidate, content: bytes, runtime: ModuleType
) -> Callable[[tuple[Tensor, ...]], list[Tensor]]:
    """A function that runs an ONNX file."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised, too
    options.intra_op_num_threads = torch.get_num_threads()  # its own threads spin
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"onnxruntime does not take {candidate.name}: {reason(error)}") from error
    names = [each.name for each in session.get_inputs()]

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        given = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, given)]

    return run


def _pt2(program: torch.export.ExportedProgram) -> bytes:
    """The file's bytes, without example inputs, and without stack traces and their paths of the source."""
    program.example_inputs = None
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    stream = io.BytesIO()
    with quiet():
        torch.export.save(program, stream)
    return stream.getvalue()


def _checked(path: str | os.PathLike[str]) -> Path:
    """The target; an export is too long to learn at its end that there is no such folder."""
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target))
    return target


def _libraries() -> tuple[ModuleType, ModuleType]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 torch translates with it
    except ImportError as error:
        raise ImportError(f"ONNX export needs the package {error.name}: {how_to_install('export')}") from error
    return onnx, onnxruntime
