"""What the hosts log of a Regularizer, under the same names everywhere."""

from __future__ import annotations

import numpy as np

from strongreg.history import QUANTITIES
from strongreg.integrations.options import KEY
from strongreg.regularizer import Regularizer


class Metrics:
    """Reads a Regularizer now and then.

    Args:
        regularizer: the Regularizer; steps that it has done already are not counted.
        key: what the names begin with.
    """

    def __init__(self, regularizer: Regularizer, key: str = KEY) -> None:
        self._regularizer, self._key = regularizer, key
        self._num_read = len(regularizer.history)

    def read(self, *, keep: bool = False) -> dict[str, float]:
        """What has happened since it was read last; where processes hold parts of the network, all must ask.

        All values are finite, for hosts write them into JSON, which has no infinity and no NaN.

        Args:
            keep: whether the next one shall tell of these steps, too.

        Returns:
            ``strongreg/open``, the mean share of the penalized weights whose gate was open, and
            ``strongreg/coherence``, the mean coherence of the whole network, both over the recorded steps since; left
            out where none was recorded, the coherence also where it was not finite. ``strongreg/compression``,
            penalized weights / those that are not 0 now, as if one were left where none is.
        """
        history = self._regularizer.history
        recent = history.last(len(history) - self._num_read).numpy()
        if not keep:
            self._num_read = len(history)
        values = {}
        if len(recent):
            values["open"] = float(recent[:, QUANTITIES.index("open")].mean())
            coherence = recent[:, QUANTITIES.index("coherence")]
            known = coherence[np.isfinite(coherence)]  # it is not, where weights or gradients are not
            if len(known):
                values["coherence"] = float(known.mean())
        total = self._regularizer.summary().total
        values["compression"] = total.num_weights / max(total.num_weights - total.num_zeros, 1)
        return {f"{self._key}/{name}": value for name, value in values.items()}
