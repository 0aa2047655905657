"""The passes of a step over weights and gradients: inner products, proximal step, and the zeros that a refit keeps.

``passes`` hands each parameter to the fastest way that takes it: ``compiled`` (CPU, numba), ``blocks`` (CPU, torch),
``multi_tensor`` (GPU, Triton), ``foreach`` (other accelerators, torch), ``reference`` (everything).
"""

from strongreg.kernels.adam import AdamStep as AdamStep
from strongreg.kernels.compiled import are_compiled as are_compiled
from strongreg.kernels.passes import Passes as Passes
from strongreg.kernels.passes import size_of_all as size_of_all

__all__ = ["AdamStep", "Passes", "are_compiled", "size_of_all"]
