"""What a search has found: its trials, those that no other beats, and a choice among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any


@dataclass(frozen=True)
class SearchTrial:
    """One finished trial.

    Args:
        number: its number in the study.
        strength: the strength that was tried, > 0.
        accuracy: what the training function gave, the more the better; NaN of a dead run.
        compression: likewise.
        details: what else was recorded of it, plain data.
    """

    number: int
    strength: float
    accuracy: float
    compression: float
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_dead(self) -> bool:
        """Whether the network died, and the trial was pruned."""
        return math.isnan(self.accuracy)


@dataclass(frozen=True)
class SearchResult:
    """The finished trials of a search.

    Args:
        trials: by strength, from the smallest.
    """

    trials: tuple[SearchTrial, ...]

    @property
    def front(self) -> tuple[SearchTrial, ...]:
        """The living trials that no other beats in one objective without losing in the other, by compression."""
        alive = [trial for trial in self.trials if not trial.is_dead]
        best = [alive[i] for i in undominated([(t.accuracy, t.compression) for t in alive])]
        return tuple(sorted(best, key=lambda trial: (trial.compression, -trial.accuracy, trial.strength)))

    def best(self, min_accuracy: float | None = None, *, max_loss: float = 0.01) -> SearchTrial:
        """The trial of the largest compression among those that are accurate enough.

        Args:
            min_accuracy: what is accurate enough; by default the best accuracy of all trials less ``max_loss``.
            max_loss: accuracy that may be given up, >= 0; not used where ``min_accuracy`` is given.

        Returns:
            One of the front.

        Raises:
            ValueError: no trial is accurate enough, or ``max_loss`` is not a number >= 0.
        """
        if not max_loss >= 0:
            raise ValueError(f"max_loss={max_loss}: must be >= 0, such as 0.01")
        if not self.front:
            raise ValueError(
                f"every one of the {len(self.trials)} finished trials is dead: search among smaller strengths"
            )
        highest = max(trial.accuracy for trial in self.front)
        least = highest - max_loss if min_accuracy is None else min_accuracy
        enough = [trial for trial in self.front if trial.accuracy >= least]
        if not enough:
            raise ValueError(
                f"min_accuracy={min_accuracy}: the most accurate trial reaches {highest:.4g}; ask for less, or search "
                "among smaller strengths"
            )
        return max(enough, key=lambda trial: (trial.compression, trial.accuracy, -trial.strength))


def undominated(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other beats: as large in both numbers, and larger in one.

    Args:
        points: pairs without NaN, of which more is better.

    Returns:
        Indices, from the largest first number to the smallest; equal points stand side by side.
    """
    order = sorted(range(len(points)), key=lambda i: points[i], reverse=True)
    front: list[int] = []
    highest = -math.inf
    for _, group in groupby(order, key=lambda i: points[i][0]):
        equals = list(group)
        second = points[equals[0]][1]  # the largest of those whose first numbers are equal
        if second > highest or not front:
            front += [i for i in equals if points[i][1] == second]
            highest = second
    return front
