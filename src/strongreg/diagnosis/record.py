"""What is known of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from strongreg.history import History

Array = npt.NDArray[np.float64]
_BEYOND_CHANCE = 0.05  # of the way from chance to no error


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run.

    Args:
        history: the regularizer's records.
        chance: accuracy of the best constant answer, the share of the largest class, in (0, 1].
        accuracy: after each epoch, shape (num_epochs,), in [0, 1].
        train_loss: mean over each epoch, shape (num_epochs,), in nats; NaN where it was not finite.
        steps_per_epoch: optimizer steps of an epoch.
        strength: of the penalty; 0 for a run without one.
        refit_start: step from which on the penalty was off; infinity for never.
        lr: largest learning rate.
        open_fraction: share of all steps at which the penalty acted, recorded or not; NaN if it is not known.
        weight_decay: of the optimizer; NaN if it is not known.
        kept: share of the penalized weights that are not 0 in the end, in [0, 1]; NaN if it is not known, or the
            penalty is none that makes zeros.
        num_classes: how many answers a network may give, >= 1; 1 if it is not known. Where they are not alike frequent,
            as the bytes of a text, an untrained network's loss is far above that of the best constant answer.
    """

    history: History
    chance: float
    accuracy: Array
    train_loss: Array
    steps_per_epoch: int
    strength: float
    refit_start: float = math.inf
    lr: float = math.nan
    open_fraction: float = math.nan
    weight_decay: float = math.nan
    kept: float = math.nan
    num_classes: int = 1

    @property
    def num_steps(self) -> int:
        """Optimizer steps done."""
        return len(self.accuracy) * self.steps_per_epoch


def is_above_chance(accuracy: float, chance: float) -> bool:
    """Whether a network has learned anything: a dead one gives one answer to every image, and is right by chance.

    Args:
        accuracy: in [0, 1].
        chance: share of the largest class.

    Returns:
        Whether the accuracy is beyond chance by a twentieth of what there is to learn.
    """
    return accuracy > chance + _BEYOND_CHANCE * (1 - chance)
