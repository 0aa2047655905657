"""Every example runs as it stands, and shows what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


HOSTS = [  # at least so many times smaller, and so accurate
    ("accelerate_loop.py", 25, 90),
    ("lightning_trainer.py", 25, 90),
    ("skorch_classifier.py", 3, 90),
    ("transformers_trainer.py", 5, 85),
]

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def _run(name: str, directory: Path, *launcher: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", *launcher, str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_list_of_examples_is_complete():
    of_hosts = {name for name, _, _ in HOSTS}
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"two_lines.py", "checkpoint.py", "sharded.py"} | of_hosts


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
