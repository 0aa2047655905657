"""Compression that arrives on the disk and in the clock."""

from strongreg.compression.contents import PackedContents as PackedContents
from strongreg.compression.directory import Entry as Entry
from strongreg.compression.errors import PackedFileError as PackedFileError
from strongreg.compression.packed import inspect_packed as inspect_packed
from strongreg.compression.packed import load_packed as load_packed
from strongreg.compression.packed import save_packed as save_packed
from strongreg.compression.values import Values as Values

__all__ = ["Entry", "PackedContents", "PackedFileError", "Values", "inspect_packed", "load_packed", "save_packed"]
