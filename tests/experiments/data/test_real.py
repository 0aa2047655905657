"""The published sets themselves, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from strongreg.experiments.data import load_data

REPOSITORY = Path(__file__).parents[3]
PLACES = [Path(place) for place in (os.environ.get("STRONGREG_DATA"), REPOSITORY.parent / "shared" / "data") if place]


def place_of(name: str) -> Path:
    for place in PLACES:
        if (place / name).is_dir():
            return place
    pytest.skip(f"{name} is in none of {', '.join(map(str, PLACES))}: set STRONGREG_DATA")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_train", "mean", "std", "class_name"),
    [
        ("cifar10", 50000, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "airplane"),
        ("fashion_mnist", 60000, (0.2860,), (0.3530,), "T-shirt/top"),
    ],
)
def test_a_published_set_has_its_published_statistics_and_is_kept(name, num_train, mean, std, class_name, monkeypatch):
    place = place_of(name)
    data = load_data(name, data_dir=place)
    assert (len(data.train), len(data.test)) == (num_train, 10000)
    assert data.mean == pytest.approx(mean, abs=5e-5)
    assert data.std == pytest.approx(std, abs=5e-5)
    assert data.class_names[0] == class_name
    monkeypatch.setattr("strongreg.experiments.data.load.read_parquet", None)
    again = load_data(name, data_dir=place, validation_share=0.1, num_train=10000)
    assert torch.equal(again.test.images, data.test.images)
    assert again.train.labels.bincount().tolist() == [1000] * 10
    assert (again.validation.labels.bincount() == num_train / 100).all()
