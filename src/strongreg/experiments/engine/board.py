"""The numbers of each epoch for TensorBoard, where they are wanted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from strongreg.experiments.engine.measurement import EpochMetrics
from strongreg.experiments.errors import UserError


def check_board() -> Any:
    """Check that there is TensorBoard.

    Returns:
        Its class that writes.

    Raises:
        UserError: the package is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("training.tensorboard=true needs the package tensorboard: pip install tensorboard") from error
    return SummaryWriter


@contextlib.contextmanager
def open_board(directory: Path, num_done: int, *, wanted: bool) -> Iterator[Callable[[EpochMetrics], None]]:
    """Within the block epochs can be shown.

    Args:
        directory: of the run; receives the event file.
        num_done: epochs done before; later ones that lie there already are taken back.
        wanted: whether to write anything.

    Yields:
        Writes the numbers of an epoch.

    Raises:
        UserError: the package is missing.
    """
    if not wanted:
        yield lambda _: None
        return
    writer = check_board()(log_dir=str(directory), purge_step=num_done + 1)

    def show(metrics: EpochMetrics) -> None:
        for name, value in asdict(metrics).items():
            if name != "epoch" and value is not None:
                writer.add_scalar(name, value, metrics.epoch)
        writer.flush()

    try:
        yield show
    finally:
        writer.close()
