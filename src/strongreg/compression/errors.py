"""What can be wrong with a packed file."""

from __future__ import annotations


class PackedFileError(ValueError):
    """A file is no packed file, is damaged, or asks for more than may be unpacked."""


class ExportError(RuntimeError):
    """A network cannot be exported, or what was exported computes something else."""
