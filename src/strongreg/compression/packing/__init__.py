"""Packed files: the state of a network in one safetensors file, in which zeros take their entropy."""

from strongreg.compression.packing.contents import PackedContents as PackedContents
from strongreg.compression.packing.directory import Entry as Entry
from strongreg.compression.packing.packed import inspect_packed as inspect_packed
from strongreg.compression.packing.packed import is_packed as is_packed
from strongreg.compression.packing.packed import load_into as load_into
from strongreg.compression.packing.packed import load_packed as load_packed
from strongreg.compression.packing.packed import save_packed as save_packed
from strongreg.compression.packing.values import Values as Values

__all__ = [
    "Entry",
    "PackedContents",
    "Values",
    "inspect_packed",
    "is_packed",
    "load_into",
    "load_packed",
    "save_packed",
]
