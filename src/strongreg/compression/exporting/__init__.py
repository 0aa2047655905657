"""Export: a network in one file of another format, written when it computes the same."""

from strongreg.compression.exporting.export import ExportedFile as ExportedFile
from strongreg.compression.exporting.export import export_onnx as export_onnx
from strongreg.compression.exporting.export import export_pt2 as export_pt2

__all__ = ["ExportedFile", "export_onnx", "export_pt2"]
