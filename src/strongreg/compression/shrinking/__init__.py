"""Physical shrinking: a smaller network that computes the same function."""

from strongreg.compression.shrinking.report import LeftZeros as LeftZeros
from strongreg.compression.shrinking.report import ShrinkReport as ShrinkReport
from strongreg.compression.shrinking.report import ShrunkTensor as ShrunkTensor
from strongreg.compression.shrinking.shrink import shrink as shrink
from strongreg.compression.shrinking.shrink import shrink_and_report as shrink_and_report
from strongreg.compression.shrinking.surgery import load_shrunk as load_shrunk

__all__ = ["LeftZeros", "ShrinkReport", "ShrunkTensor", "load_shrunk", "shrink", "shrink_and_report"]
