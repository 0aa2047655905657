"""Trains runs whose fate is known and counts how many `strongreg diagnose` gets right.

    python benchmarks/fates.py [--out FOLDER] [--json FILE] [--data-dir FOLDER]

Also gives the number behind the live warning: the largest smoothed ratio of penalty gradient to loss gradient once the
weights had fallen to half their first norm, in runs that lived and in runs that the penalty killed. The digits runs
were at hand when the rules were written; those of Fashion-MNIST were not.

Which strengths of L2 a network does not survive the end of depends on how the processor rounds: of these runs several
strengths are trained in turn until one ends at chance by its test accuracy, whatever the verdict on it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from strongreg.collapse import NUM_SMOOTHED, SHRUNK
from strongreg.diagnosis.record import is_above_chance
from strongreg.experiments.engine import load_history, load_result
from strongreg.experiments.fate import diagnose_run
from strongreg.experiments.pool import Task, TaskPool
from strongreg.experiments.recipe import build_recipe

DEAD_RELU = "fates:dead_relu"
NO_RELAXING = {"penalty.name": "l2", "penalty.ramp_share": 0.0, "penalty.refit_share": 0.5}
SWITCHED_OFF = (0.2, 0.4, 0.35, 0.45, 0.5), (0.3, 0.4, 0.35, 0.45, 0.5)
GROWING_L2 = {"penalty.name": "l2", "penalty.strength": 0.001, "penalty.ramp_share": 0.7, "penalty.refit_share": 0.0}
L2_CONSTANT = {"penalty.name": "l2", "penalty.ramp_share": 0.0}
LENET = {"model.name": "lenet300"}
FASHION = {"data.name": "fashion_mnist", "data.num_train": 2000, **LENET}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("learned", "dense", {"training.epochs": 25}),
    ("learned", "dense", {"training.epochs": 25, **LENET}),
    ("learned", "coherent", {"training.epochs": 60}),
    ("learned", "always", {"training.epochs": 30, "penalty.strength": 0.0008}),
    ("learned", "always", {"training.epochs": 30, "penalty.strength": 0.002, **LENET}),
    ("learned", "coherent", {"training.epochs": 40, "penalty.strength": 0.1, **L2_CONSTANT}),
    ("collapsed", "always", {"training.epochs": 25}),
    ("collapsed", "always", {"training.epochs": 25, "penalty.strength": 0.05}),
    ("collapsed", "always", {"training.epochs": 25, "penalty.strength": 0.3, **LENET}),
    ("collapsed", "always", {"training.epochs": 40, "penalty.strength": 0.1, **L2_CONSTANT}),
    ("collapsed", "always", {"training.epochs": 40, "penalty.strength": 1.0, **L2_CONSTANT}),
    ("collapsed", "delayed", {"training.epochs": 30, "penalty.strength": 0.1}),
    ("collapsed", "always", {"training.epochs": 25, "penalty.name": "group_l2", "penalty.strength": 0.1}),
    ("diverged", "dense", {"training.epochs": 10, "optimizer.lr": 5.0}),
    ("diverged", "dense", {"training.epochs": 10, "optimizer.lr": 0.5}),
    ("diverged", "dense", {"training.epochs": 10, "optimizer.lr": 100.0, **LENET}),
    ("dead_gradients", "dense", {"training.epochs": 10, "model.name": DEAD_RELU}),
    ("dead_gradients", "coherent", {"training.epochs": 10, "model.name": DEAD_RELU}),
    ("stalled", "dense", {"training.epochs": 5, "optimizer.lr": 1e-7}),
    ("penalty_never_acted", "coherent", {"training.epochs": 25, "penalty.strength": 100.0, "gate.threshold": 0.99}),
    ("penalty_never_acted", "coherent", {"training.epochs": 25, "gate.threshold": 1.0}),
    ("penalty_never_acted", "delayed", {"training.epochs": 25, "gate.delay_share": 1.0, "penalty.refit_share": 0.0}),
    ("learned", "dense", {"training.epochs": 15, **FASHION}),
    ("learned", "coherent", {"training.epochs": 30, "penalty.strength": 0.003, **FASHION}),
    ("collapsed", "always", {"training.epochs": 15, "penalty.strength": 0.2, **FASHION}),
    ("collapsed", "always", {"training.epochs": 30, "penalty.strength": 2.0, **L2_CONSTANT, **FASHION}),
    ("diverged", "dense", {"training.epochs": 8, "optimizer.lr": 50.0, **FASHION}),
    ("penalty_never_acted", "coherent", {"training.epochs": 15, "penalty.strength": 50.0, **FASHION}),
    ("dead_gradients", "dense", {"training.epochs": 8, **FASHION, "model.name": DEAD_RELU}),
    # the penalty ends at once at full learning rate, or relaxes to 0 before
    ("switched_off", "coherent", {"training.epochs": 15, "penalty.strength": SWITCHED_OFF[0], **NO_RELAXING}),
    ("switched_off", "coherent", {"training.epochs": 30, "penalty.strength": SWITCHED_OFF[1], **NO_RELAXING}),
    (
        "learned",
        "coherent",
        {"training.epochs": 15, "penalty.strength": 0.2, **NO_RELAXING}
        | {"penalty.ramp_share": 0.5, "penalty.final_factor": 0.0},
    ),
    # dead by the network or by the learning rate, under a penalty or a weight decay that has nothing to do with it
    ("dead_gradients", "dense", {"training.epochs": 5, "model.name": "fates:dead_first"}),
    ("dead_gradients", "always", {"training.epochs": 15, "model.name": "fates:dead_middle"}),
    (
        "dead_gradients",
        "always",
        {
            "training.epochs": 20,
            "optimizer.lr": 0.2,
            "penalty.strength": 0.01,
            **L2_CONSTANT,
            "penalty.refit_share": 0.0,
        },
    ),
    ("dead_gradients", "dense", {"training.epochs": 20, "optimizer.lr": 0.2, "optimizer.weight_decay": 0.01}),
    ("stalled", "dense", {"training.epochs": 5, "model.name": "fates:zero_weights"}),
    ("stalled", "dense", {"training.epochs": 5, "model.name": "fates:zero_everywhere"}),
    ("learned", "dense", {"training.epochs": 5, "model.name": "fates:zero_last"}),
    ("decayed", "dense", {"training.epochs": 8, "optimizer.weight_decay": 0.5}),
    ("decayed", "dense", {"training.epochs": 20, "optimizer.weight_decay": 0.1}),
    (
        "decayed",
        "dense",
        {"training.epochs": 15, "optimizer.name": "adamw", "optimizer.lr": 0.01, "optimizer.weight_decay": 5.0},
    ),
    ("collapsed", "always", {"training.epochs": 40, **GROWING_L2, "penalty.final_factor": 1000.0}),
    ("collapsed", "delayed", {"training.epochs": 20, "penalty.strength": 0.1, "penalty.refit_share": 0.0}),
    ("memorized", "dense", {"training.epochs": 25, "model.name": "fates:Unprepared"}),
    ("dead_gradients", "dense", {"training.epochs": 5, **FASHION, "model.name": "fates:dead_first"}),
    ("dead_gradients", "always", {"training.epochs": 10, **FASHION, "model.name": "fates:dead_middle"}),
    ("stalled", "dense", {"training.epochs": 5, **FASHION, "model.name": "fates:zero_weights"}),
    ("learned", "dense", {"training.epochs": 5, **FASHION, "model.name": "fates:zero_last"}),
    ("decayed", "dense", {"training.epochs": 10, **FASHION, "optimizer.weight_decay": 2.0}),
    ("collapsed", "always", {"training.epochs": 25, **FASHION, **GROWING_L2, "penalty.final_factor": 5000.0}),
]


def perceptron(image_shape: tuple[int, int, int], num_classes: int, num_hidden: int = 2) -> nn.Sequential:
    """A network of linear layers, at the positions 1, 3, 5 and so on."""
    width = math.prod(image_shape)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(num_hidden):
        layers += [nn.Linear(width, 64), nn.ReLU()]
        width = 64
    return nn.Sequential(*layers, nn.Linear(width, num_classes))


def dead_relu(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A network whose second hidden layer is never active."""
    model = perceptron(image_shape, num_classes)
    nn.init.constant_(model[3].bias, -100.0)
    return model


