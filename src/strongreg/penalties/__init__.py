"""Penalties: value, subgradient, proximal operator, critical strength and optimality gap of each."""

from strongreg.penalties.base import Penalty as Penalty
from strongreg.penalties.group import GroupL2 as GroupL2
from strongreg.penalties.group import SparseGroup as SparseGroup
from strongreg.penalties.separable import L1 as L1
from strongreg.penalties.separable import L2 as L2
from strongreg.penalties.separable import MCP as MCP
from strongreg.penalties.separable import ElasticNet as ElasticNet

__all__ = ["L1", "L2", "MCP", "ElasticNet", "GroupL2", "Penalty", "SparseGroup"]
