"""The trials of a sweep as the cells of a table."""

from __future__ import annotations

from strongreg.sweeps import SearchResult, SearchTrial

TRIAL_HEADER = ("trial", "strength", "validation", "test", "smaller", "open", "front")
TRIAL_NOTE = (
    "Front: * no other trial is as accurate and as small, and better in one.\n"
    "**: chosen. Validation accuracy decides, test accuracy is only shown.\n"
    "Smaller: penalized weights / those that are not 0."
)


def trial_cells(trial: SearchTrial, found: SearchResult, chosen: SearchTrial | None) -> tuple[str, ...]:
    """A trial as the cells of a table row, in the order of ``TRIAL_HEADER``.

    Args:
        trial: one of them.
        found: all finished trials.
        chosen: the one that was chosen; None if none lives.

    Returns:
        Texts for people.
    """
    details = trial.details
    mark = "**" if trial == chosen else "*" if trial in found.front else ""
    validation = sum(details["accuracies"]) / len(details["accuracies"])
    return (
        str(trial.number),
        f"{trial.strength:.4g}",
        f"{validation:.1%}",
        f"{details['test_accuracy']:.1%}",
        "died" if trial.is_dead else f"{trial.compression:,.1f}",
        f"{details['open_fraction']:.0%}",
        mark,
    )
