"""An empty working directory for every test of the command, and finished runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest

from cli.command import RECIPE
from experiments.finished import train_runs
from strongreg.experiments.compare import Comparison
from strongreg.experiments.recipe import COMPARED


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    """An empty working directory: nothing is written into the repository."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="package")
def trained(tmp_path_factory) -> Path:
    """The finished runs of ``compare`` with the options ``SMALL``, trained in this process."""
    return train_runs(tmp_path_factory.mktemp("cli"), RECIPE, COMPARED)


@pytest.fixture
def out(trained, elsewhere) -> Path:
    return shutil.copytree(trained, elsewhere / "out")


@pytest.fixture
def no_training(monkeypatch) -> Mock:
    """Stands in for the training itself."""
    run = Mock()
    monkeypatch.setattr(Comparison, "run", run)
    return run