def dead_first(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A network whose first hidden layer is never active; what lies behind reads constants and has gradients."""
    model = perceptron(image_shape, num_classes)
    nn.init.constant_(model[1].bias, -50.0)
    return model


def dead_middle(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A network whose third hidden layer of four is never active."""
    model = perceptron(image_shape, num_classes, num_hidden=4)
    nn.init.constant_(model[5].bias, -50.0)
    return model


def zero_weights(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A network whose weights, not its biases, begin at 0."""
    model = perceptron(image_shape, num_classes)
    for layer in model[1::2]:
        nn.init.zeros_(layer.weight)
    return model


def zero_everywhere(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A network that begins at 0."""
    model = perceptron(image_shape, num_classes)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def zero_last(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A network whose last layer begins at 0, which is no mistake."""
    model = perceptron(image_shape, num_classes)
    nn.init.zeros_(model[-1].weight)
    return model


class Unprepared(nn.Module):
    """A network that is given other images in evaluation than in training."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.layers = perceptron(image_shape, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.layers(images if self.training else 0 * images)


def takeover_ratio(folder: Path) -> float | None:
    """The largest smoothed ratio once the weights had fallen to half; None if they never did."""
    history = load_history(folder / "history.safetensors")
    gradient, penalty, weight, opened = (
        torch.from_numpy(history[name].astype(np.float64))
        for name in ("gradient_norm", "penalty_norm", "weight_norm", "open")
    )
    if len(weight) < NUM_SMOOTHED:
        return None

    def smooth(values: Tensor) -> Tensor:
        return values.unfold(0, NUM_SMOOTHED, 1).mean(dim=1)

    ratio = smooth(penalty * (opened > 0)) / smooth(gradient).clamp(min=1e-30)
    shrunk = weight[NUM_SMOOTHED - 1 :] < SHRUNK * weight[0]
    return float(ratio[shrunk].max()) if shrunk.any() else None


def _strengths(changes: dict[str, Any]) -> tuple[Any, ...]:
    """The strengths to be tried."""
    strength = changes.get("penalty.strength")
    return strength if isinstance(strength, tuple) else (strength,)


def _train(out: Path, data_dir: Path | None) -> list[tuple[Path, dict[str, Any]]]:
    """Train all cases; of several strengths until one ends at chance. Gives folder and changes of each case."""
    trained: dict[int, tuple[Path, dict[str, Any]]] = {}
    with TaskPool(os.cpu_count() or 1) as pool:
        pending: dict[Any, tuple[int, int]] = {}

        def begin(i: int, attempt: int) -> None:
            _, method, changes = CASES[i]
            strengths = _strengths(changes)
            name = f"{i:02d}-{method}"
            folder = out / (name if len(strengths) == 1 else f"{name}-{attempt}")
            chosen = changes if len(strengths) == 1 else {**changes, "penalty.strength": strengths[attempt]}
            trained[i] = folder, chosen
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / "result.json").exists():
                end(i, attempt)
                return
            task = Task(build_recipe(chosen), method, 0, folder, data_dir)  # type: ignore[arg-type]
            pending[pool.submit(task)] = (i, attempt)

        def end(i: int, attempt: int) -> None:
            result = load_result(trained[i][0] / "result.json")
            if attempt + 1 < len(_strengths(CASES[i][2])) and is_above_chance(result.accuracy, result.chance):
                begin(i, attempt + 1)

        for i in range(len(CASES)):
            begin(i, 0)
        while pending:
            for future in pool.wait(set(pending)):
                future.result()
                end(*pending.pop(future))
    return [trained[i] for i in range(len(CASES))]


def main() -> int:
    """Train, diagnose, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--data-dir", type=Path, default=None)
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    sys.path.insert(0, str(Path(__file__).parent))
    warnings.simplefilter("ignore")
    out = arguments.out or Path(tempfile.mkdtemp())
    rows = []
    for (folder, changes), (fate, method, _) in zip(_train(out, arguments.data_dir), CASES, strict=True):
        verdict, ratio = diagnose_run(folder).verdict, takeover_ratio(folder)
        rows.append({"fate": fate, "method": method, "changes": changes, "verdict": verdict, "takeover_ratio": ratio})
        sign = "right" if verdict == fate else "WRONG"
        shown = "-" if ratio is None else f"{ratio:.2g}"
        print(f"{sign}  {fate:20} {verdict:20} ratio {shown:>6}  {method} {changes}")
    num_right = sum(row["fate"] == row["verdict"] for row in rows)
    ratios = {
        fate: [row["takeover_ratio"] for row in rows if row["fate"] == fate and row["takeover_ratio"] is not None]
        for fate in ("learned", "collapsed")
    }
    print(
        f"{num_right} of {len(rows)} verdicts right; ratio at most {max(ratios['learned']):.2g} in runs that lived, "
        f"at least {min(ratios['collapsed']):.2g} in runs that the penalty killed"
    )
    if arguments.json is not None:
        content = {"num_right": num_right, "num_runs": len(rows), "runs": rows}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
