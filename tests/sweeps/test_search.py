"""A search with one's own training function: what it tries, keeps and tells."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch

import strongreg
from strongreg.sweeps import SearchResult, SearchTrial, storage
from strongreg.sweeps.result import undominated
from strongreg.sweeps.trials import SearchRange, TrialQueue


def _train(strength: float) -> tuple[float, float]:
    if strength > 0.1:
        raise strongreg.DeadRunError
    return 0.95 - strength, 1 + 100 * strength


# ---------------------------------------------------------------------- front and choice


def _brute_force(points: list[tuple[float, float]]) -> list[int]:
    def is_beaten(mine: tuple[float, float]) -> bool:
        return any(x >= mine[0] and y >= mine[1] and (x, y) != mine for x, y in points)

    return [i for i, point in enumerate(points) if not is_beaten(point)]


def test_the_front_is_that_of_comparing_every_pair():
    source = random.Random(0)
    for num_points, num_values in itertools.product([0, 1, 2, 5, 30], [2, 5, 1000]):
        for _ in range(20):
            points = [(source.randrange(num_values) / 7, source.randrange(num_values) / 3) for _ in range(num_points)]
            assert sorted(undominated(points)) == _brute_force(points), points
    assert sorted(undominated([(0.5, math.inf), (0.9, 2.0), (0.5, 3.0)])) == [0, 1]
    assert undominated([(0.5, -math.inf)]) == [0]


RESULT = SearchResult(
    (
        SearchTrial(3, 0.001, 0.98, 1.5),
        SearchTrial(0, 0.01, 0.975, 20.0),
        SearchTrial(1, 0.02, 0.97, 10.0),
        SearchTrial(2, 0.03, 0.9, 50.0),
        SearchTrial(4, 1.0, math.nan, math.nan),
    )
)


def test_the_choice_is_the_smallest_network_that_is_accurate_enough():
    assert [trial.number for trial in RESULT.front] == [3, 0, 2]
    assert RESULT.best().number == 0  # within a point of the best
    assert RESULT.best(max_loss=0.001).number == 3
    assert RESULT.best(max_loss=1).number == 2
    assert RESULT.best(min_accuracy=0.9).number == 2
    assert RESULT.best(min_accuracy=0.98).number == 3


def test_a_choice_that_there_is_not_is_an_error():
    with pytest.raises(ValueError, match=r"min_accuracy=0.99: the most accurate trial reaches 0.98"):
        RESULT.best(min_accuracy=0.99)
    with pytest.raises(ValueError, match="max_loss=nan"):
        RESULT.best(max_loss=math.nan)
    with pytest.raises(ValueError, match=r"every one of the 1 finished trials is dead.*smaller strengths"):
        SearchResult(RESULT.trials[-1:]).best()


# ---------------------------------------------------------------------- strengths


@pytest.mark.parametrize("num_trials", [2, 5, 8, 21, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_strengths_fill_the_range_evenly_in_the_logarithm_however_many_there_are(num_trials, seed):
    low, high = 1e-4, 1.0
    strengths = sorted(SearchRange(low, high, seed).strength_of(i) for i in range(num_trials))
    assert low <= strengths[0] <= strengths[-1] <= high
    positions = [math.log(s / low) / math.log(high / low) for s in strengths]
    gaps = [b - a for a, b in itertools.pairwise([*positions, positions[0] + 1])]
    assert max(gaps) < 2.7 / num_trials
    assert min(gaps) > 0.3 / num_trials


def test_strengths_depend_on_the_seed_and_on_nothing_else():
    found = [[t.strength for t in _search(seed=seed).trials] for seed in (0, 0, 1)]
    assert found[0] == found[1]
    assert set(found[0]).isdisjoint(found[2])
    assert {t.strength for t in _search(num_trials=4).trials} < {t.strength for t in _search(num_trials=7).trials}


def _search(train=_train, low=1e-3, high=1.0, num_trials=5, **options) -> SearchResult:
    return strongreg.search_strength(train, low, high, num_trials=num_trials, **options)


# ---------------------------------------------------------------------- search


def test_dead_runs_are_pruned_and_the_others_have_the_values_of_the_function():
    found = _search(num_trials=8)
    assert len(found.trials) == 8
    assert [trial.strength for trial in found.trials] == sorted(trial.strength for trial in found.trials)
    for trial in found.trials:
        assert trial.is_dead == (trial.strength > 0.1)
        if not trial.is_dead:
            assert (trial.accuracy, trial.compression) == _train(trial.strength)
    assert 0 < sum(trial.is_dead for trial in found.trials) < 8
    assert all(_search(lambda _, value=value: value).trials[0].is_dead for value in [(math.nan, 1.0), (0.9, math.nan)])


def test_the_same_call_goes_on_and_trains_nothing_twice(tmp_path):
    url, tried = f"sqlite:///{tmp_path / 'a {b} c.db'}", []

    def train(strength: float) -> tuple[float, float]:
        tried.append(strength)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return _train(strength)

    with pytest.raises(KeyboardInterrupt):
        _search(train, storage=url)
    assert len(tried) == 3
    found = _search(train, storage=url)
    assert len(tried) == 6
    assert sorted(tried) == sorted([*(trial.strength for trial in found.trials), tried[2]])
    assert repr(_search(train, storage=url)) == repr(found)  # NaN is not NaN
    more = _search(train, storage=url, num_trials=7)
    assert len(tried) == 8
    assert {trial.number for trial in found.trials} < {trial.number for trial in more.trials}
    assert [(t.strength, t.is_dead) for t in more.trials] == [
        (t.strength, t.is_dead) for t in _search(num_trials=7).trials
    ]


def test_optuna_sees_two_objectives_the_same_front_and_pruned_trials(tmp_path):
    import optuna

    url = f"sqlite:///{tmp_path / 'search.db'}"
    found = _search(storage=url, study_name="mine", num_trials=8)
    opened = optuna.storages.RDBStorage(url)
    study = optuna.load_study(study_name="mine", storage=opened)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MAXIMIZE"]
    assert {trial.number for trial in study.best_trials} == {trial.number for trial in found.front}
    pruned = {trial.number for trial in study.trials if trial.state.name == "PRUNED"}
    assert pruned == {trial.number for trial in found.trials if trial.is_dead}
    assert all(trial.distributions["strength"].log for trial in study.trials)
    opened.engine.dispose()  # optuna leaves connections open


@pytest.mark.parametrize("fault", [None, strongreg.StudyError("the database is away for a moment")])
def test_while_the_function_trains_there_are_heartbeats_whatever_becomes_of_them(monkeypatch, fault):
    beaten = threading.Event()

    def beat(_: TrialQueue) -> set[int]:
        beaten.set()
        if fault is not None:
            raise fault
        return set()

    monkeypatch.setattr(storage, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(TrialQueue, "beat", beat)

    def train(strength: float) -> tuple[float, float]:
        assert beaten.wait(timeout=60)
        return 0.9, strength

    assert len(_search(train, num_trials=2).trials) == 2


_CALL = """
import os, signal, sys, time, strongreg
log = open(sys.argv[2], "a", buffering=1)
def train(strength):
    log.write(f"begun {strength}\\n")
    if sys.argv[3] == "dies": os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    log.write(f"done {strength}\\n")
    return 1 - strength, 1 + strength
