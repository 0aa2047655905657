"""The remedy for a missing package is one that works."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from strongreg.extras import how_to_install

ROOT = Path(__file__).parents[1]


HOSTS = ["accelerate", "lightning", "skorch", "transformers"]


@pytest.mark.parametrize("extra", ["compression", "experiments", "export", "sweep", *HOSTS])
def test_the_remedy_names_an_extra_that_there_is_and_is_that_of_the_readme_or_its_page(extra):
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extra in known
    command = f"pip install '.[{extra}]'"
    assert command in how_to_install(extra)
    page = "docs/host_frameworks.md" if extra in HOSTS else "README.md"
    assert command in (ROOT / page).read_text(encoding="utf-8")


def test_no_other_file_says_how_to_install_an_extra():
    files = (ROOT / "src").rglob("*.py")
    assert [file.name for file in files if "pip install '.[" in file.read_text(encoding="utf-8")] == ["extras.py"]
