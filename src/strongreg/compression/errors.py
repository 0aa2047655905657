"""What can be wrong with a packed file, an export or a network to shrink."""

from __future__ import annotations


class PackedFileError(ValueError):
    """A file is no packed file, is damaged, or asks for more than may be unpacked."""


class ExportError(RuntimeError):
    """A network cannot be exported, or what was exported computes something else."""


class ShrinkError(ValueError):
    """The network cannot be looked into, so that nothing of it can be removed."""
