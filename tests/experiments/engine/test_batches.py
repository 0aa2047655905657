"""The batches of a pass: every image once, in an order of the seed, and on from any point."""

from __future__ import annotations

import math

import pytest
import torch

from strongreg.experiments.data import Augmentation, ImageData, Split
from strongreg.experiments.engine.batches import Batches

NUM_IMAGES = 23
NONE = Augmentation(0, False, 0)
ALL = Augmentation(2, True, 3)


@pytest.fixture(scope="module")
def data() -> ImageData:
    """Every image is its own number, everywhere, so that a batch says what it holds."""
    labels = torch.arange(NUM_IMAGES)
    images = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()
    names, nothing = tuple(map(str, range(NUM_IMAGES))), Split(images[:0], labels[:0])
    return ImageData("numbers", Split(images, labels), nothing, nothing, NUM_IMAGES, names, 1.0, None, None)


def _labels(batches: Batches, first: int = 0) -> list[list[int]]:
    return [labels.tolist() for _, labels, _ in batches.epoch(first)]


@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
def test_every_image_is_in_one_batch_of_a_pass_and_has_its_label(data, batch_size):
    batches = Batches(data, batch_size, NONE, seed=0)
    found = list(batches.epoch())
    assert len(found) == len(batches) == math.ceil(NUM_IMAGES / batch_size)
    assert {factor for _, _, factor in found} == {1.0}
    assert sorted(label for _, labels, _ in found for label in labels.tolist()) == list(range(NUM_IMAGES))
    for images, labels, _ in found:
        assert images.dtype == torch.float32
        assert torch.equal(images[:, 0, 0, 0], labels.float())


def test_the_order_is_that_of_the_seed_and_another_at_each_pass(data):
    one, same, other = (Batches(data, 4, NONE, seed) for seed in (3, 3, 4))
    first, second = _labels(one), _labels(one)
    assert first != second
    assert [_labels(same), _labels(same)] == [first, second]
    assert _labels(other) != first
    order = torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(3))
    assert [label for batch in first for label in batch] == order.tolist()


def test_the_order_does_not_depend_on_the_augmentation(data):
    assert _labels(Batches(data, 4, ALL, 3)) == _labels(Batches(data, 4, NONE, 3))


def test_the_augmentation_is_that_of_the_seed_and_another_at_each_pass(data):
    def images(batches: Batches) -> torch.Tensor:
        pairs = [(labels, images) for images, labels, _ in batches.epoch()]
        order = torch.cat([labels for labels, _ in pairs]).argsort()
        return torch.cat([images for _, images in pairs])[order]

    one, same, other = (Batches(data, 4, ALL, seed) for seed in (3, 3, 4))
    first, second = images(one), images(one)
    assert torch.equal(images(same), first)
    assert torch.equal(images(same), second)
    assert not torch.equal(first, second)
    assert not torch.equal(images(other), first)


# ---------------------------------------------------------------------- on from any point


@pytest.mark.parametrize("done", range(7))
@pytest.mark.parametrize("passes", [0, 1])
def test_a_pass_goes_on_where_it_was_left(data, done, passes):
    """Taken up after so many batches: the rest of that pass and the whole next one are the same images."""
    batches = Batches(data, 4, ALL, seed=5)
    for _ in range(passes):
        list(batches.epoch())
    running = batches.epoch()
    for _ in range(done):
        next(running)
    state = batches.state_dict()
    other = Batches(data, 4, ALL, seed=5)
    other.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, in_epoch=done > 0)
    rest, resumed = [*running, *batches.epoch()], [*other.epoch(first=done), *other.epoch()]
    assert len(rest) == len(resumed)
    for (images, labels, num), (again, same, also) in zip(rest, resumed, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)
        assert num == also


def test_what_was_loaded_can_be_saved_again_before_the_pass_goes_on(data):
    batches = Batches(data, 4, ALL, seed=5)
    list(batches.epoch())
    running = batches.epoch()
    next(running)
    state = batches.state_dict()
    other, third = Batches(data, 4, ALL, seed=5), Batches(data, 4, ALL, seed=5)
    other.load_state_dict(state, in_epoch=True)
    third.load_state_dict(other.state_dict(), in_epoch=True)
    assert _labels(third, first=1) == [labels.tolist() for _, labels, _ in running]


# ---------------------------------------------------------------------- shares


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_shares_of_a_batch_are_the_batch(data, world_size):
    whole = _labels(Batches(data, 4, NONE, seed=1))
    shares = [list(Batches(data, 4, NONE, 1, rank=rank, world_size=world_size).epoch()) for rank in range(world_size)]
    for number, batch in enumerate(whole):
        # a share without images is the whole batch with factor 0
        parts = [share[number][1].tolist() if share[number][2] else [] for share in shares]
        assert sorted(label for part in parts for label in part) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert [share[number][2] for share in shares] == [len(part) * world_size / len(batch) for part in parts]
        assert sum(share[number][2] for share in shares) == pytest.approx(world_size)


def test_shares_are_augmented_independently(data):
    first = [next(Batches(data, 4, ALL, 1, rank=rank, world_size=2).epoch())[0] for rank in (0, 1)]
    numbers = [images.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1) for images in first]
    masks = [images / number for images, number in zip(first, numbers, strict=True)]
    assert not torch.equal(*masks)
