"""What a process that trains is set to; in processes of their own, for it cannot be undone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_STEPS = """
import resource, sys, torch
from strongreg.experiments.engine.process import keep_freed_memory, prepare_process
print(keep_freed_memory() if sys.argv[1] == "keeps" else False)

def touched():  # pages, by a tensor that comes and goes, larger than what glibc comes to keep by itself
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(10 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

touched()
print(touched())
"""


def _run(code: str, *arguments: str, **environment: str) -> list[str]:
    names = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, env={**clean, **environment}, check=True, capture_output=True, text=True
    ).stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_that_a_step_has_freed_is_there_for_the_next():
    keeps, num_pages = _run(_STEPS, "keeps")
    if keeps == "False":
        pytest.skip("no glibc")
    assert int(num_pages) < 100  # without, 200,000 of 4 KiB, or 400 of 2 MiB
    assert int(_run(_STEPS, "does not")[1]) > int(num_pages)


def test_what_the_user_has_set_wins():
    assert _run(_STEPS, "keeps", MALLOC_TRIM_THRESHOLD_="100000")[0] == "False"


def test_numbers_that_slow_the_processor_are_zero():
    code = "import torch; from strongreg.experiments.engine.process import prepare_process; prepare_process(); "
    assert _run(code + "print((torch.full((1,), 1e-30) * 1e-10).item())") == ["0.0"]
