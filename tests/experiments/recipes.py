"""Short names for the keys that tests change most."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from strongreg.experiments.recipe import Recipe, build_recipe

NEEDS_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")

_KEYS = {
    "model": "model.name",
    "data": "data.name",
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "device": "training.device",
    "penalty": "penalty.name",
    "strength": "penalty.strength",
    "refit_share": "penalty.refit_share",
    "strength_ramp_share": "penalty.ramp_share",
    "gate_threshold": "gate.threshold",
    "delay_share": "gate.delay_share",
    "lr": "optimizer.lr",
    "lr_hold_share": "optimizer.hold_share",
    "momentum": "optimizer.momentum",
    "weight_decay": "optimizer.weight_decay",
}


def recipe(**changes: Any) -> Recipe:
    """The default recipe with changes: short names, or section__key."""
    return build_recipe({_KEYS.get(name, name.replace("__", ".")): value for name, value in changes.items()})
