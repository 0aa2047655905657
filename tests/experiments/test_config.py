"""Configurations are checked when they are built, with errors that name the field and its value."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from strongreg.experiments.config import METHODS, PENALTIES, RunConfig, build_penalty, check_config, default_config
from strongreg.experiments.errors import UserError, check_known


def _error(**values) -> str:
    with pytest.raises(UserError) as caught:
        check_config(**values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("strength", x) for x in (-1.0, -1e-300, math.nan, math.inf, "strong", None)],
        *[("gate_threshold", x) for x in (1.01, -1.01, math.nan, math.inf)],
        *[(name, x) for name in ("epochs", "batch_size") for x in (0, -1, 1.5, math.nan, "many")],
        *[("lr", x) for x in (0.0, -0.1, math.nan, math.inf)],
        *[("momentum", x) for x in (-0.1, 1.0, math.nan)],
        *[("weight_decay", x) for x in (-0.1, math.nan, math.inf)],
        *[(f"{name}_share", x) for name in ("lr_hold", "delay", "refit") for x in (-0.01, 1.01, math.nan)],
        *[(name, x) for name in ("data", "model", "penalty", "device") for x in (3, None)],
    ],
)
def test_a_bad_value_is_an_error_that_names_the_field_and_the_value(field, value):
    assert _error(**{field: value}).startswith(f"{field}={value!r}: ")


def test_an_unknown_field_is_an_error_that_names_it():
    assert _error(epoch=3).startswith("epoch=3: ")


@pytest.mark.parametrize("build", [lambda name: check_config(penalty=name), default_config])
@pytest.mark.parametrize(
    ("name", "hint"),
    [("group_l1", "did you mean 'group_l2'? "), ("elasticnet", "did you mean 'elastic_net'? "), ("Q", "")],
)
def test_an_unknown_penalty_is_an_error_that_suggests_the_nearest(build, name, hint):
    with pytest.raises(UserError) as caught:
        build(name)
    known = "elastic_net, group_l2, l1, l2, mcp, sparse_group"
    assert str(caught.value) == f"unknown penalty {name!r}: {hint}choose one of {known}"


def test_names_are_checked_whatever_holds_them():
    assert check_known("fruit", "fig", iter(["fig", "pear"])) is None
    with pytest.raises(UserError, match=r"unknown fruit 'pea': did you mean 'pear'\? choose one of fig, pear"):
        check_known("fruit", "pea", iter(["pear", "fig"]))


@pytest.mark.parametrize(
    "values",
    [
        {"strength": 0.0, "weight_decay": 0.0, "momentum": 0.0},
        {"gate_threshold": -1.0, "epochs": 1, "batch_size": 1},
        {"gate_threshold": 1.0, "lr_hold_share": 0.0, "delay_share": 0.0, "refit_share": 0.0},
        {"lr_hold_share": 1.0, "delay_share": 1.0, "refit_share": 1.0},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(values):
    assert check_config(**values).model_dump() == {**RunConfig().model_dump(), **values}


@pytest.mark.parametrize("field", ["strength", "model"])
def test_a_configuration_does_not_change(field):
    config = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, field, getattr(config, field))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_every_penalty_has_a_default_configuration_that_is_valid(penalty):
    config = default_config(penalty)
    assert config.penalty == penalty
    assert config.strength > 0
    assert check_config(**config.model_dump()) == config


@pytest.mark.parametrize(("penalty", "kind"), PENALTIES.items())
@pytest.mark.parametrize("strength", [0.0, 0.25])
def test_the_penalty_is_of_the_kind_and_strength_of_the_configuration(penalty, kind, strength):
    built = build_penalty(check_config(penalty=penalty, strength=strength))
    assert type(built) is kind
    assert built == kind(strength)
    assert built.strength == strength


def test_the_methods_are_compared_in_this_order():
    assert METHODS == ("dense", "always", "delayed", "coherent")
