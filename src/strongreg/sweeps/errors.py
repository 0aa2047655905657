"""What can be wrong with a search."""

from __future__ import annotations


class StudyError(RuntimeError):
    """The storage cannot be used, or the study in it is another one; the text names it, without a password."""


class DeadRunError(Exception):
    """To be raised by a training function whose network has died: its trial is pruned, and the search goes on.

    Example:
        >>> import strongreg
        >>> def train(strength):
        ...     if strength > 0.1:
        ...         raise strongreg.DeadRunError("at chance for 10 epochs")
        ...     return 0.9 - strength, 1 + 100 * strength
        >>> found = strongreg.search_strength(train, 1e-3, 1.0, num_trials=8)
        >>> all(trial.is_dead == (trial.strength > 0.1) for trial in found.trials)
        True
    """
