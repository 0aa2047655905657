"""Short runs of known cause get the verdict that names it; the networks are those of benchmarks/fates.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.finished import train_runs
from experiments.recipes import recipe
from strongreg.diagnosis import Diagnosis
from strongreg.experiments.fate import diagnose_run
from strongreg.experiments.recipe import Method

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def fate(monkeypatch, tmp_path):
    """Trains a run, as a process of its own would, and diagnoses it."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    torch.set_flush_denormal(True)

    def trained(method: Method, **changes: object) -> Diagnosis:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        train_runs(folder, recipe(**changes), [method])
        return diagnose_run(folder / f"runs/{method}-seed0")

    yield trained
    torch.set_flush_denormal(False)


def _network(name: str, epochs: int, **changes: object) -> dict[str, object]:
    return {"model": f"fates:{name}", "epochs": epochs, **changes}


def test_a_strong_penalty_that_ends_at_once_is_named_with_its_remedy(fate):
    """Which strengths a network does not survive so depends on how the processor rounds: at one of these it dies."""
    options = {"strength_ramp_share": 0.0, "refit_share": 0.5, "epochs": 15}
    for strength in (0.2, 0.4, 0.35, 0.45, 0.5):
        diagnosis = fate("coherent", penalty="l2", strength=strength, **options)
        if diagnosis.verdict == "switched_off":
            break
        assert diagnosis.verdict in ("learned", "damaged")
    assert (diagnosis.verdict, diagnosis.step) == ("switched_off", 172)
    assert "the penalty ended at step 172" in str(diagnosis)
    assert "shrunk the weights from norm 25.6 to" in str(diagnosis)
    assert "CosineRamp(steps, initial=1, final=0)" in diagnosis.advice[0]
    assert "dead" not in str(diagnosis)


@pytest.mark.parametrize(
    ("name", "layer", "without", "others"),
    [
        ("dead_first", "1.weight", "1.weight and 3.weight", "and not in 5.weight"),
        ("dead_relu", "3.weight", "1.weight, 3.weight and 5.weight", ": what"),
        ("dead_middle", "5.weight", "1.weight, 3.weight, 5.weight and 7.weight", "and not in 9.weight"),
    ],
)
@pytest.mark.parametrize("method", ["dense", "always"])
def test_units_that_are_never_active_are_named_whatever_the_penalty_does(fate, method, name, layer, without, others):
    diagnosis = fate(method, **_network(name, 3, strength=0.05))
    assert (diagnosis.verdict, diagnosis.step, diagnosis.layer) == ("dead_gradients", 0, layer)
    (told,) = [sentence for sentence in diagnosis.evidence if "exactly 0" in sentence]
    assert told.startswith(f"the gradient is exactly 0 in {without}")
    assert others in told
    assert told.endswith(f"what {layer} feeds is never active")


@pytest.mark.parametrize("name", ["zero_weights", "zero_everywhere"])
def test_weights_that_begin_at_zero_are_a_stall_that_names_the_initialization(fate, name):
    diagnosis = fate("dense", **_network(name, 4))
    assert (diagnosis.verdict, diagnosis.layer) == ("stalled", "1.weight")
    assert "the weights of 1.weight, 3.weight and 5.weight began at exactly 0" in diagnosis.evidence
    assert "initialize them at random" in diagnosis.advice[0]


def test_a_last_layer_that_begins_at_zero_is_no_mistake(fate):
    assert fate("dense", **_network("zero_last", 5)).verdict == "learned"


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 8, "weight_decay": 0.5},
        {"epochs": 15, "weight_decay": 5.0, "optimizer__name": "adamw", "lr": 0.01},
    ],
    ids=["sgd", "adamw"],
)
def test_a_weight_decay_that_takes_the_weights_away_is_named(fate, changes):
    diagnosis = fate("dense", **changes)
    assert diagnosis.verdict == "decayed"
    assert "the weights fell from norm 25.6 to " in str(diagnosis)
    assert diagnosis.advice == (f"lower the weight decay (it was {changes['weight_decay']:g})",)


@pytest.mark.slow
def test_a_decay_after_a_step_that_was_too_large_is_not_the_cause(fate):
    diagnosis = fate("dense", epochs=12, lr=0.2, weight_decay=0.01)
    assert diagnosis.verdict == "dead_gradients"
    assert any(sentence.startswith("the weights grew from norm 25.6 to") for sentence in diagnosis.evidence)
    assert "lower the learning rate" in diagnosis.advice[0]


@pytest.mark.slow
def test_a_penalty_after_a_step_that_was_too_large_is_not_the_cause(fate):
    constant = {"strength_ramp_share": 0.0, "refit_share": 0.0}
    assert fate("always", penalty="l2", strength=0.01, epochs=12, lr=0.2, **constant).verdict == "dead_gradients"


def test_a_network_that_is_given_other_images_in_evaluation_has_memorized(fate):
    diagnosis = fate("dense", **_network("Unprepared", 25))
    assert diagnosis.verdict == "memorized"
    assert "how the images of the test are prepared" in diagnosis.advice[0]
