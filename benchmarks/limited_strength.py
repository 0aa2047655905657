"""A strength that is lowered until it is coherent, instead of a gate that is open or shut: tried on L1 with SGD.

    python benchmarks/limited_strength.py --folds 2
    python benchmarks/limited_strength.py --strengths 0.0125 --thresholds 0.9 --folds 5

The default network and recipe of `strongreg train`, by cross-validation on the training images as cross_validate.py
has it: the test images are not looked at. At each step the penalty is imposed with the largest share of its strength,
up to 1, at which the loss gradient with it still points where the loss gradient alone does: cosine >= threshold. A row
for each strength is that of the gate itself, CoherenceGate(0.7). The library has no such limit; this is to see whether
it would help. Prints a row per run, and writes limited-strength.json into RESULTS, if given. coherent_strength.py has
the same for the weight decay of a language model.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cross_validate import folds, recipe_of
from strongreg import regularizer
from strongreg.decision import Decision, decide
from strongreg.experiments.data import load_data
from strongreg.experiments.engine import train
from strongreg.experiments.engine.process import prepare_process
from strongreg.gates import AlwaysOpen

_HEADER = ("strength", "way", "threshold", "fold", "accuracy", "times smaller", "imposed")


def coherent_share(gradient_sq: float, cross: float, penalty_sq: float, threshold: float) -> float:
    """The largest share of a penalty gradient that is coherent with the loss gradient.

    In the plane of the two, the sum turns away from the loss gradient by the angle whose cosine is the threshold.

    Args:
        gradient_sq: <g, g> of the loss gradient g.
        cross: <g, r> with the penalty gradient r at full strength.
        penalty_sq: <r, r>.
        threshold: the least cosine between g and g plus the share of r, in [-1, 1).

    Returns:
        A share in [0, 1]; 0 where there is no loss gradient.
    """
    if penalty_sq == 0:
        return 1.0
    if not gradient_sq > 0:
        return 0.0
    along = cross / math.sqrt(gradient_sq * penalty_sq)
    across = math.sqrt(max(1 - along**2, 0.0))
    sine = math.sqrt(1 - threshold**2)
    turning = threshold * across - sine * along
    if turning <= 0:
        return 1.0
    return min(math.sqrt(gradient_sq / penalty_sq) * sine / turning, 1.0)


@contextmanager
def limited(threshold: float) -> Iterator[list[float]]:
    """Within the block what is always open is limited; gives the share that was imposed at each step."""
    shares: list[float] = []

    def decide_with_limit(before: Any, products: Any, multipliers: Any, gate: Any, *rest: Any) -> Decision:
        if not isinstance(gate, AlwaysOpen):
            return decide(before, products, multipliers, gate, *rest)
        powers = np.stack([multipliers**0, multipliers, multipliers**2], 1)
        gradient_sq, cross, penalty_sq = (products[:, :3] * powers).sum(0).tolist()
        shares.append(coherent_share(gradient_sq, cross, penalty_sq, threshold))
        return decide(before, products, multipliers * shares[-1], gate, *rest)

    regularizer.decide = decide_with_limit
    try:
        yield shares
    finally:
        regularizer.decide = decide


def run(strength: float, threshold: float | None, num_folds: int) -> Iterator[dict[str, Any]]:
    """The folds at one strength, limited at a threshold or, at None, behind the gate."""
    recipe = recipe_of([f"penalty.strength={strength!r}"])
    before_refit = 1 - recipe.penalty.refit_share
    for fold, data in enumerate(folds(load_data(recipe.data.name))[:num_folds]):
        with tempfile.TemporaryDirectory() as directory:
            if threshold is None:
                result, imposed = train(recipe, "coherent", fold, data, Path(directory)), None
            else:
                with limited(threshold) as shares:
                    result = train(recipe, "always", fold, data, Path(directory))
                imposed = statistics.fmean(shares[: round(len(shares) * before_refit)])
        yield {
            "strength": strength,
            "way": "gate" if threshold is None else "limit",
            "threshold": recipe.gate.threshold if threshold is None else threshold,
            "fold": fold,
            "accuracy": result.accuracy,
            "compression": result.compression,
            "imposed": result.open_fraction / before_refit if imposed is None else imposed,
        }


def main() -> int:
    """Train what was asked for, and print a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strengths", nargs="+", type=float, default=[0.0125, 0.025, 0.05])
    parser.add_argument("--thresholds", nargs="+", type=float, default=[0.7, 0.9])
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    prepare_process()
    runs = []
    print(f"| {' | '.join(_HEADER)} |\n{'|---' * len(_HEADER)}|", flush=True)
    for strength in arguments.strengths:
        for threshold in (None, *arguments.thresholds):
            for each in run(strength, threshold, arguments.folds):
                runs.append(each)
                print(_row(each), flush=True)
    if arguments.results is not None:
        arguments.results.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"runs": runs}, indent=2) + "\n"
        (arguments.results / "limited-strength.json").write_text(text, encoding="utf-8")
    return 0


def _row(run: dict[str, Any]) -> str:
    size = "nothing left" if run["compression"] is None else f"{run['compression']:.1f}"
    cells = [f"{run['strength']:g}", run["way"], f"{run['threshold']:g}", str(run["fold"])]
    cells += [f"{run['accuracy']:.1%}", size, f"{run['imposed']:.0%}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
