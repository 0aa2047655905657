"""What happened in a run, and why it failed: from its history, in plain words."""

from strongreg.diagnosis.record import RunRecord as RunRecord
from strongreg.diagnosis.verdict import Diagnosis as Diagnosis
from strongreg.diagnosis.verdict import Verdict as Verdict
from strongreg.diagnosis.verdict import diagnose as diagnose

__all__ = ["Diagnosis", "RunRecord", "Verdict", "diagnose"]
