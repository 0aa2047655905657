"""Compression that arrives on the disk and in the clock."""

from strongreg.compression.contents import PackedContents as PackedContents
from strongreg.compression.directory import Entry as Entry
from strongreg.compression.errors import PackedFileError as PackedFileError
from strongreg.compression.packed import inspect_packed as inspect_packed
from strongreg.compression.packed import load_packed as load_packed
from strongreg.compression.packed import save_packed as save_packed
from strongreg.compression.sparse_inference import sparsify as sparsify
from strongreg.compression.sparse_inference import sparsify_and_report as sparsify_and_report
from strongreg.compression.sparse_layers import SparseConv1x1 as SparseConv1x1
from strongreg.compression.sparse_layers import SparseLinear as SparseLinear
from strongreg.compression.sparse_report import SparsifyReport as SparsifyReport
from strongreg.compression.sparse_report import SparsifyRow as SparsifyRow
from strongreg.compression.values import Values as Values

__all__ = [
    "Entry",
    "PackedContents",
    "PackedFileError",
    "SparseConv1x1",
    "SparseLinear",
    "SparsifyReport",
    "SparsifyRow",
    "Values",
    "inspect_packed",
    "load_packed",
    "save_packed",
    "sparsify",
    "sparsify_and_report",
]
