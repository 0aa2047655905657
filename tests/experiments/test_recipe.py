"""Recipes are checked when they are built, with errors that name the key, its value and the nearest valid key."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from strongreg import L1, MCP, ElasticNet, GroupL2
from strongreg.experiments.errors import UserError, check_known
from strongreg.experiments.recipe import (
    COMPARED,
    METHODS,
    PENALTIES,
    Recipe,
    build_penalty,
    build_recipe,
    default_changes,
    parse_settings,
    read_recipe,
    show_recipe,
)


def _error(changes=None, base=None) -> str:
    with pytest.raises(UserError) as caught:
        build_recipe(changes or {}, base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("penalty.strength", x) for x in (-1.0, -1e-300, math.nan, math.inf, "strong", None)],
        *[("gate.threshold", x) for x in (1.01, -1.01, math.nan, math.inf)],
        *[(f"training.{name}", x) for name in ("epochs", "batch_size") for x in (0, -1, 1.5, math.nan, "many")],
        *[("optimizer.lr", x) for x in (0.0, -0.1, math.nan, math.inf)],
        *[("optimizer.momentum", x) for x in (-0.1, 1.0, math.nan)],
        *[("optimizer.weight_decay", x) for x in (-0.1, math.nan, math.inf)],
        *[(name, x) for name in ("optimizer.hold_share", "gate.delay_share", "penalty.refit_share") for x in (-0.1, 2)],
        *[(name, x) for name in ("data.name", "model.name", "penalty.name", "training.device") for x in (3, None)],
        ("optimizer.name", "lion"),
        ("training.precision", "fp8"),
        ("data.validation_share", 1.0),
        ("pruning.compression", 0.5),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_key_and_the_value(key, value):
    assert _error({key: value}).startswith(f"{key}={value!r}: ")
    section, name = key.split(".")
    assert _error(base={section: {name: value}}).startswith(f"{key}={value!r}: ")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("penalty.strengthx", "penalty.strength"),
        ("training.epoch", "training.epochs"),
        ("epochs", "training.epochs"),
        ("lr", "optimizer.lr"),
        ("penalty.lr", "optimizer.lr"),
        ("mode", "penalty.mode"),
        ("training.norm", "model.norm"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest(key, nearest):
    assert _error({key: 3}) == f"{key}=3: unknown key; did you mean {nearest}?"
    section, dot, name = key.partition(".")
    base = {section: {name: 3}} if dot else {section: 3}
    assert _error(base=base) == f"{key}=3: unknown key; did you mean {nearest}?"


def test_an_unknown_key_like_no_other_is_an_error_that_names_the_sections():
    for changes, base in (({"qqq": 1}, None), ({}, {"qqq": 1}), ({}, {"qqq": {"zzz": 1}})):
        text = _error(changes, base)
        assert "unknown key; there are the sections data, model, penalty, " in text


@pytest.mark.parametrize(
    ("changes", "base", "words"),
    [
        ({"penalty.strength": 0.1}, {"penalty": 3}, "penalty=3: must be a table"),
        ({"methods.dense.optimizer.lr": 1.0}, {"methods": 5}, "methods=5: must be a table"),
        ({"methods.dense.optimizer.lr": 1.0}, {"methods": {"dense": 5}}, "methods.dense=5: must be a table"),
        ({"training.epochs": True}, None, "training.epochs=True: must be"),
        ({"training.epochs": 10**26}, None, "training.epochs=1"),
        ({"training.batch_size": 10**26}, None, f"training.batch_size={10**26}: must be less"),
        ({"training.accumulate": 10**26}, None, f"training.accumulate={10**26}: must be less"),
        ({"data.crop_padding": 10**26}, None, f"data.crop_padding={10**26}: must be less"),
        ({"data.cutout": 10**26}, None, f"data.cutout={10**26}: must be less"),
        ({"methods.dense": 5}, None, "methods.dense=5: write methods.METHOD.section.key"),
        ({"methods.dense.methods.dense.optimizer.lr": 3}, None, "=3: write methods.METHOD.section.key"),
        ({}, {"methods": {"dense": {"methods.dense.optimizer.lr": 3}}}, "=3: write methods.METHOD.section.key"),
        ({"training.batch_size": "32"}, None, "training.batch_size='32': must be"),
        ({"data.flip": 1}, None, "data.flip=1: must be"),
        ({"data.flip": "on"}, None, "data.flip='on': must be"),
        ({"optimizer.nesterov": True, "optimizer.momentum": 0.0}, None, "nesterov=true needs a momentum above 0"),
        ({"pruning.start_share": 0.9, "pruning.end_share": 0.1}, None, "start_share=0.9 must not be beyond"),
        ({"optimizer.schedule": "one_cycle", "optimizer.warmup_share": 1.0}, None, "warmup_share=1 leaves one_cycle"),
    ],
    ids=str,
)
def test_wrong_types_and_parts_that_do_not_fit_are_an_error(changes, base, words):
    assert words in _error(changes, base)


def test_whole_numbers_are_taken_for_numbers_and_arrays_for_tuples():
    recipe = build_recipe({"optimizer.lr": 1, "optimizer.milestones": [0.2, 1]})
    assert (recipe.optimizer.lr, recipe.optimizer.milestones) == (1.0, (0.2, 1.0))


def test_a_setting_of_two_lines_is_an_error():
    for setting in ("optimizer.lr=0.1\nmomentum=3", "optimizer.lr=0.1\n", "optimizer\n.lr=0.1"):
        with pytest.raises(UserError, match="a value is one line"):
            parse_settings([setting])


def test_an_unknown_section_is_an_error_that_names_the_nearest():
    assert _error(base={"penalties": {"strength": 1}}) == (
        "penalties={'strength': 1}: unknown key; did you mean penalty?"
    )


def test_what_should_be_a_table_says_how_to_write_one():
    for section in ("penalty", "methods", "methods.dense"):
        base = {"methods": {"dense": 3}} if section == "methods.dense" else {section: 3}
        assert _error(base=base) == f"{section}=3: must be a table; write [{section}], and its keys below it"


def test_a_section_that_is_set_as_if_it_were_a_key_names_its_keys():
    assert _error({"gate": 3}) == (
        "gate=3: a section is no key; write gate.KEY=VALUE with one of threshold, scope, delay_share"
    )


@pytest.mark.parametrize(
    ("option", "value", "owners"),
    [("cutoff", 0.3, "mcp"), ("l1_ratio", 0.5, "elastic_net and sparse_group"), ("weight_by_size", True, "group_l2")],
)
def test_an_option_of_another_penalty_is_an_error(option, value, owners):
    assert f"{option} is an option of {owners}" in _error({f"penalty.{option}": value})


def test_overrides_of_a_method_are_checked_like_the_rest():
    assert _error(base={"methods": {"dense": {"optimizer.wd": 1}}}).startswith(
        "methods.dense: optimizer.wd=1: unknown key; did you mean optimizer."
    )
    assert "methods.dense: optimizer.lr=-1: must be greater than 0" in _error({"methods.dense.optimizer.lr": -1})


@pytest.mark.parametrize("how", [{"base": {"methods": {"dens": {}}}}, {"changes": {"methods.dens.optimizer.lr": 1}}])
def test_overrides_of_an_unknown_method_are_an_error_that_names_the_nearest(how):
    assert _error(**how).startswith("methods.dens: unknown method 'dens': did you mean 'dense'? choose one of always, ")


def test_an_override_that_is_a_table_is_an_error_that_shows_how_to_write_it():
    table = {"methods": {"dense": {"optimizer": {"lr": 0.5}}}}
    assert _error(base=table) == (
        "methods.dense: optimizer={'lr': 0.5}: an override is one line, its whole key in quotes; write "
        '"optimizer.lr" = 0.5'
    )
    assert tomllib.loads('[methods.dense]\n"optimizer.lr" = 0.5')["methods"] == {"dense": {"optimizer.lr": 0.5}}
    assert 'write "optimizer.KEY" = VALUE with one of name, lr, ' in _error(
        base={"methods": {"dense": {"optimizer": 3}}}
    )


def test_a_method_is_trained_with_its_overrides():
    recipe = build_recipe({"methods.dense.optimizer.weight_decay": 5e-4, "methods.magnitude.optimizer.lr": 0.1})
    assert recipe.for_method("dense").optimizer.weight_decay == 5e-4
    assert recipe.for_method("magnitude").optimizer.lr == 0.1
    assert recipe.for_method("coherent") == build_recipe({})
    assert recipe.for_method("dense").methods == {}


@pytest.mark.parametrize("penalty", PENALTIES)
def test_every_penalty_has_a_default_recipe_that_is_valid(penalty):
    recipe = build_recipe(default_changes(penalty))
    assert recipe.penalty.name == penalty
    assert recipe.penalty.strength > 0


@pytest.mark.parametrize(
    ("name", "hint"),
    [("group_l1", "did you mean 'group_l2'? "), ("elasticnet", "did you mean 'elastic_net'? "), ("q", "")],
)
def test_an_unknown_penalty_is_an_error_that_suggests_the_nearest(name, hint):
    known = "elastic_net, group_l2, l1, l2, mcp, sparse_group"
    with pytest.raises(UserError) as caught:
        default_changes(name)
    assert str(caught.value) == f"unknown penalty {name!r}: {hint}choose one of {known}"
    assert _error({"penalty.name": name}) == f"penalty.name={name!r}: {hint}choose one of {known}"


def test_names_of_penalties_may_be_written_like_their_classes():
    assert build_recipe({"penalty.name": "L2"}).penalty.name == "l2"
    assert default_changes("MCP")["penalty.name"] == "mcp"


def test_names_are_checked_whatever_holds_them():
    assert check_known("fruit", "fig", iter(["fig", "pear"])) is None
    with pytest.raises(UserError, match=r"unknown fruit 'pea': did you mean 'pear'\? choose one of fig, pear"):
        check_known("fruit", "pea", iter(["pear", "fig"]))


@pytest.mark.parametrize(
    "changes",
    [
        {"penalty.strength": 0.0, "optimizer.weight_decay": 0.0, "optimizer.momentum": 0.0},
        {"gate.threshold": -1.0, "training.epochs": 1, "training.batch_size": 1},
        {"gate.threshold": 1.0, "optimizer.hold_share": 0.0, "gate.delay_share": 0.0, "penalty.refit_share": 0.0},
        {"optimizer.hold_share": 1.0, "gate.delay_share": 1.0, "penalty.refit_share": 1.0},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(changes):
    recipe = build_recipe(changes)
    for key, value in changes.items():
        section, name = key.split(".")
        assert getattr(getattr(recipe, section), name) == value


def test_a_recipe_does_not_change():
    recipe = Recipe()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.penalty.strength = 0.1


def test_a_shown_recipe_is_the_same_recipe_and_names_every_key():
    recipe = build_recipe(
        {
            "penalty.name": "mcp",
            "penalty.cutoff": 0.25,
            "data.num_train": 100,
            "optimizer.milestones": [0.3, 0.6],
            "methods.dense.optimizer.weight_decay": 5e-4,
        }
    )
    values = tomllib.loads(show_recipe(recipe))
    assert build_recipe({}, values) == recipe
    assert build_recipe({"penalty.strength": 0.5}, values).penalty.strength == 0.5
    assert values["training"]["epochs"] == 100
    assert values["methods"]["dense"] == {"optimizer.weight_decay": 5e-4}


def test_files_that_are_no_recipes_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read recipe .*none.toml: No such file"):
        read_recipe(tmp_path / "none.toml")
    for content in (b"[penalty\n", b"\xff\xfe"):
        file = tmp_path / "bad.toml"
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"bad.toml is not TOML"):
            read_recipe(file)


def test_settings_are_toml_and_plain_words_are_strings():
    given = ["a.b=3", "a.c = 0.5", "a.d=true", "a.e=vgg16", 'a.f="x y"', "a.g=[0.1, 0.2]", "a.h=1e-3", "a.i=a=b"]
    assert parse_settings(given) == {
        "a.b": 3,
        "a.c": 0.5,
        "a.d": True,
        "a.e": "vgg16",
        "a.f": "x y",
        "a.g": [0.1, 0.2],
        "a.h": 1e-3,
        "a.i": "a=b",
    }
    for bad in ("penalty.strength", "=3", ""):
        with pytest.raises(UserError, match=r"write section.key=value"):
            parse_settings([bad])


@pytest.mark.parametrize(
    ("changes", "penalty"),
    [
        ({"penalty.strength": 0.25}, L1(0.25)),
        ({"penalty.name": "mcp", "penalty.strength": 0.1, "penalty.cutoff": 0.5}, MCP(0.1, cutoff=0.5)),
        ({"penalty.name": "elastic_net", "penalty.strength": 0.1, "penalty.l1_ratio": 0.2}, ElasticNet(0.1, 0.2)),
        (
            {"penalty.name": "group_l2", "penalty.strength": 0.0, "penalty.weight_by_size": True},
            GroupL2(0.0, weight_by_size=True),
        ),
    ],
)
def test_the_penalty_is_of_the_kind_strength_and_options_of_the_recipe(changes, penalty):
    assert build_penalty(build_recipe(changes)) == penalty


def test_the_methods_are_compared_in_this_order():
    assert COMPARED == ("dense", "always", "delayed", "coherent")
    assert METHODS[:4] == COMPARED


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "recipes").rglob("*.toml")), ids=lambda f: f.stem)
def test_every_recipe_of_the_repository_is_valid(file):
    recipe = build_recipe({}, read_recipe(file))
    assert recipe.data.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"penalty.refit_share": 0.0}, "needs a refit to adapt until"),
        ({"penalty.mode": "gradient"}, "needs exact zeros"),
        ({"penalty.name": "l2"}, "needs exact zeros"),
        ({"penalty.name": "elastic_net", "penalty.l1_ratio": 0.0}, "needs exact zeros"),
        ({"penalty.strength": 0.0}, "needs a strength above 0 to begin with"),
        ({"penalty.target_compression": 1.0}, "greater than 1"),
    ],
    ids=str,
)
def test_a_target_compression_that_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        build_recipe({"penalty.target_compression": 20.0, **changes})
    assert build_recipe({"penalty.target_compression": 20.0}).penalty.target_compression == 20
