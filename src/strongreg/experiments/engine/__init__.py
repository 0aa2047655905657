"""Trains one network once: plain torch with the two lines of strongreg."""

from strongreg.experiments.engine.board import check_board as check_board
from strongreg.experiments.engine.loop import RunStoppedError as RunStoppedError
from strongreg.experiments.engine.loop import train as train
from strongreg.experiments.engine.measurement import EpochMetrics as EpochMetrics
from strongreg.experiments.engine.measurement import RunResult as RunResult
from strongreg.experiments.engine.measurement import evaluate as evaluate
from strongreg.experiments.engine.methods import build_regularizers as build_regularizers
from strongreg.experiments.engine.methods import check_method as check_method
from strongreg.experiments.engine.record import load_history as load_history
from strongreg.experiments.engine.record import load_metrics as load_metrics
from strongreg.experiments.engine.record import load_result as load_result

__all__ = [
    "EpochMetrics",
    "RunResult",
    "RunStoppedError",
    "build_regularizers",
    "check_board",
    "check_method",
    "evaluate",
    "load_history",
    "load_metrics",
    "load_result",
    "train",
]
