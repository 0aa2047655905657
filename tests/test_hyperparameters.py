"""Penalties, gates and schedules as plain data."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
import torch

from strongreg import (
    L1,
    L2,
    MCP,
    AlwaysOpen,
    CoherenceGate,
    Constant,
    CosineRamp,
    Delay,
    ElasticNet,
    GroupL2,
    LinearRamp,
    Refit,
    Regularizer,
    SparseGroup,
)
from strongreg.hyperparameters import describe, restore

# each part with another of the same class
PAIRS = [
    (L1(0.1), L1(0.2)),
    (L2(0.1), L2(0)),
    (MCP(0.1, cutoff=0.5), MCP(0.1)),
    (ElasticNet(0.1, l1_ratio=0.2), ElasticNet(0.1)),
    (GroupL2(0.1, dim=(0, 1), weight_by_size=True), GroupL2(0.1)),
    (GroupL2(0.1), GroupL2(0.1, dim=(1, 0))),
    (SparseGroup(0.1, l1_ratio=0.2, dim=1), SparseGroup(0.1, dim=(1,))),
    (AlwaysOpen(), AlwaysOpen()),
    (Delay(3), Delay(5)),
    (CoherenceGate(0.5, scope="layer"), CoherenceGate()),
    (Constant(), Constant()),
    (LinearRamp(5, initial=0.5, final=2.0, start=3), LinearRamp(7)),
    (CosineRamp(5), CosineRamp(7, start=1)),
    (Refit(3), Refit(9)),
    (Refit(3, before=LinearRamp(5)), Refit(9, before=LinearRamp(7, final=3.0))),
]
every_pair = pytest.mark.parametrize(("part", "other"), PAIRS, ids=lambda part: type(part).__name__)


@every_pair
def test_a_described_part_is_restored_from_any_part_of_its_class(part, other):
    restored = restore(other, describe(part))
    assert restored == part
    assert type(restored) is type(part)
    assert hash(restored) == hash(part)
    assert restore(part, describe(other)) == other


@every_pair
def test_a_description_survives_json_and_a_safe_checkpoint(part, other):
    described = describe(part)
    assert json.loads(json.dumps(described)) == described
    buffer = io.BytesIO()
    torch.save(described, buffer)
    buffer.seek(0)
    assert restore(other, torch.load(buffer, weights_only=True)) == part


def test_descriptions_by_hand():
    assert describe(GroupL2(0.1, dim=(0, 1))) == {
        "class": "GroupL2",
        "strength": 0.1,
        "dim": [0, 1],
        "weight_by_size": False,
    }
    assert describe(Refit(3)) == {"class": "Refit", "start": 3, "before": {"class": "Constant"}}


def test_a_restored_part_is_checked():
    with pytest.raises(ValueError, match=r"L1\(strength=-1\): strength must be finite and >= 0"):
        restore(L1(0.1), {"class": "L1", "strength": -1})


def test_a_field_that_was_not_saved_keeps_its_value():
    """A state of an older version, before the field existed."""
    assert restore(MCP(0.1, cutoff=0.7), {"class": "MCP", "strength": 0.2}) == MCP(0.2, cutoff=0.7)


def test_another_class_is_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match="the saved state is for L2, but this Regularizer was built with L1") as caught:
        restore(L1(0.1), describe(L2(0.1)))
    assert "build it with the same parts" in str(caught.value)


def test_another_class_inside_is_an_error():
    with pytest.raises(ValueError, match=r"the saved state is for LinearRamp, but .* built with Constant"):
        restore(Refit(3), describe(Refit(3, before=LinearRamp(5))))


def test_restoring_does_not_change_the_saved_data():
    saved = describe(Refit(3, before=LinearRamp(5)))
    restore(Refit(9, before=LinearRamp(7)), saved)
    assert saved == describe(Refit(3, before=LinearRamp(5)))


@pytest.mark.parametrize("part", [3, "L1", None, L1, object()])
def test_something_else_than_a_dataclass_is_an_error(part):
    with pytest.raises(TypeError, match=r"cannot be saved: .* decorate its class with @dataclass\(frozen=True\)"):
        describe(part)


@dataclasses.dataclass(frozen=True)
class _Any:
    """A part of the user's."""

    inner: object = None


@pytest.mark.parametrize(
    "value",
    [{"a": 1}, {1, 2}, torch.ones(2), object(), [1, 2], 1j, b"x", (1, {"a": 1})],
    ids=lambda v: type(v).__name__,
)
def test_a_field_that_is_no_plain_data_is_an_error_that_names_it(value):
    with pytest.raises(TypeError, match=r"_Any\(inner=.*cannot be saved: .* numbers, strings, None"):
        describe(_Any(value))


@pytest.mark.parametrize(
    "value",
    [
        (L1(0.1), Delay(3)),
        (1, L1(0.1), "a", None, True),
        ((Refit(3, before=LinearRamp(5)),), 2.0),
        (),
        ((1, 2), (3,)),
        None,
    ],
    ids=repr,
)
def test_tuples_of_parts_are_described_and_restored(value):
    described = describe(_Any(value))
    assert json.loads(json.dumps(described)) == described
    buffer = io.BytesIO()
    torch.save(described, buffer)
    buffer.seek(0)
    assert restore(_Any(value), torch.load(buffer, weights_only=True)) == _Any(value)


def test_another_tuple_of_parts_is_an_error():
    saved = describe(_Any((L1(0.1), L2(0.1))))
    assert restore(_Any((L1(0.3), L2(0.4))), saved) == _Any((L1(0.1), L2(0.1)))
    with pytest.raises(ValueError, match="the saved state holds 2 parts"):
        restore(_Any((L1(0.3),)), saved)
    with pytest.raises(ValueError, match="is for L2, but this Regularizer was built with L1"):
        restore(_Any((L1(0.3), L1(0.3))), saved)


def test_numbers_of_numpy_become_plain_ones():
    described = describe(_Any((np.float32(0.5), np.int64(3))))
    assert [type(entry) for entry in described["inner"]] == [float, int]


def test_what_cannot_be_saved_is_refused_when_the_regularizer_is_built():
    @dataclasses.dataclass(frozen=True)
    class Listed(AlwaysOpen):
        layers: object = None

    @dataclasses.dataclass(frozen=True)
    class Tabled(L1):
        table: object = None

    model = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"Listed\(layers=\{'a': 1\}\) cannot be saved"):
        Regularizer(model, L1(0.1), gate=Listed({"a": 1}))
    with pytest.raises(TypeError, match=r"Tabled\(table=tensor.*cannot be saved"):
        Regularizer(model, Tabled(0.1, torch.ones(1)))
