"""Every gate, with several options: one line in ``GATES`` gives a newcomer the suite of ``tests/gates``."""

from __future__ import annotations

from strongreg import AlwaysOpen, CoherenceGate, Delay, Gate

GATES: list[Gate] = [
    AlwaysOpen(),
    Delay(steps=3),
    CoherenceGate(),
    CoherenceGate(-1.0),
    CoherenceGate(0.5, scope="layer"),
]
