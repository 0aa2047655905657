"""A penalty as a sum of few known terms: what the fast passes over weights and gradients are written for."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    r"""The weights of the terms in :math:`\Omega`, and with them of its subgradient.

    .. math:: r = l_1\,\mathrm{sign}(w)\,(1 - |w| / cutoff)_+ + l_2\,w + group\,w_G / \lVert w_G\rVert .

    Args:
        l1: weight of the absolute values, >= 0.
        l2: weight of half the squares, >= 0.
        cutoff: where the absolute values fade out (MCP); infinite for none.
        group: weight of the norms of the groups that dimension 0 numbers, >= 0.
    """

    l1: float = 0.0
    l2: float = 0.0
    cutoff: float = math.inf
    group: float = 0.0
