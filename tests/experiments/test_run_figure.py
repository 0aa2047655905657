"""The figure of a run: every quantity, the step that decided, and the verdict above."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.pages import Page
from strongreg import History
from strongreg.diagnosis import RunRecord, diagnose
from strongreg.experiments.engine import EpochMetrics
from strongreg.experiments.errors import UserError
from strongreg.experiments.fate import Fate
from strongreg.experiments.recipe import build_recipe
from strongreg.experiments.run_figure import draw_run

EPOCHS, PER_EPOCH = 40, 25


def _fate(name="always-seed0", every=1, recipe=None, *, dies=True, **changes) -> Fate:
    """A run whose weights fall from step 300 on, or that lives."""
    history = History(["a.weight", "b.weight"])
    for step in range(0, EPOCHS * PER_EPOCH, every):
        fall = math.exp(-max(step - 300, 0) / 20) if dies else 1.0
        values = [0.9 if step < 300 else 0.1, 1.0, 2.0 * fall, 1.0, 10 * max(fall, 0.01)]
        history.append(torch.tensor([values] * 3), torch.tensor(step))
    accuracy = np.array([0.8 if not dies or epoch < 12 else 0.1 for epoch in range(EPOCHS)])
    losses = np.full(EPOCHS, 1.5)
    record = RunRecord(history, 0.1, accuracy, losses, PER_EPOCH, **{"strength": 0.1, "refit_start": 800, **changes})
    epochs = [
        EpochMetrics(i + 1, 0.1, 1.5, float(accuracy[i]), 10, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 2.0 - i / 100)
        for i in range(EPOCHS)
    ]
    return Fate(Path("out/runs") / name, record, epochs, diagnose(record), recipe)


def _texts(fate: Fate, *arguments) -> list[str]:
    return Page(draw_run(fate, *arguments).decode()).texts


def test_a_collapse_is_shown_whole_and_closely_with_the_verdict_above():
    fate = _fate()
    assert fate.diagnosis.verdict == "collapsed"
    texts = _texts(fate)
    assert str(fate.diagnosis).partition("\n")[0] in texts
    assert f"always-seed0: {fate.diagnosis.evidence[0]}" in texts
    assert f"step {fate.diagnosis.step}" in texts
    assert {"epoch", "step", "accuracy (%)", "by chance", "coherence", "gate open", "penalty off"} <= set(texts)
    assert {"loss gradient", "penalty gradient", "weights"} <= set(texts)
    assert not {"threshold 0.7", "loss (nats per byte)"} & set(texts)


def test_the_step_that_decided_is_marked_where_it_is():
    """Its line stands between the numbers of the axis as its number does, in both columns."""
    fate = _fate()
    content = draw_run(fate).decode()
    ticks = [
        (float(x), float(text))
        for x, text in re.findall(r'text-anchor: middle; fill: #596274" x="([\d.]+)"[^>]*>([\d.]+)</text>', content)
    ]
    dashed = [float(x) for x in re.findall(r'<path d="M ([\d.]+) [^"]*"[^>]*stroke-dasharray: 4,2', content)]
    assert len(dashed) == 6
    for found, unit, numbers in ((min(dashed), PER_EPOCH, ticks[:3]), (max(dashed), 1, ticks[-3:])):
        (x0, first), *_, (x1, last) = numbers
        assert (found - x0) / (x1 - x0) * (last - first) + first == pytest.approx(fate.diagnosis.step / unit, abs=0.5)


def test_a_run_that_lived_is_one_column_until_steps_are_asked_for():
    fate = _fate("coherent-seed0", dies=False, recipe=build_recipe({"gate.threshold": 0.6}))
    assert fate.diagnosis.learned
    texts = _texts(fate)
    assert "It learned." in texts
    assert "threshold 0.6" in texts
    assert "step" not in texts
    closer = _texts(fate, (100, 200))
    assert "step" in closer
    assert {"100", "200"} <= set(closer)


def test_a_run_without_penalty_has_no_gate_to_show():
    texts = _texts(_fate("dense-seed0", dies=False, strength=0.0))
    assert not {"coherence", "gate open", "penalty gradient"} & set(texts)
    assert {"accuracy (%)", "loss gradient", "weights"} <= set(texts)


def test_of_a_language_model_the_loss_is_shown():
    recipe = build_recipe({"data.name": "python_stdlib", "model.name": "decoder"})
    texts = _texts(_fate("coherent-seed0", dies=False, recipe=recipe))
    assert "loss (nats per byte)" in texts
    assert not {"accuracy (%)", "by chance"} & set(texts)
    without = _fate("coherent-seed0", dies=False, recipe=recipe)
    without = replace(without, epochs=[replace(epoch, loss=None, train_loss=None) for epoch in without.epochs])
    assert "loss (nats per byte)" in _texts(without)


@pytest.mark.parametrize("every", [1, 2, 40, 900])
def test_a_history_of_any_density_is_drawn_small(every):
    content = draw_run(_fate(every=every))
    assert len(content) < 60_000
    assert b"nan" not in content.lower()


def test_norms_that_are_not_finite_or_0_leave_gaps():
    fate = _fate()
    state = fate.record.history.state_dict()
    state["records"][500:600, -1, 2] = math.inf
    state["records"][600:, -1, 2:] = 0.0
    fate.record.history.load_state_dict(state)
    assert b"nan" not in draw_run(replace(fate, diagnosis=diagnose(fate.record))).lower()


def test_names_with_dollars_and_of_any_length_are_text():
    history = replace(_fate().record)
    history.history.layers[:] = ["a$b$" + "x" * 150, "b$c"]
    fate = replace(_fate(), record=history, diagnosis=diagnose(history))
    texts = _texts(fate)
    assert any("a$b$x" in text for text in texts)


def test_steps_that_were_not_recorded_are_an_error_that_says_which_were():
    with pytest.raises(UserError, match=r"--steps 5000:6000: 0 of these .* choose among those from 0 to 999"):
        draw_run(_fate(), (5000, 6000))
    with pytest.raises(UserError, match=r"1 of these steps recorded"):
        draw_run(_fate(every=100), (0, 99))
