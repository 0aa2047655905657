"""Which images are trained on and which are held out."""

from __future__ import annotations

import pytest
import torch

from strongreg.experiments.data import Split
from strongreg.experiments.data.splits import Selection, Source, build_data, split_off, stratified_order
from strongreg.experiments.errors import UserError

COUNTS = torch.tensor([400, 37, 90, 1, 150])


@pytest.fixture
def source() -> Source:
    """Images that carry their own number in two pixels."""
    labels = torch.repeat_interleave(torch.arange(5), COUNTS)
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(9))]
    numbers = torch.arange(len(labels))
    images = torch.stack([numbers // 256, numbers % 256], dim=1).to(torch.uint8).view(-1, 1, 1, 2)
    return Source(Split(images, labels), Split(images[:7], labels[:7]), tuple("abcde"))


def _build(source, share=0.0, num_train=None, seed=0):
    return build_data("numbers", source, Selection(share, num_train, seed))


def _numbers(split: Split) -> list[int]:
    return [int(first) * 256 + int(second) for first, second in split.images.flatten(1)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_prefix_of_the_order_holds_the_classes_in_their_proportions(source, seed):
    labels = source.train.labels
    order = stratified_order(labels, seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    seen = torch.nn.functional.one_hot(labels[order], 5).cumsum(dim=0)
    ideal = torch.arange(1, len(labels) + 1).view(-1, 1) * COUNTS / COUNTS.sum()
    assert (seen - ideal).abs().max() < 2


def test_a_larger_choice_holds_the_smaller_one(source):
    small, large = (set(split_off(source.train.labels, n, 4)[0].tolist()) for n in (50, 300))
    assert small < large


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_validation_is_disjoint_stratified_and_complete(source, share):
    data = _build(source, share)
    train, validation = _numbers(data.train), _numbers(data.validation)
    assert len(validation) == round(share * len(source.train))
    assert sorted(train + validation) == list(range(len(source.train)))
    assert (data.validation.labels.bincount(minlength=5) - share * COUNTS).abs().max() < 2
    for split in (data.train, data.validation):
        assert torch.equal(split.labels, source.train.labels[_numbers(split)])


def test_the_number_of_training_images_does_not_change_the_validation_images(source):
    whole, small, tiny = (_build(source, 0.2, num) for num in (None, 200, 20))
    assert _numbers(whole.validation) == _numbers(small.validation) == _numbers(tiny.validation)
    assert set(_numbers(tiny.train)) < set(_numbers(small.train)) < set(_numbers(whole.train))
    assert (len(small.train), len(tiny.train)) == (200, 20)
    ideal = 200 * whole.train.labels.bincount(minlength=5) / len(whole.train)
    assert (small.train.labels.bincount(minlength=5) - ideal).abs().max() < 2


def test_balanced_classes_stay_balanced():
    labels = torch.arange(1000) % 10
    source = Source(
        Split(torch.zeros(1000, 1, 1, 1).byte(), labels),
        Split(torch.zeros(1, 1, 1, 1).byte(), labels[:1]),
        tuple("0123456789"),
    )
    data = _build(source, 0.1, 300)
    assert data.validation.labels.bincount().tolist() == [10] * 10
    assert data.train.labels.bincount().tolist() == [30] * 10


def test_the_seed_decides_and_nothing_else_does(source):
    first = _build(source, 0.2, 100, seed=1)
    torch.rand(10)
    before = torch.get_rng_state()
    again, other = _build(source, 0.2, 100, seed=1), _build(source, 0.2, 100, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    for split in ("train", "validation"):
        assert _numbers(getattr(first, split)) == _numbers(getattr(again, split))
        assert _numbers(getattr(first, split)) != _numbers(getattr(other, split))
    assert _numbers(first.test) == _numbers(other.test) == list(range(7))


def test_statistics_are_those_of_the_images_that_are_trained_on(source):
    data = _build(source, 0.2, 100)
    pixels = data.train.images.double() / 255
    assert data.mean == pytest.approx([pixels.mean().item()])
    assert data.std == pytest.approx([pixels.std(correction=0).item()])


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0, float("nan")])
def test_a_share_out_of_range_is_an_error(source, share):
    with pytest.raises(UserError, match=f"validation_share={share}: must be at least 0 and below 1"):
        _build(source, share)


@pytest.mark.parametrize(("share", "num"), [(1e-4, 0), (0.9999, 678)])
def test_a_share_that_leaves_a_split_empty_is_an_error(source, share, num):
    with pytest.raises(UserError, match=f"that is {num} of the 678 training images"):
        _build(source, share)


@pytest.mark.parametrize("num_train", [0, -1])
def test_a_number_of_images_below_1_is_an_error(source, num_train):
    with pytest.raises(UserError, match=f"num_train={num_train}: must be at least 1"):
        _build(source, 0.0, num_train)


def test_more_images_than_there_are_is_an_error(source):
    assert len(_build(source, 0.5, 339).train) == 339
    with pytest.raises(UserError, match="num_train=340: numbers has 339 images to train on"):
        _build(source, 0.5, 340)
