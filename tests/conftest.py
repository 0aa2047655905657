"""What every test shares: one thread, one seed, and hypothesis examples that do not change from run to run."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("strongreg", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("strongreg")


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers in every test, whichever tests run before it."""
    torch.manual_seed(0)
