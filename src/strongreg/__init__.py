"""Strong regularization that deep networks endure: gradient-coherent penalties for any torch optimizer."""

import importlib
import typing

from strongreg.gates import AlwaysOpen as AlwaysOpen
from strongreg.gates import CoherenceGate as CoherenceGate
from strongreg.gates import Delay as Delay
from strongreg.gates import Gate as Gate
from strongreg.history import History as History
from strongreg.optimizers import effective_step_size as effective_step_size
from strongreg.penalties import L1 as L1
from strongreg.penalties import L2 as L2
from strongreg.penalties import MCP as MCP
from strongreg.penalties import ElasticNet as ElasticNet
from strongreg.penalties import GroupL2 as GroupL2
from strongreg.penalties import Penalty as Penalty
from strongreg.penalties import SparseGroup as SparseGroup
from strongreg.regularizer import Regularizer as Regularizer
from strongreg.schedules import Constant as Constant
from strongreg.schedules import CosineRamp as CosineRamp
from strongreg.schedules import LinearRamp as LinearRamp
from strongreg.schedules import Refit as Refit
from strongreg.schedules import Schedule as Schedule
from strongreg.summary import Summary as Summary
from strongreg.summary import SummaryRow as SummaryRow

if typing.TYPE_CHECKING:
    from strongreg.compression import ExportedFile as ExportedFile
    from strongreg.compression import ExportError as ExportError
    from strongreg.compression import PackedContents as PackedContents
    from strongreg.compression import PackedFileError as PackedFileError
    from strongreg.compression import ShrinkError as ShrinkError
    from strongreg.compression import ShrinkReport as ShrinkReport
    from strongreg.compression import SparsifyReport as SparsifyReport
    from strongreg.compression import SparsifyRow as SparsifyRow
    from strongreg.compression import export_onnx as export_onnx
    from strongreg.compression import export_pt2 as export_pt2
    from strongreg.compression import inspect_packed as inspect_packed
    from strongreg.compression import load_packed as load_packed
    from strongreg.compression import load_shrunk as load_shrunk
    from strongreg.compression import save_packed as save_packed
    from strongreg.compression import shrink as shrink
    from strongreg.compression import shrink_and_report as shrink_and_report
    from strongreg.compression import sparsify as sparsify
    from strongreg.compression import sparsify_and_report as sparsify_and_report
    from strongreg.sweeps import DeadRunError as DeadRunError
    from strongreg.sweeps import SearchResult as SearchResult
    from strongreg.sweeps import SearchTrial as SearchTrial
    from strongreg.sweeps import StudyError as StudyError
    from strongreg.sweeps import search_strength as search_strength

__version__ = "0.1.0"

_LATER = {
    "strongreg.compression": (
        "ExportedFile",
        "ExportError",
        "PackedContents",
        "PackedFileError",
        "ShrinkError",
        "ShrinkReport",
        "SparsifyReport",
        "SparsifyRow",
        "export_onnx",
        "export_pt2",
        "inspect_packed",
        "load_packed",
        "load_shrunk",
        "save_packed",
        "shrink",
        "shrink_and_report",
        "sparsify",
        "sparsify_and_report",
    ),
    "strongreg.sweeps": (
        "DeadRunError",
        "SearchResult",
        "SearchTrial",
        "StudyError",
        "search_strength",
    ),
}
"""What is imported when it is first asked for: half of the time that ``import strongreg`` would take otherwise."""

__all__ = [
    "L1",
    "L2",
    "MCP",
    "AlwaysOpen",
    "CoherenceGate",
    "Constant",
    "CosineRamp",
    "DeadRunError",
    "Delay",
    "ElasticNet",
    "ExportError",
    "ExportedFile",
    "Gate",
    "GroupL2",
    "History",
    "LinearRamp",
    "PackedContents",
    "PackedFileError",
    "Penalty",
    "Refit",
    "Regularizer",
    "Schedule",
    "SearchResult",
    "SearchTrial",
    "ShrinkError",
    "ShrinkReport",
    "SparseGroup",
    "SparsifyReport",
    "SparsifyRow",
    "StudyError",
    "Summary",
    "SummaryRow",
    "effective_step_size",
    "export_onnx",
    "export_pt2",
    "inspect_packed",
    "load_packed",
    "load_shrunk",
    "save_packed",
    "search_strength",
    "shrink",
    "shrink_and_report",
    "sparsify",
    "sparsify_and_report",
]


def __getattr__(name: str) -> typing.Any:
    for module, names in _LATER.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
        if module == f"{__name__}.{name}":
            return importlib.import_module(module)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
