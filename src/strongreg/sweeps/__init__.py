"""Searches for a strength: trials in an optuna study that many processes and machines share, and their Pareto front."""

from strongreg.sweeps.errors import DeadRunError as DeadRunError
from strongreg.sweeps.errors import StudyError as StudyError
from strongreg.sweeps.result import SearchResult as SearchResult
from strongreg.sweeps.result import SearchTrial as SearchTrial
from strongreg.sweeps.search import search_strength as search_strength

__all__ = ["DeadRunError", "SearchResult", "SearchTrial", "StudyError", "search_strength"]