found = strongreg.search_strength(train, 1e-3, 1.0, num_trials=6, storage=sys.argv[1])
print(*sorted(trial.strength for trial in found.trials))
"""


def test_of_two_processes_on_one_study_one_is_killed_and_each_strength_is_done_once(tmp_path):
    log = tmp_path / "log"
    url = f"sqlite:///{tmp_path / 'search.db'}"

    def call(fate: str) -> subprocess.Popen[str]:
        arguments = [sys.executable, "-W", "error", "-c", _CALL, url, str(log), fate]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    killed, other = call("dies"), call("lives")
    output, messages = other.communicate(timeout=120)
    _, last_words = killed.communicate(timeout=120)
    assert (messages, last_words) == ("", "")
    wanted = sorted(str(SearchRange(1e-3, 1.0).strength_of(i)) for i in range(6))
    assert sorted(output.split()) == wanted
    lines = log.read_text().splitlines()
    assert sorted(line.removeprefix("done ") for line in lines if line.startswith("done")) == wanted
    if killed.returncode == -9:  # and not after the other had finished all
        assert len([line for line in lines if line.startswith("begun")]) == 7


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0.0}, "low=0.0: the smallest strength"),
        ({"low": math.nan}, "low=nan"),
        ({"high": 1e-4}, r"^high=0.0001: must be finite and above low=0.001"),
        ({"high": math.inf}, "high=inf"),
        ({"num_trials": 0}, "num_trials=0"),
        ({"num_trials": True}, "num_trials=True"),
    ],
)
def test_bad_numbers_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        _search(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": "a"}, "low='a': must be a number > 0"),
        ({"high": None}, "high=None: must be a number > 0"),
        ({"high": True}, "high=True: must be a number > 0"),
        ({"high": 10**400}, "high=1000.*: must be a number"),
        ({"seed": None}, "seed=None: must be an integer"),
        ({"seed": "a"}, "seed='a': must be an integer"),
        ({"seed": 0.5}, "seed=0.5: must be an integer"),
        ({"seed": True}, "seed=True: must be an integer"),
        ({"storage": Path("x.db")}, r"storage=.*Path\('x.db'\): must be a text; write 'sqlite:///x.db'"),
        (
            {"storage": optuna.storages.InMemoryStorage()},
            "storage is of type InMemoryStorage: must be the URL of a data",
        ),
        ({"study_name": 3}, "study name 3: must be a text"),
    ],
)
def test_an_argument_of_another_type_is_an_error_that_names_it(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=message):
        _search(**options)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_name_of_a_study_is_an_error():
    with pytest.raises(strongreg.StudyError, match="study name '' is empty: give it a name"):
        _search(study_name="")


def test_a_seed_of_numpy_is_the_integer_that_it_is(tmp_path):
    url = f"sqlite:///{tmp_path / 'search.db'}"
    assert repr(_search(seed=np.int64(1), storage=url)) == repr(_search(seed=1, storage=url))


@pytest.mark.parametrize("values", [(math.inf, 2.0), (-math.inf, 1.0), (0.9, -math.inf)])
def test_an_infinite_accuracy_is_an_error_that_names_value_and_remedy(tmp_path, values):
    url = f"sqlite:///{tmp_path / 'search.db'}"
    with pytest.raises(ValueError, match=r"train_fn\(.*inf.*: an accuracy must be finite, .* raise strongreg.DeadRun"):
        _search(lambda _: values, storage=url)
    assert len(_search(storage=url).trials) == 5  # and the trial is not lost


def test_a_network_without_a_weight_is_dead_and_never_the_best():
    found = _search(lambda strength: (0.9, math.inf) if strength > 0.1 else (0.9, 2.0), num_trials=8)
    assert [trial.is_dead for trial in found.trials] == [trial.strength > 0.1 for trial in found.trials]
    assert found.best().compression == 2.0


@pytest.mark.parametrize("value", [None, 0.9, (0.9,), (0.9, "much"), (0.9, 1.0, 2.0)])
def test_a_function_that_returns_something_else_is_an_error(value):
    with pytest.raises(TypeError, match=r"train_fn.* returned"):
        _search(lambda _: value)


def test_of_a_tensor_the_error_says_how_it_becomes_a_number():
    with pytest.raises(TypeError, match=r"must return two numbers; of a tensor its \.item\(\)"):
        _search(lambda _: (torch.tensor(0.9), torch.tensor(3)))


def test_what_is_no_function_is_an_error():
    with pytest.raises(TypeError, match="train_fn=3"):
        _search(3)


def test_another_range_in_the_same_study_is_an_error_that_names_the_difference(tmp_path):
    url = f"sqlite:///{tmp_path / 'search.db'}"
    _search(storage=url, num_trials=1)
    with pytest.raises(strongreg.StudyError, match=r"search.high=1.0 there, 2.0 now.*another study name"):
        _search(storage=url, high=2.0)
    assert len(_search(storage=url, high=2.0, study_name="other").trials) == 5


def test_without_optuna_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"'optuna'.*\[sweep\]"):
        _search()
