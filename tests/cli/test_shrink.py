"""The command shrink: what it writes, says, and refuses; and what the others do with its file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from unittest.mock import Mock

import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cli.command import error, examples, run
from experiments.recipes import recipe
from strongreg import inspect_packed, load_packed, load_shrunk, save_packed
from strongreg.cli import export
from strongreg.cli import shrink as command
from strongreg.experiments.models import build_model
from strongreg.experiments.recipe import show_recipe

RUN = "strongreg-out/train-1/runs/coherent-seed0"
RECIPE = ["--recipe", "strongreg-out/train-1/recipe.toml"]
WORDS = ["--model", "plain_cnn", "--image-shape", "1,8,8", "--num-classes", "10"]
NETS = """
import torch
from torch import nn

class Branching(nn.Sequential):
    def forward(self, x):
        return super().forward(x * 2 if x.sum() > 0 else x)

def branching(image_shape, num_classes):
    return Branching(nn.Flatten(), nn.Linear(64, num_classes))
"""


def with_zeros(model: nn.Module, share: float = 0.6) -> nn.Module:
    """Rows of zeros in every layer but the last, with biases: what they give is a constant, not nothing."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for layer in layers:
            layer.bias.normal_()
        for layer in layers[:-1]:
            layer.weight[torch.rand(len(layer.weight)) < share] = 0
    return model.eval()


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def read(file: str, name: str = "plain_cnn") -> nn.Module:
    return load_shrunk(build_model(name, (1, 8, 8), 10), load_packed(file)).eval()


def assert_same(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert a.dtype == b.dtype == torch.float32
    assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.fixture
def network():
    return with_zeros(build_model("plain_cnn", (1, 8, 8), 10))


@pytest.fixture
def dense():
    """Quickly looked into, and nothing of it can go."""
    return build_model("lenet300", (1, 8, 8), 10).eval()


@pytest.fixture
def weights(elsewhere, network, dense) -> Path:
    """What runs leave, the same weights as packed files, and branches.py in the working directory."""
    for folder, name, model in ((RUN, "plain_cnn", network), ("dense", "lenet300", dense)):
        (elsewhere / folder).mkdir(parents=True)
        (elsewhere / folder / "recipe.toml").write_text(show_recipe(recipe(model=name)))
        save_file(model.state_dict(), elsewhere / folder / "weights.safetensors")
    Path("strongreg-out/train-1/recipe.toml").write_text(show_recipe(recipe()))
    save_packed(network, "model.packed")
    save_file({f"1.{k}": v for k, v in nn.Linear(64, 10).state_dict().items()}, "linear.safetensors")
    Path("branches.py").write_text(NETS)
    return elsewhere / RUN / "weights.safetensors"


def test_the_smaller_network_computes_the_same_and_the_numbers_are_the_real_ones(capsys, weights, network):
    output, messages = run(capsys, "shrink", RUN, "-o", "small.packed")
    assert messages == "wrote small.packed\n"
    small, images = read("small.packed"), torch.randn(50, 1, 8, 8)
    with torch.no_grad():
        assert_same(small(images), network(images))
    before, after = num_parameters(network), num_parameters(small)
    assert after < before / 2
    lines = output.splitlines()
    assert f"{before / after:.1f} times fewer parameters, " in output
    assert next(line for line in lines if line.startswith("parameters")).split()[1:] == [f"{before:,}", f"{after:,}"]
    assert next(line for line in lines if line.startswith("0.weight")).split()[1] == "16x1x3x3"
    assert any(line.startswith("left in ") and "1 row of zeros, since " in line for line in lines)
    sizes = (4 * before, 4 * after, weights.stat().st_size, Path("small.packed").stat().st_size)
    assert (
        "bytes: {:,} to {:,} dense, {:,} in {name}/weights.safetensors, {:,} in small.packed".format(*sizes, name=RUN)
        in lines
    )
    stated = re.fullmatch(r"outputs of small.packed differ by (\S+) of the largest, on random inputs", lines[-1])
    assert stated is not None
    assert 0 < float(stated[1]) < 1e-5


@pytest.mark.usefixtures("weights")
def test_sizes_can_be_rounded_up(capsys):
    output, _ = run(capsys, "shrink", RUN, "--round-to", "8", "-o", "small.packed")
    sizes = [len(tensor) for name, tensor in load_packed("small.packed").items() if name.endswith("weight")]
    assert 10 in sizes
    assert all(size % 8 == 0 for size in sizes if size != 10)
    assert "rows of zeros, since sizes are rounded up to multiples of 8" in output
    assert "--round-to" in error(capsys, "shrink", RUN, "--round-to", "0", "-o", "other.packed")


def test_json_says_the_same(capsys, weights, network):
    output, messages = run(capsys, "shrink", RUN, "-o", "a.packed", "--values", "bf16", "--json")
    found = json.loads(output)
    assert messages == "wrote a.packed\n"
    small = read("a.packed")
    assert {name: found[name] for name in ("path", "weights", "values")} == {
        "path": "a.packed",
        "weights": f"{RUN}/weights.safetensors",
        "values": "bf16",
    }
    assert found["num_parameters"] == [num_parameters(network), num_parameters(small)]
    assert found["dense_bytes"] == [4 * number for number in found["num_parameters"]]
    assert found["file_bytes"] == [weights.stat().st_size, Path("a.packed").stat().st_size]
    first = 2 * 9 * 64  # operations per channel of the first convolution
    assert found["flops_per_image"][0] == first * 16 * (1 + 3 * 16) + first // 4 * 32 * (16 + 3 * 32) + 2 * (
        64 * (128 + 64) + 640
    )
    assert found["flops_per_image"][1] < found["flops_per_image"][0] / 2
    shapes = {name: list(tensor.shape) for name, tensor in small.state_dict().items()}
    before = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert all(x["new_shape"] == shapes[x["name"]] and x["shape"] == before[x["name"]] for x in found["shrunk"])
    assert {x["name"] for x in found["shrunk"]} == {name for name in shapes if shapes[name] != before[name]}
    assert {x["name"] for x in found["left"]} <= {name for name in shapes if name.endswith("weight")}


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(("values", "smallest", "largest"), [("bf16", 1e-4, 0.05), ("int8", 1e-4, 0.1)])
def test_what_narrow_values_cost_is_said(capsys, network, values, smallest, largest):
    """Measured anew on the same images, with the file that was written."""
    output, _ = run(capsys, "shrink", RUN, "-o", "small.packed", "--values", values)
    images = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = network(images), read("small.packed")(images)
    difference = float((found - expected).abs().max() / expected.abs().max())
    assert smallest < difference < largest
    stated = f"outputs of small.packed differ by {difference:.1e} of the largest, on random inputs, with values as"
    assert f"{stated} {values}" in output.splitlines()
    assert {x.stored_as for x in inspect_packed("small.packed").tensors if len(x.shape) > 1} <= {"bfloat16", "int8"}


