"""What each method attaches to which optimizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from experiments.recipes import NEEDS_MUON, recipe
from strongreg import L1, AlwaysOpen, CoherenceGate, Constant, CosineRamp, Delay, Refit
from strongreg.experiments.engine import build_regularizers, check_method
from strongreg.experiments.engine.optimizers import build_optimizers
from strongreg.experiments.errors import UserError
from strongreg.experiments.models import build_model
from strongreg.experiments.recipe import METHODS, build_penalty

NUM_STEPS = 100


def _build(method, model=None, **changes):
    settings = recipe(**changes)
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(16, 30), nn.ReLU(), nn.Linear(30, 20), nn.Linear(20, 3))
    optimizers = build_optimizers(model, settings.optimizer)
    return build_regularizers(model, settings, method, optimizers, NUM_STEPS), optimizers, settings, model


def _normalized() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
    )


def _step(model, optimizers, size=8) -> None:
    images, labels = torch.rand(16, 1, size, size), torch.arange(16) % 3
    for optimizer in optimizers:
        optimizer.zero_grad()
    functional.cross_entropy(model(images), labels).backward()
    for optimizer in optimizers:
        optimizer.step()


def test_methods_with_a_penalty_differ_in_nothing_but_the_gate():
    built = {method: _build(method)[0] for method in ("always", "delayed", "coherent")}
    assert all(len(regularizers) == 1 for regularizers in built.values())
    gates = {method: regularizer.gate for method, (regularizer,) in built.items()}
    assert gates == {"always": AlwaysOpen(), "delayed": Delay(17), "coherent": CoherenceGate(0.7)}
    for method, (regularizer,) in built.items():
        start = 17 if method == "delayed" else 0
        assert regularizer.schedule == Refit(50, before=CosineRamp(20, initial=1.0, final=0.2, start=start))
        assert {target.penalty for target in regularizer.targets} == {build_penalty(recipe())}


def test_the_gates_scope_and_the_penaltys_mode_are_those_of_the_recipe():
    (regularizer,), *_ = _build("coherent", gate__scope="layer", penalty__mode="gradient", gate_threshold=0.2)
    assert regularizer.gate == CoherenceGate(0.2, scope="layer")
    assert regularizer.mode == "gradient"


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("always", "delayed", "coherent", "slimming")])
def test_methods_without_a_penalty_measure_at_strength_0(method):
    (regularizer,), optimizers, _, model = _build(method)
    assert {target.penalty for target in regularizer.targets} == {L1(0.0)}
    assert regularizer.gate == AlwaysOpen()
    assert regularizer.schedule == Constant()
    _step(model, optimizers, size=4)
    assert len(regularizer.history) == 1


@pytest.mark.parametrize(("ramp", "refit"), [(0.0, 0.5), (0.2, 0.0), (0.0, 0.0)])
def test_a_share_of_0_is_no_part_of_the_schedule(ramp, refit):
    (regularizer,), *_ = _build("always", strength_ramp_share=ramp, refit_share=refit)
    before = CosineRamp(20, initial=1.0, final=0.2, start=0) if ramp else Constant()
    assert regularizer.schedule == (Refit(50, before=before) if refit else before)


# ---------------------------------------------------------------------- several optimizers


@pytest.mark.parametrize("method", ["dense", "coherent"])
@NEEDS_MUON
def test_muon_has_a_regularizer_for_each_of_its_two_optimizers_the_larger_one_first(method):
    regularizers, optimizers, _, model = _build(method, optimizer__name="muon")
    assert [type(optimizer).__name__ for optimizer in optimizers] == ["Muon", "AdamW"]
    assert [[t.name for t in r.targets] for r in regularizers] == [["1.weight", "3.weight"], ["4.weight"]]
    assert regularizers[0].gate == regularizers[1].gate
    assert regularizers[0].schedule == regularizers[1].schedule
    for _ in range(3):
        _step(model, optimizers, size=4)
    assert [len(regularizer.history) for regularizer in regularizers] == [3, 3]


@NEEDS_MUON
def test_the_regularizer_of_the_most_weights_is_the_first_whichever_optimizer_holds_them():
    model = build_model("plain_cnn", (1, 8, 8), 10)
    regularizers, *_ = _build("always", model, optimizer__name="muon")
    sizes = [sum(target.param.numel() for target in regularizer.targets) for regularizer in regularizers]
    assert sizes == sorted(sizes, reverse=True)
    held = [target.name for regularizer in regularizers for target in regularizer.targets]
    assert sorted(held) == sorted(name for name, p in model.named_parameters() if p.dim() > 1)


# ---------------------------------------------------------------------- slimming


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("muon", marks=NEEDS_MUON)])
def test_slimming_penalizes_the_scales_until_the_channels_go(optimizer):
    changes = {"optimizer__name": optimizer, "pruning__end_share": 0.3, "pruning__slimming_strength": 0.01}
    regularizers, optimizers, _, model = _build("slimming", _normalized(), **changes)
    *counted, scales = regularizers
    assert [target.name for target in scales.targets] == ["1.weight"]
    assert {target.penalty for target in scales.targets} == {L1(0.01)}
    assert (scales.schedule, scales.mode, scales.history.every) == (Refit(30), "gradient", 0)
    weights = [target.name for regularizer in counted for target in regularizer.targets]
    assert sorted(weights) == ["0.weight", "4.weight"]
    assert all(target.penalty == L1(0.0) for regularizer in counted for target in regularizer.targets)
    _step(model, optimizers)


def test_the_penalty_on_the_scales_is_its_gradient_and_ends_with_the_pruning():
    pulled = []
    for strength in (0.0, 0.5):
        torch.manual_seed(1)
        _, optimizers, _, model = _build(
            "slimming", _normalized(), pruning__slimming_strength=strength, pruning__end_share=0.01, momentum=0.0
        )
        steps = []
        for _ in range(2):
            before = model[1].weight.detach().clone()
            torch.manual_seed(2)
            _step(model, optimizers)
            steps.append(model[1].weight.detach() - before)
        pulled.append(steps)
    (free, _), (pull, after) = pulled
    assert torch.allclose(pull - free, torch.full_like(pull, -0.02 * 0.5), atol=1e-7)  # lr * strength * sign(1)
    assert after.abs().max() < 0.02 * 0.5  # the second step is beyond the pruning


@pytest.mark.parametrize("method", METHODS)
def test_only_slimming_needs_normalization(method):
    check_method(method, _normalized(), recipe(pruning__compression=1.0), 100)
    if method != "slimming":
        check_method(method, nn.Linear(2, 2), recipe(), 100)
    else:
        for model in (nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))):
            with pytest.raises(UserError, match=r"slimming needs batch normalization .*--set model\.norm=batch"):
                check_method(method, model, recipe(), 100)


def test_slimming_is_refused_before_the_training_where_it_cannot_reach_its_target():
    model = _normalized()  # 1224 weights, of which 7 filters of 9 can go
    check_method("slimming", model, recipe(pruning__compression=1.05), 100)
    with pytest.raises(UserError, match=r"compression=1\.06: slimming.* reaches 1\.05 at most .* to 1\.05 or less"):
        check_method("slimming", model, recipe(pruning__compression=1.06), 100)


def test_slimming_without_a_layer_for_it_is_the_same_error_when_it_is_trained():
    with pytest.raises(UserError, match=r"slimming needs batch normalization"):
        _build("slimming")
