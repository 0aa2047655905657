"""Sparse inference: layers in CSR where that was measured to be faster on this machine."""

from strongreg.compression.sparse_inference.layers import SparseConv1x1 as SparseConv1x1
from strongreg.compression.sparse_inference.layers import SparseLinear as SparseLinear
from strongreg.compression.sparse_inference.report import SparsifyReport as SparsifyReport
from strongreg.compression.sparse_inference.report import SparsifyRow as SparsifyRow
from strongreg.compression.sparse_inference.sparsify import sparsify as sparsify
from strongreg.compression.sparse_inference.sparsify import sparsify_and_report as sparsify_and_report

__all__ = ["SparseConv1x1", "SparseLinear", "SparsifyReport", "SparsifyRow", "sparsify", "sparsify_and_report"]