@pytest.mark.usefixtures("weights")
def test_the_file_is_exported_inspected_unpacked_and_shrunk_again(capsys, network):
    run(capsys, "shrink", "strongreg-out", "-o", "small.packed")
    run(capsys, "export", "small.packed", *RECIPE, "--onnx", "small.onnx")
    run(capsys, "export", "strongreg-out", "--onnx", "full.onnx")
    assert Path("small.onnx").stat().st_size < Path("full.onnx").stat().st_size / 2
    images = torch.randn(5, 1, 8, 8)
    session = onnxruntime.InferenceSession("small.onnx")
    (found,) = session.run(["output"], {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        assert_same(torch.from_numpy(found), network(images))
    run(capsys, "unpack", "small.packed")
    output, _ = run(capsys, "inspect", "small.packed")
    assert (
        f"bytes ({inspect_packed('small.packed').dense_bytes:,} to {Path('small.packed').stat().st_size:,})" in output
    )
    _, messages = run(capsys, "shrink", "small.safetensors", *WORDS, "-o", "again.packed")
    assert messages == (
        "nothing was removed: the rows and columns of zeros that there are cannot go, for the reasons above\n"
        "wrote again.packed\n"
    )
    assert Path("again.packed").read_bytes() == Path("small.packed").read_bytes()


@pytest.mark.usefixtures("weights")
def test_beside_the_weights_it_needs_no_recipe(capsys):
    assert run(capsys, "shrink", RUN)[1] == f"wrote {RUN}/weights.small.packed\n"
    output, _ = run(capsys, "export", f"{RUN}/weights.small.packed", "--pt2", "a.pt2")
    assert "any batch size" in output
    assert run(capsys, "shrink", f"{RUN}/weights.small.packed")[1].endswith("/weights.small.small.packed\n")


@pytest.mark.usefixtures("weights")
def test_where_nothing_can_go_the_file_is_written_and_that_is_said(capsys, dense):
    output, messages = run(capsys, "shrink", "dense", "-o", "same.packed")
    assert messages == (
        "nothing was removed: no row or column of a weight is all zeros; "
        "GroupL2 and SparseGroup make such, if strong\n"
        "wrote same.packed\n"
    )
    assert "1.0 times fewer parameters" in output
    assert "left in" not in output
    assert "outputs of same.packed do not differ, on random inputs" in output
    state = load_packed("same.packed")
    assert all(torch.equal(tensor, state[name]) for name, tensor in dense.state_dict().items())


@pytest.mark.usefixtures("weights")
def test_a_network_of_ones_own(capsys, monkeypatch):
    own = ["linear.safetensors", "--image-shape", "1,8,8", "--num-classes", "10", "--model", "branches:branching"]
    message = error(capsys, "shrink", *own, "-o", "a.packed")
    assert message.startswith("torch.export cannot follow Branching on these inputs: ")
    assert not Path("a.packed").exists()

    def refuse(*_):
        raise ValueError("it has '1.bias', which the network has not")

    monkeypatch.setattr(command, "load_shrunk", refuse)
    message = error(capsys, "shrink", "dense", "-o", "a.packed")
    assert message.startswith("it has '1.bias', which the network has not: what was left could not be read back")
    assert not Path("a.packed").exists()


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "there is no file none: give the directory of a finished run"),
        (["."], "holds 2 runs: name one"),
        (["empty"], "there is no file empty/weights.safetensors: give the directory of a finished run"),
        (["branches.py", *WORDS], "branches.py is no safetensors file, or damaged"),
        (["model.packed"], "which network is model.packed? Give the directory of its run, which is enough, or its"),
        (["model.packed", "--recipe", "none"], "cannot read recipe none: No such file"),
        (["dense", "--model", "lenet"], "unknown model 'lenet': did you mean 'lenet"),
        (["dense", "--model", "plain_cnn"], "does not fit the model: it lacks ['0.bias', '0.weight',"),
        (["dense", "--num-classes", "9"], "'5.weight' is (10, 100) there, (9, 100) here; the model is lenet300"),
        (
            ["dense", "--num-classes", "11"],
            "a network of these sizes returns shape (2, 10) for 2 inputs; the model is lenet300 for images of 1x8x8",
        ),
        (
            ["dense", "--image-shape", "1,8,9"],
            "'1.weight' is (300, 64) there, (300, 72) here; a network of these sizes fails on",
        ),
        (["dense", "--image-shape", "1,8"], "--image-shape '1,8': write channels,height,width"),
        (["dense", "--num-classes", "0"], "--num-classes"),
        (["dense", "--values", "fp8"], "unknown values 'fp8': choose one of bf16, fp16, fp32, int8"),
        (
            ["model.packed", *WORDS, "-o", "model.packed"],
            "model.packed would be overwritten: choose another with --out",
        ),
        (["dense", "-o", "dense/../dense/weights.safetensors"], "dense/weights.safetensors would be overwritten"),
        (["dense", "-o", "none/a.packed"], "cannot write to none/a.packed: there is no directory none; make it, or"),
        (["dense", "-o", "dense"], "cannot write to dense: it is a directory; give a file with --out"),
        (["dense", "-o", ""], "cannot write to .: it is a directory; give a file with --out"),
        (["nan.safetensors", "--recipe", "dense/recipe.toml"], "1.weight holds NaN or infinity: shrink a network that"),
        (["large.safetensors", "--recipe", "dense/recipe.toml", "--values", "fp16"], "cannot hold 1e+06 in tensor"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_error_is_one_line_and_nothing_is_written(capsys, dense, arguments, message):
    Path("empty").mkdir()
    for name, value in (("nan", torch.nan), ("large", 1e6)):
        with torch.no_grad():
            dense[1].weight[0, 0] = value
        save_file(dense.state_dict(), f"{name}.safetensors")
    before = {file: file.read_bytes() for file in Path.cwd().rglob("*") if file.is_file()}
    assert message in error(capsys, "shrink", *arguments)
    assert {file: file.read_bytes() for file in Path.cwd().rglob("*") if file.is_file()} == before


@pytest.mark.usefixtures("weights")
def test_help_shows_examples_that_run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    exported = Mock(return_value="small.onnx")
    monkeypatch.setattr(export, "export_onnx", exported)
    output, _ = run(capsys, "shrink", "--help")
    for option in ("--out", "--values", "--weights", "--recipe", "--model", "--image-shape", "--num-classes", "--json"):
        assert option in output
    shown = examples(output)
    assert [arguments[0] for arguments in shown] == ["shrink", "shrink", "shrink", "export"]
    for arguments in shown:
        run(capsys, *arguments)
    (model, _, target), _ = exported.call_args
    assert target == Path("small.onnx")
    assert num_parameters(model) == num_parameters(read("small.packed"))
