"""Compression that arrives on the disk and in the clock."""

from strongreg.compression.contents import PackedContents as PackedContents
from strongreg.compression.directory import Entry as Entry
from strongreg.compression.errors import ExportError as ExportError
from strongreg.compression.errors import PackedFileError as PackedFileError
from strongreg.compression.export import ExportedFile as ExportedFile
from strongreg.compression.export import export_onnx as export_onnx
from strongreg.compression.export import export_pt2 as export_pt2
from strongreg.compression.packed import inspect_packed as inspect_packed
from strongreg.compression.packed import is_packed as is_packed
from strongreg.compression.packed import load_into as load_into
from strongreg.compression.packed import load_packed as load_packed
from strongreg.compression.packed import save_packed as save_packed
from strongreg.compression.values import Values as Values

__all__ = [
    "Entry",
    "ExportError",
    "ExportedFile",
    "PackedContents",
    "PackedFileError",
    "Values",
    "export_onnx",
    "export_pt2",
    "inspect_packed",
    "is_packed",
    "load_into",
    "load_packed",
    "save_packed",
]
