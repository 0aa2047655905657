"""The search for the tolerance level: brackets, verdicts, and a directory that keeps what was tried."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from experiments.recipes import recipe
from strongreg.experiments.drawing import draw_tolerance
from strongreg.experiments.errors import UserError
from strongreg.experiments.tolerance import Probe, Tolerance, ToleranceStudy, search


def _find(level: float, start: float, precision: float = 1.2) -> list[float]:
    """Search where strengths up to the level are endured."""
    tried, searching = [], search("always", start, precision)
    strength = next(searching)
    while True:
        tried.append(strength)
        try:
            strength = searching.send(strength <= level)  # type: ignore[attr-defined]
        except StopIteration:
            return tried


@pytest.mark.parametrize("level", [3e-5, 0.001, 0.01, 0.0123, 0.7, 50.0])
@pytest.mark.parametrize("start", [0.01, 1.0])
def test_the_level_is_bracketed_within_the_precision(level, start):
    tried = _find(level, start)
    endured, failed = max(s for s in tried if s <= level), min(s for s in tried if s > level)
    assert failed / endured <= 1.2
    assert len(set(tried)) == len(tried) <= 20


@pytest.mark.parametrize("level", [0.0, math.inf])
def test_a_level_beyond_all_bounds_ends_the_search(level):
    assert len(_find(level, 0.01)) < 20


@pytest.mark.parametrize(
    ("start", "precision", "words"), [(0.0, 1.2, "strength=0"), (-1.0, 1.2, "strength"), (1.0, 1.0, "precision=1")]
)
def test_bad_numbers_are_an_error(start, precision, words):
    with pytest.raises(UserError, match=words):
        next(search("always", start, precision))


SHORT = {"model": "lenet300", "epochs": 6, "strength": 0.05, "strength_ramp_share": 0.0}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tolerance") / "new"
    study, listener = (
        ToleranceStudy(recipe(**SHORT), ["always"], [0], directory, precision=3.0),
        Mock(spec=["on_probe"]),
    )
    return study, study.run(1, listener), listener


def test_the_level_separates_probes_that_learned_from_those_that_did_not(found):
    study, (level,), listener = found
    assert [call.args[0] for call in listener.on_probe.call_args_list] == study.probes
    assert level.failed / level.endured <= 3.0
    assert level.reason == "died"
    dense, chance = study.dense[0].accuracy, study.dense[0].chance
    for probe in study.probes:
        assert probe.endured == (probe.accuracies[0] >= chance + 0.5 * (dense - chance))
        assert probe.endured == (probe.strength <= level.endured)
    assert level.accuracy == max((p.strength, p.accuracies[0]) for p in study.probes if p.endured)[1]


def test_the_directory_holds_the_levels_and_every_run(found):
    study, (level,), _ = found
    content = json.loads((study.directory / "tolerance.json").read_text())
    assert content["tolerance"][0]["endured"] == level.endured
    assert len(content["probes"]) == len(study.probes)
    assert len(list((study.directory / "runs").glob("*/result.json"))) == len(study.probes) + 1


def test_a_study_that_is_opened_again_trains_nothing_twice(found):
    study, levels, _ = found
    before = {file: file.stat().st_mtime_ns for file in study.directory.glob("runs/*/*")}
    again = ToleranceStudy(recipe(**SHORT), ["always"], [0], study.directory, precision=3.0)
    assert again.run(1, Mock(spec=["on_probe"])) == levels
    assert {file: file.stat().st_mtime_ns for file in study.directory.glob("runs/*/*")} == before
    with pytest.raises(UserError, match="another recipe"):
        ToleranceStudy(recipe(**{**SHORT, "epochs": 7}), ["always"], [0], study.directory)


def test_a_gate_that_hardly_opens_does_not_count_as_endurance(tmp_path):
    closed = recipe(**{**SHORT, "epochs": 3, "gate_threshold": 1.0})
    (level,) = ToleranceStudy(closed, ["coherent"], [0], tmp_path, precision=1e9).run(1, Mock(spec=["on_probe"]))
    assert (level.endured, level.reason) == (0.0, "hardly acted")


def test_where_images_are_held_out_the_test_images_choose_nothing(tmp_path, monkeypatch):
    """Whatever the test images say, the level is the one of the validation images."""
    studies = [
        ToleranceStudy(recipe(**SHORT, data__validation_share=0.2), ["always"], [0], tmp_path / name, precision=6.0)
        for name in ("true", "false")
    ]
    judge = studies[1]._judge
    monkeypatch.setattr(studies[1], "_judge", lambda m, results: judge(m, [replace(r, accuracy=0.11) for r in results]))
    first, second = (study.run(1, Mock(spec=["on_probe"])) for study in studies)
    assert first == second


def test_a_network_that_learns_nothing_without_a_penalty_is_an_error(tmp_path):
    study = ToleranceStudy(recipe(**{**SHORT, "epochs": 1, "lr": 1e-9}), ["always"], [0], tmp_path / "new")
    with pytest.raises(UserError, match=r"dense, seed 0, reaches .*%, which is chance.*optimizer.lr"):
        study.run(1, Mock(spec=["on_probe"]))


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        ToleranceStudy(recipe(**SHORT), ["always"], [0], tmp_path / "file" / "below")


def test_the_drawing_shows_every_probe(tmp_path):
    probes = [
        Probe("always", 0.1, (0.9,), (2.0,), (0.5,), endured=True, silent=False),
        Probe("always", 0.2, (0.1,), (None,), (0.5,), endured=False, silent=False),
        Probe("coherent", 0.4, (0.9, 0.8), (2.0, 2.0), (0.0, 0.0), endured=False, silent=True),
    ]
    levels = [
        Tolerance("always", 0.1, 0.2, "died", 0.9, 2.0, 0.5),
        Tolerance("coherent", 0.0, 0.4, "hardly acted", math.nan, math.nan, math.nan),
    ]
    text = draw_tolerance(probes, levels)
    assert text.startswith("<svg")
    assert {"always", "coherent", "strength"} <= set(text.replace("<", ">").split(">"))
    file: Path = tmp_path / "a.svg"
    file.write_text(text, encoding="utf-8")
