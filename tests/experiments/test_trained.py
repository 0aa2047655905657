"""A trained network is built again from its run, or from its weights and what is said of them."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from experiments.recipes import recipe
from strongreg import save_packed, shrink
from strongreg.experiments.errors import UserError
from strongreg.experiments.models import build_model
from strongreg.experiments.recipe import show_recipe
from strongreg.experiments.trained import load_trained

BARE = """
from torch import nn

def build(image_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, num_classes, bias=False))
"""
WORDS = {"model": "vgg11", "image_shape": (3, 32, 32), "num_classes": 10}


@pytest.fixture
def network():
    """With batch normalization, which the recipe says and the name does not."""
    return build_model("vgg11", (3, 32, 32), 10, norm="batch")


@pytest.fixture
def run(tmp_path, network):
    """What a run on cifar10 leaves, without cifar10."""
    folder = tmp_path / "out" / "runs" / "dense-seed0"
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(show_recipe(recipe(data="cifar10", model="vgg11", model__norm="batch")))
    save_file(network.state_dict(), folder / "weights.safetensors")
    return folder


def same(found, network) -> bool:
    state = network.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in found.model.state_dict().items())


def test_from_the_directory_of_a_run_or_of_its_comparison(run, network, tmp_path):
    for directory in (run, tmp_path / "out"):
        found = load_trained(directory)
        assert same(found, network)
        assert found.input_shape == (3, 32, 32)
        assert found.weights == run / "weights.safetensors"


def test_from_a_file_of_weights(run, network, tmp_path):
    save_packed(network, run / "model.packed")
    assert same(load_trained(run / "model.packed"), network)  # the recipe lies beside
    alone = shutil.copy(run / "model.packed", tmp_path / "alone")
    assert same(load_trained(alone, recipe=run / "recipe.toml"), network)
    plain = build_model("vgg11", (3, 32, 32), 10)
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    assert same(load_trained(tmp_path / "plain.safetensors", **WORDS), plain)


def test_other_weights_of_a_run(run, network, tmp_path):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    save_packed(network, tmp_path / "other.packed")
    found = load_trained(run, weights=tmp_path / "other.packed")
    assert same(found, network)
    assert found.weights == tmp_path / "other.packed"


def test_from_a_shrunk_file_of_either_kind(run, tmp_path):
    """Also beside its recipe, and in place of a run's own weights; it is built for training, as any other."""
    network = build_model("resnet20", (3, 32, 32), 10)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight[::2] = 0
            elif isinstance(layer, nn.BatchNorm2d):
                layer.bias.normal_()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network.eval()(images)
    small = shrink(network, images)
    assert small.blocks[0].conv1.out_channels < 16
    (run / "recipe.toml").write_text(show_recipe(recipe(data="cifar10", model="resnet20")))
    save_packed(small, run / "small.packed")
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    for found in (
        load_trained(run / "small.packed"),
        load_trained(run, weights=run / "small.packed"),
        load_trained(tmp_path / "small.safetensors", recipe=run / "recipe.toml"),
    ):
        assert str(found.model) == str(small)
        assert all(module.training for module in found.model.modules())
        assert same(found, small)
        with torch.no_grad():
            assert (found.model.eval()(images) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_shrunk_file_may_have_biases_that_its_code_does_not_build(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "without_bias.py").write_text(BARE)
    words = {"model": "without_bias:build", "image_shape": (1, 2, 2), "num_classes": 3}
    network = build_model("without_bias:build", (1, 2, 2), 3)
    with torch.no_grad():
        network[1].weight[:4] = 0
        network[1].bias.fill_(1)
    images = torch.randn(5, 1, 2, 2)
    small = shrink(network, images[:2])
    assert small[3].bias is not None
    save_packed(small, "small.packed")
    torch.testing.assert_close(load_trained(tmp_path / "small.packed", **words).model(images), network(images))


def test_smaller_weights_of_another_network_are_one_clear_error(run, network, tmp_path):
    """Shrinking leaves inputs and outputs as they are, and makes nothing larger."""
    for classes, shape, message in [
        (
            12,
            (3, 32, 32),
            r"'classifier.7.weight' is \(10, 512\) there, \(12, 512\) here; .* returns shape \(2, 10\) for 2 inputs",
        ),
        (
            10,
            (4, 32, 32),
            r"'features.0.weight' is \(64, 3, 3, 3\) there, \(64, 4, 3, 3\) here; .* fails on such images",
        ),
        (10, (3, 64, 64), r"'classifier.2.weight' is \(512, 512\) there, \(512, 2048\) here; .* fails on such images"),
    ]:
        with pytest.raises(UserError, match=rf"does not fit the model: {message}.*the model is vgg11"):
            load_trained(run, num_classes=classes, image_shape=shape)
    state = network.state_dict()
    state["features.0.weight"] = state["features.0.weight"][:60]  # smaller where it may be, larger where it may not
    state["classifier.5.weight"] = torch.zeros(512, 600)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(
        UserError, match=r"'classifier.5.weight' is \(512, 600\) there, \(512, 512\) here; the model is"
    ):
        load_trained(tmp_path / "odd.safetensors", recipe=run / "recipe.toml")
    state["classifier.5.weight"] = torch.zeros(512)
    save_file(state, tmp_path / "flat.safetensors")
    with pytest.raises(UserError, match=r"'classifier.5.weight' is \(512,\) there, \(512, 512\) here; the model is"):
        load_trained(tmp_path / "flat.safetensors", recipe=run / "recipe.toml")
    state["more"] = state.pop("classifier.5.weight")
    save_file(state, tmp_path / "named.safetensors")
    with pytest.raises(
        UserError, match=r"it lacks \['classifier.5.weight'\], the model lacks \['more'\]; the model is"
    ):
        load_trained(tmp_path / "named.safetensors", recipe=run / "recipe.toml")


def test_what_is_said_wins_over_the_recipe(run):
    other = build_model("lenet300", (1, 28, 28), 7)
    save_file(other.state_dict(), run / "weights.safetensors")
    found = load_trained(run, model="lenet300", image_shape=(1, 28, 28), num_classes=7)
    assert same(found, other)
    assert found.input_shape == (1, 28, 28)


def test_a_recipe_of_unknown_data_needs_shape_and_classes(run):
    (run / "recipe.toml").write_text(show_recipe(recipe(data="mine", model="vgg11", model__norm="batch")))
    with pytest.raises(UserError, match=r"unknown data set 'mine'.*; or give --image-shape and --num-classes"):
        load_trained(run, image_shape=(3, 32, 32))
    load_trained(run, image_shape=(3, 32, 32), num_classes=10)


def test_what_is_missing_or_does_not_fit_is_one_clear_error(run, tmp_path):
    weights = run / "weights.safetensors"
    for arguments, message in [
        ({"source": tmp_path / "none"}, "there is no file .*none: give the directory of a finished run, or"),
        ({"source": run, "weights": tmp_path / "none"}, "there is no file .*none"),
        ({"source": weights, "weights": weights}, "--weights .* replaces the weights of a run, and .* is no directory"),
        ({"source": run, "recipe": tmp_path / "none.toml"}, "cannot read recipe .*none.toml"),
        ({"source": run, "model": "vgg12"}, "unknown model 'vgg12': did you mean 'vgg1"),
        (
            {"source": run, "num_classes": 7},
            r"'classifier.*weight' is \(10, 512\) there, \(7, 512\) here; the model is vgg11 for images of 3x32x32",
        ),
        ({"source": run, "model": "vgg11"}, "does not fit the model: .*; the model is vgg11"),
    ]:
        with pytest.raises(UserError, match=message):
            load_trained(**arguments)
    alone = shutil.copy(weights, tmp_path / "alone")
    for given in ({}, {"model": "vgg11", "image_shape": (3, 32, 32)}, {"num_classes": 3}):
        with pytest.raises(
            UserError,
            match=r"which network is .*alone\? Give .* which is enough, or its --recipe, or --model, --image-shape and",
        ):
            load_trained(alone, **given)
    shutil.copytree(run, run.parent / "dense-seed1")
    with pytest.raises(UserError, match=r"out holds 2 runs: name one, such as .*dense-seed0"):
        load_trained(tmp_path / "out")
    weights.unlink()
    with pytest.raises(
        UserError, match=r"there is no file .*weights\.safetensors: give the directory of a finished run"
    ):
        load_trained(run)


@pytest.mark.parametrize("damaged", ["packed", "plain", "noise"])
def test_damaged_weights_are_one_clear_error(run, network, damaged):
    save_packed(network, run / "packed")
    shutil.copy(run / "weights.safetensors", run / "plain")
    (run / "noise").write_bytes(b"noise" * 100)
    content = bytearray((run / damaged).read_bytes())
    content[-5] ^= 1
    (run / damaged).write_bytes(content if damaged == "packed" else content[:-5])
    with pytest.raises(UserError, match="damaged"):
        load_trained(run / damaged)
