"""What is said where memory runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from strongreg.experiments.errors import UserError

_OF_THE_CPU = "can't allocate memory"  # torch has no class for it, as it has for accelerators


@contextlib.contextmanager
def memory_may_run_out(run: str) -> Iterator[None]:
    """Within the block memory that runs out is an error of the user.

    Args:
        run: what needs the memory, for the message.

    Yields:
        Nothing.

    Raises:
        UserError: memory has run out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and _OF_THE_CPU not in str(error):
            raise
        raise UserError(
            f"out of memory while training {run}: lower training.batch_size, cut batches into parts with "
            "training.accumulate, or use fewer --workers; finished runs and the last checkpoints are kept"
        ) from error
