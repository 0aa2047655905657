"""Compression that arrives on the disk and in the clock."""

from strongreg.compression.errors import ExportError as ExportError
from strongreg.compression.errors import PackedFileError as PackedFileError
from strongreg.compression.errors import ShrinkError as ShrinkError
from strongreg.compression.exporting import ExportedFile as ExportedFile
from strongreg.compression.exporting import export_onnx as export_onnx
from strongreg.compression.exporting import export_pt2 as export_pt2
from strongreg.compression.packing import Entry as Entry
from strongreg.compression.packing import PackedContents as PackedContents
from strongreg.compression.packing import Values as Values
from strongreg.compression.packing import inspect_packed as inspect_packed
from strongreg.compression.packing import is_packed as is_packed
from strongreg.compression.packing import load_into as load_into
from strongreg.compression.packing import load_packed as load_packed
from strongreg.compression.packing import save_packed as save_packed
from strongreg.compression.shrinking import LeftZeros as LeftZeros
from strongreg.compression.shrinking import ShrinkReport as ShrinkReport
from strongreg.compression.shrinking import ShrunkTensor as ShrunkTensor
from strongreg.compression.shrinking import load_shrunk as load_shrunk
from strongreg.compression.shrinking import shrink as shrink
from strongreg.compression.shrinking import shrink_and_report as shrink_and_report
from strongreg.compression.sparse_inference import SparseConv1x1 as SparseConv1x1
from strongreg.compression.sparse_inference import SparseLinear as SparseLinear
from strongreg.compression.sparse_inference import SparsifyReport as SparsifyReport
from strongreg.compression.sparse_inference import SparsifyRow as SparsifyRow
from strongreg.compression.sparse_inference import sparsify as sparsify
from strongreg.compression.sparse_inference import sparsify_and_report as sparsify_and_report

__all__ = [
    "Entry",
    "ExportError",
    "ExportedFile",
    "LeftZeros",
    "PackedContents",
    "PackedFileError",
    "ShrinkError",
    "ShrinkReport",
    "ShrunkTensor",
    "SparseConv1x1",
    "SparseLinear",
    "SparsifyReport",
    "SparsifyRow",
    "Values",
    "export_onnx",
    "export_pt2",
    "inspect_packed",
    "is_packed",
    "load_into",
    "load_packed",
    "load_shrunk",
    "save_packed",
    "shrink",
    "shrink_and_report",
    "sparsify",
    "sparsify_and_report",
]
