"""torch.export without its noise, and its errors in a line."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator

_LONGEST_REASON = 300
_LOUD = ("torch", "onnxscript")
_OF_THE_EXPORTER: tuple[tuple[type[Warning], str], ...] = (
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
    (UserWarning, r"The tensor attributes? .*_flat_weights"),  # every LSTM, GRU and RNN of torch
)
"""What torch 2.13 warns of in its own code; warnings of the network itself pass."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch's exporters log, and warn of in their own code."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for category, message in _OF_THE_EXPORTER:
            warnings.filterwarnings("ignore", message, category)
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """As :func:`quiet`, and without the half a graph that torch.export prints where it fails."""
    printed = io.StringIO()
    with quiet(), contextlib.redirect_stderr(printed):
        yield
    sys.stderr.write(printed.getvalue())


def reason(error: BaseException) -> str:
    """What lies at the bottom of an exception, in one line.

    Args:
        error: any exception.

    Returns:
        The first line of the text of its first cause, or its type.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0][:_LONGEST_REASON] if lines else type(error).__name__
