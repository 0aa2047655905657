"""Gates: when the penalty acts."""

from strongreg.gates.always_open import AlwaysOpen as AlwaysOpen
from strongreg.gates.base import Gate as Gate
from strongreg.gates.coherence_gate import CoherenceGate as CoherenceGate
from strongreg.gates.delay import Delay as Delay

__all__ = ["AlwaysOpen", "CoherenceGate", "Delay", "Gate"]
