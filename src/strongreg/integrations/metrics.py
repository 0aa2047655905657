"""What the hosts log of a Regularizer, under the same names everywhere."""

from __future__ import annotations

import math

import numpy as np

from strongreg.history import QUANTITIES
from strongreg.regularizer import Regularizer

OPEN, COHERENCE, COMPRESSION = "strongreg/open", "strongreg/coherence", "strongreg/compression"


class Metrics:
    """Reads a Regularizer now and then.

    Args:
        regularizer: the Regularizer; steps that it has done already are not counted.
    """

    def __init__(self, regularizer: Regularizer) -> None:
        self._regularizer = regularizer
        self._num_read = len(regularizer.history)

    def read(self) -> dict[str, float]:
        """What has happened since it was read last; where processes hold parts of the network, all must ask.

        Returns:
            ``strongreg/open``, the mean share of the penalized weights whose gate was open, and
            ``strongreg/coherence``, the mean coherence of the whole network, both over the recorded steps since; left
            out where none was recorded. ``strongreg/compression``, penalized weights / those that are not 0 now.
        """
        history = self._regularizer.history
        recent = history.last(len(history) - self._num_read).numpy()
        self._num_read = len(history)
        values = {}
        if len(recent):
            values[OPEN] = float(recent[:, QUANTITIES.index("open")].mean())
            coherence = recent[:, QUANTITIES.index("coherence")]
            known = coherence[~np.isnan(coherence)]  # it is not, where weights or gradients are not finite
            values[COHERENCE] = float(known.mean()) if len(known) else math.nan
        return {**values, COMPRESSION: self._regularizer.summary().total.compression}
