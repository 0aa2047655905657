"""How optional packages are installed: one text, to be changed here once strongreg is on PyPI."""

from __future__ import annotations


def how_to_install(extra: str) -> str:
    """What to do where an optional package is missing.

    Args:
        extra: of pyproject.toml: compression, experiments, export, sweep, or a host framework's name.

    Returns:
        A remedy for the end of a message.
    """
    return f"run pip install '.[{extra}]' in the clone of strongreg (it is not on PyPI yet)"
