"""Every example runs as it stands, and shows what it says."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
DOCS = Path(__file__).parents[1] / "docs"


HOSTS = [  # at least so many times smaller, and so accurate
    ("accelerate_loop.py", 25, 90),
    ("lightning_trainer.py", 25, 90),
    ("skorch_classifier.py", 3, 90),
    ("transformers_trainer.py", 5, 85),
]

SHORT = {  # at most so many lines
    "digits.py": 30,
    "fine_tuning.py": 59,
    "channels_to_onnx.py": 59,
    "resnet_groups.py": 59,
    "sweep.py": 59,
}

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def _run(name: str, directory: Path, *launcher: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", *launcher, str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def run_here(capsys, monkeypatch, tmp_path):
    """Runs an example in this process, which has imported torch already, and returns what it printed."""

    def run(name: str) -> str:
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return run


def _numbers(pattern: str, output: str) -> list[tuple[float, ...]]:
    """What the groups of each match hold, as numbers."""
    found = [match.groups() for match in re.finditer(pattern, output)]
    return [tuple(float(group.replace(",", "")) for group in groups) for groups in found]


def test_the_list_of_examples_is_complete():
    of_hosts = {name for name, _, _ in HOSTS}
    others = {"two_lines.py", "checkpoint.py", "sharded.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == others | of_hosts | SHORT.keys()


def test_the_list_in_the_docs_is_complete():
    listed = re.findall(r"\]\(\.\./examples/(\w+\.py)\)", (DOCS / "examples.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.py"))


@pytest.mark.slow
def test_two_lines_give_an_accurate_network_with_20_times_fewer_weights(tmp_path):
    output = _run("two_lines.py", tmp_path)
    total = next(line for line in output.splitlines() if line.startswith("total"))
    assert float(total.split()[-2]) >= 20
    assert float(re.search(r"test accuracy ([\d.]+)%", output)[1]) >= 92


def test_a_run_goes_on_bit_for_bit_from_a_checkpoint(tmp_path):
    output = _run("checkpoint.py", tmp_path)
    assert "bit for bit the run without interruption: True" in output
    total = next(line for line in output.splitlines() if line.startswith("total"))
    assert float(total.split()[-2]) > 1.5


@pytest.mark.slow
def test_a_sharded_network_is_checkpointed_and_becomes_small(tmp_path):
    output = _run("sharded.py", tmp_path, *TORCHRUN)
    total = next(line for line in output.splitlines() if line.startswith("total"))
    assert float(total.split()[-2]) > 10
    assert "400 steps" in output


@pytest.mark.slow
@pytest.mark.parametrize(("name", "compression", "accuracy"), HOSTS, ids=[name for name, _, _ in HOSTS])
def test_the_example_of_a_host_is_short_and_gives_an_accurate_smaller_network(name, compression, accuracy, tmp_path):
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 60
    output = _run(name, tmp_path)
    total = next(line for line in output.splitlines() if line.startswith("total"))
    assert float(total.split()[-2]) >= compression
    assert float(re.search(r"test accuracy ([\d.]+)%", output)[1]) >= accuracy


@pytest.mark.parametrize(("name", "most"), SHORT.items(), ids=SHORT)
def test_an_example_of_one_thing_is_short(name, most):
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) <= most


@pytest.mark.slow
def test_the_digits_die_under_the_penalty_and_live_behind_the_gate(run_here):
    dense, always, gate = _numbers(r"accuracy ([\d.]+)%, ([\d.,]+|inf) times", run_here("digits.py"))
    assert dense[0] >= 94
    assert dense[1] == 1
    assert always[0] <= 20
    assert gate[0] >= max(92, dense[0] - 4)
    assert gate[1] >= 15


@pytest.mark.slow
def test_a_trained_network_is_as_accurate_and_20_times_smaller_after_fine_tuning(run_here):
    output = run_here("fine_tuning.py")
    total = next(line for line in output.splitlines() if line.startswith("total"))
    assert 19 <= float(total.split()[-2]) <= 21
    trained, small = _numbers(r"accuracy ([\d.]+)%, ([\d,]+) bytes", output)
    assert trained[0] >= 94
    assert small[0] >= trained[0] - 3
    assert trained[1] >= 12 * small[1]


@pytest.mark.slow
def test_channels_are_removed_and_onnxruntime_computes_what_torch_does(run_here):
    output = run_here("channels_to_onnx.py")
    ((fewer, fewer_flops),) = _numbers(r"([\d.]+) times fewer parameters, ([\d.]+) times fewer FLOPs", output)
    assert fewer >= 6
    assert fewer_flops >= 6
    dense, shrunk = _numbers(r"accuracy ([\d.]+)%, ([\d,]+) bytes", output)
    assert dense[0] >= 94
    assert shrunk[0] >= max(92, dense[0] - 4)
    assert dense[1] >= 5 * shrunk[1]
    differences = _numbers(r"[\d.]+ ms on one thread; largest difference from torch ([\d.e+-]+)", output)
    assert len(differences) == 2
    assert max(differences) < (1e-3,)


@pytest.mark.slow
def test_a_resnet_loses_channels_and_little_accuracy(run_here):
    pattern = r"accuracy ([\d.]+)%, ([\d,]+) parameters, ([\d,]+) FLOPs"
    dense, shrunk = _numbers(pattern, run_here("resnet_groups.py"))
    assert dense[0] >= 97
    assert shrunk[0] >= dense[0] - 4
    assert dense[1] >= 4 * shrunk[1]
    assert dense[2] >= 3 * shrunk[2]


@pytest.mark.slow
def test_a_sweep_chooses_by_validation_images_the_smallest_network_that_is_accurate_enough(run_here):
    output = run_here("sweep.py")
    trials = _numbers(r"(?m)^([\d.]+): validation ([\d.]+)%, ([\d.]+) times", output)
    ((chosen, _, times),) = _numbers(r"(?m)^([\d.]+): validation ([\d.]+)%, ([\d.]+) times .*chosen\)$", output)
    assert len(trials) == 6
    best = max(accuracy for _, accuracy, _ in trials)
    assert times == max(times for _, accuracy, times in trials if accuracy >= best - 3.05)  # of rounded figures
    dense, small = _numbers(r"(?m)^([\d.]+): test ([\d.]+)%, ([\d.]+) times", output)
    assert (dense[0], dense[2], small[0]) == (0, 1, chosen)
    assert small[1] >= max(90, dense[1] - 5)
    assert small[2] >= 10
