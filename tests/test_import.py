"""``import strongreg`` is light, silent, and needs torch and numpy alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

import strongreg

_REPORT = """
import sys, time
import numpy, torch
before, start = set(sys.modules), time.perf_counter()
import strongreg, strongreg.integrations
seconds = time.perf_counter() - start
print(seconds)
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""


def _import() -> tuple[float, set[str]]:
    done = subprocess.run([sys.executable, "-W", "error", "-c", _REPORT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    seconds, names = done.stdout.splitlines()
    return float(seconds), set(names.split())


def test_nothing_but_torch_and_numpy_is_imported_and_it_takes_less_than_300_ms_on_top_of_them():
    runs = [_import() for _ in range(3)]
    for _, names in runs:
        assert names - set(sys.stdlib_module_names) <= {"strongreg", "torch", "numpy"}
    assert min(seconds for seconds, _ in runs) < 0.3


def test_what_is_asked_for_later_is_imported_later():
    code = """
import sys

import pytest

import strongreg
import strongreg
later = {"strongreg.compression", "strongreg.sweeps"}
print(*later & set(sys.modules), "nothing")
print(all(hasattr(strongreg, name) for name in strongreg.__all__), set(strongreg.__all__) <= set(dir(strongreg)))
print(strongreg.compression.load_packed is strongreg.load_packed, later <= set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["nothing", "True True", "True True"], done.stderr


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'strongreg' has no attribute 'nothing'"):
        getattr(strongreg, "nothing")  # noqa: B009
