"""Memory that runs out while a run trains."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments.recipes import recipe
from strongreg.experiments.data import load_data
from strongreg.experiments.engine import train
from strongreg.experiments.errors import UserError


class _Hungry(nn.Module):
    """Needs more memory than there is after some batches."""

    def __init__(self, after: int, error: Exception | None) -> None:
        super().__init__()
        self.linear, self.left, self.error = nn.Linear(64, 10), after, error

    def forward(self, images):
        self.left -= self.training
        if self.left < 0:
            if self.error is not None:
                raise self.error
            torch.empty(10**16)
        return self.linear(images.flatten(1))


def hungry(_shape, _num_classes):
    return _Hungry(8, None)


def hungry_on_a_gpu(_shape, _num_classes):
    return _Hungry(8, torch.OutOfMemoryError("CUDA out of memory"))


def broken(_shape, _num_classes):
    return _Hungry(8, RuntimeError("of another kind"))


@pytest.mark.parametrize("factory", ["hungry", "hungry_on_a_gpu"])
def test_memory_that_runs_out_is_one_clear_error_and_the_checkpoint_is_kept(tmp_path, factory):
    data = load_data("digits", num_train=300)
    arguments = recipe(model=f"{__name__}:{factory}", epochs=3, training__checkpoint_every=1)
    with pytest.raises(UserError, match=r"out of memory while training coherent, seed 0: lower training\.batch_size"):
        train(arguments, "coherent", 0, data, tmp_path)
    assert (tmp_path / "checkpoint.pt").exists()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_another_error_of_torch_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="of another kind"):
        train(recipe(model=f"{__name__}:broken"), "coherent", 0, load_data("digits", num_train=300), tmp_path)
