"""What the processes of torchrun do in test_distributed: they train every case and say what each of them found."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.recipes import recipe
from strongreg.experiments.data import ImageData, load_data
from strongreg.experiments.engine import RunStoppedError, loop, train
from strongreg.experiments.engine.distributed import World, end_process, joined
from strongreg.experiments.models import build_model
from strongreg.experiments.recipe import Recipe

NAME = "experiments.engine.together"
NUM_TRAIN = 257


class _Double(nn.Sequential):
    """Computes in float64, so that another order of summation is lost in the last of 16 digits."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.double())


def double(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    num_inputs = image_shape[0] * image_shape[1] * image_shape[2]
    return _Double(nn.Flatten(), nn.Linear(num_inputs, 64), nn.ReLU(), nn.Linear(64, num_classes)).double()


def restless(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Draws random numbers and has buffers."""
    num_inputs = image_shape[0] * image_shape[1] * image_shape[2]
    hidden = [nn.Linear(num_inputs, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3)]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, num_classes))


def data() -> ImageData:
    return load_data("digits", num_train=NUM_TRAIN)


def small(**changes: Any) -> Recipe:
    return recipe(
        **({"model": f"{NAME}:double", "epochs": 6, "batch_size": 64, "lr": 0.03, "strength": 0.01} | changes)
    )


def _train(case: dict[str, Any], directory: Path, images: ImageData, world: World) -> dict[str, Any]:
    """Train one case; stopped each time after so many steps, by the last process only."""
    result, num_stops = None, 0
    is_last = world.rank == world.size - 1
    for steps in [*case["stop_after"], 0]:
        stops = iter([False] * (steps - 1) + [is_last]) if steps else itertools.repeat(False)
        try:
            result = train(
                small(**case["changes"]), case["method"], 0, images, directory, should_stop=stops.__next__, world=world
            )
        except RunStoppedError:
            num_stops += 1
            if case["leave"]:
                break
    return {"epochs": result and result.epochs, "num_stops": num_stops}


def _kept(models: list[nn.Module]) -> Callable[..., nn.Module]:
    """Builds networks, and adds them to a list."""

    def build(*arguments: Any, **options: Any) -> nn.Module:
        models.append(build_model(*arguments, **options))
        return models[-1]

    return build


def _digest(tensors: Iterable[Tensor]) -> str:
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


def main() -> None:
    """Arguments: where to write, and a JSON object of cases by name."""
    out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    images, found, models = data(), {}, []
    loop.build_model = _kept(models)
    with joined() as world:
        for name, case in cases.items():
            # only the first process may touch files: the others are given a folder that does not exist
            directory = out / name if world.is_main else Path("/nowhere")
            if world.is_main:
                directory.mkdir()
            outcome = _train(case, directory, images, world)
            found[name] = {**outcome, "params": _digest(models[-1].parameters()), "draw": torch.rand(1).item()}
    (out / f"process{world.rank}.json").write_text(json.dumps(found))


def leave_at_once() -> None:
    """End right after a message, while gloo's threads have hardly had a turn: they abort a shutdown of Python."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sys.setswitchinterval(1000)
    with joined() as world:
        world.parallel(nn.Linear(4, 4))(torch.ones(2, 4)).sum().backward()
        for thread in {int(folder.name) for folder in Path("/proc/self/task").iterdir()} - {os.getpid()}:
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
        for _ in range(20):
            world.on_main(lambda: 3)


if __name__ == "__main__":
    main() if len(sys.argv) > 1 else leave_at_once()
    end_process(0)
