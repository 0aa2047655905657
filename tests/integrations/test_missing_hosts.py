"""A host that is not installed is named, with what installs it; the others work without it."""

from __future__ import annotations

import subprocess
import sys

_IMPORTS = """
import importlib, sys
import strongreg, strongreg.integrations

HOSTS = ("lightning", "skorch", "transformers")

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name in HOSTS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

assert not set(HOSTS) & set(sys.modules)
sys.meta_path.insert(0, NotInstalled())
for host in HOSTS:
    try:
        importlib.import_module(f"strongreg.integrations.{host}")
    except ModuleNotFoundError as error:
        print(error.name, error, sep=": ")
"""


def test_a_missing_host_is_named_with_the_command_that_installs_it():
    done = subprocess.run([sys.executable, "-c", _IMPORTS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{host}: strongreg.integrations.{host} needs the package {host}: run pip install '.[{host}]' in the clone of "
        "strongreg (it is not on PyPI yet)"
        for host in ("lightning", "skorch", "transformers")
    ]
