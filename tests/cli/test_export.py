"""The command export: what it writes, says, and refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from cli.command import error, examples, run
from experiments.recipes import recipe
from strongreg import ExportedFile, save_packed
from strongreg.cli import export as command
from strongreg.experiments.models import build_model
from strongreg.experiments.recipe import show_recipe

NETS = """
import torch
from torch import nn

class Eigenvalues(nn.Sequential):
    def forward(self, x):
        x = super().forward(x)
        return torch.linalg.eigvalsh(x.unsqueeze(1) * x.unsqueeze(2))

class Fixed(nn.Sequential):
    def forward(self, x):
        return super().forward(x).reshape(2, 10)

def eigenvalues(image_shape, num_classes):
    return Eigenvalues(nn.Flatten(), nn.Linear(64, num_classes))

def fixed(image_shape, num_classes):
    return Fixed(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.fixture
def network():
    return build_model("plain_cnn", (1, 8, 8), 10)


@pytest.fixture
def weights(elsewhere, network) -> Path:
    """What a run leaves, the same weights as a packed file, and own_nets.py in the working directory."""
    folder = elsewhere / "strongreg-out" / "train-1" / "runs" / "coherent-seed0"
    folder.mkdir(parents=True)
    (elsewhere / "strongreg-out" / "train-1" / "recipe.toml").write_text(show_recipe(recipe()))
    (folder / "recipe.toml").write_text(show_recipe(recipe()))
    save_file(network.state_dict(), folder / "weights.safetensors")
    save_packed(network, "model.packed")
    save_file({f"1.{k}": v for k, v in torch.nn.Linear(64, 10).state_dict().items()}, "linear.safetensors")
    Path("own_nets.py").write_text(NETS)
    return folder / "weights.safetensors"


@pytest.fixture
def calls(monkeypatch):
    """Stands in for the exports themselves: what they are called with."""
    found = []

    def stand_in(model, images, target, **options):
        found.append((model, images, target, options))
        return ExportedFile(target, 1, options.get("opset"), options["dynamic_batch"], (2,), 0.0)

    monkeypatch.setattr(command, "export_onnx", stand_in)
    monkeypatch.setattr(command, "export_pt2", stand_in)
    return found


def test_a_run_is_written_as_both_and_both_compute_the_same(capsys, out):
    folder = out / "runs" / "dense-seed0"
    output, messages = run(capsys, "export", folder, "--onnx", "model.onnx", "--pt2", "model.pt2")
    assert messages == ""
    first, second = output.splitlines()
    opset = onnx.load("model.onnx").opset_import[0].version
    size = Path("model.onnx").stat().st_size
    assert first.startswith(
        f"model.onnx: {size:,} bytes, opset {opset}, any batch size; compared with torch at batches of "
    )
    assert second.startswith(
        f"model.pt2: {Path('model.pt2').stat().st_size:,} bytes, any batch size; compared with torch"
    )
    model = build_model("lenet300", (1, 8, 8), 10).eval()
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    images = torch.randn(7, 1, 8, 8)
    session = onnxruntime.InferenceSession("model.onnx")
    (got,) = session.run(["output"], {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.export.load("model.pt2").module()(images), expected)


def test_json_says_the_same(capsys, weights):
    output, messages = run(capsys, "export", weights, "--onnx", "a.onnx", "--opset", "19", "--json")
    (file,) = json.loads(output)["files"]
    assert messages == ""
    assert file.pop("difference") < 1e-5
    size = Path("a.onnx").stat().st_size
    sizes = {"file_bytes": size, "batch_sizes": [2, 1, 3]}
    assert file == {"path": "a.onnx", "opset": 19, "dynamic_batch": True, **sizes}


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    "source",
    [
        ["strongreg-out/train-1"],
        ["strongreg-out/train-1/runs/coherent-seed0", "--weights", "model.packed"],
        ["model.packed", "--recipe", "strongreg-out/train-1/recipe.toml"],
        ["model.packed", "--model", "plain_cnn", "--image-shape", "1,8,8", "--num-classes", "10"],
    ],
    ids=" ".join,
)
def test_every_way_to_name_a_network_gives_it_with_its_weights(capsys, network, calls, source):
    run(capsys, "export", *source, "--onnx", "a.onnx", "--opset", 21, "--pt2", "a.pt2")
    assert [(target, options) for _, _, target, options in calls] == [
        (Path("a.onnx"), {"opset": 21, "dynamic_batch": True}),
        (Path("a.pt2"), {"dynamic_batch": True}),
    ]
    for model, images, _, _ in calls:
        assert images.shape == (2, 1, 8, 8)
        assert images.std() > 0.5
        state = model.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_the_batch_size_can_be_fixed(capsys, weights, calls):
    run(capsys, "export", weights, "--pt2", "a.pt2", "--batch-size", 5)
    ((_, images, _, options),) = calls
    assert images.shape == (5, 1, 8, 8)
    assert options == {"dynamic_batch": False}


@pytest.mark.usefixtures("weights")
def test_a_network_of_ones_own(capsys):
    own = ["linear.safetensors", "--image-shape", "1,8,8", "--num-classes", "10", "--model"]
    reason = "torch cannot write Eigenvalues as ONNX: No ONNX function found for"
    assert reason in error(capsys, "export", *own, "own_nets:eigenvalues", "--onnx", "a.onnx")
    assert "any batch size" in run(capsys, "export", *own, "own_nets:eigenvalues", "--pt2", "a.pt2")[0]
    message = error(capsys, "export", *own, "own_nets:fixed", "--onnx", "a.onnx")
    assert message.startswith("Fixed does not take batches of any size")
    assert message.endswith("or fix it with --batch-size")
    output, _ = run(capsys, "export", *own, "own_nets:fixed", "--pt2", "fixed.pt2", "--batch-size", 2)
    assert "batches of 2 only" in output
    assert not Path("a.onnx").exists()


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["strongreg-out"], "nothing to write: give --onnx FILE, --pt2 FILE, or both"),
        (["strongreg-out", "--pt2", "a", "--opset", "20"], "--opset 20 is of ONNX: give --onnx FILE too"),
        (["strongreg-out", "--pt2", "a", "--onnx", "a"], "--onnx and --pt2 are both a: choose two files"),
        (["none", "--pt2", "a"], "there is no file none: give the directory of a finished run"),
        (["own_nets.py", "--pt2", "a", "--recipe", "none"], "cannot read recipe none: No such file"),
        (
            ["model.packed", "--pt2", "a"],
            "which network is model.packed? Give the directory of its run, which is enough",
        ),
        (["strongreg-out", "--pt2", "a", "--model", "plain"], "unknown model 'plain': did you mean 'plain_cnn'?"),
        (["strongreg-out", "--pt2", "a", "--model", "lenet5", "--image-shape", "1,28,28"], "does not fit the model"),
        (["strongreg-out", "--pt2", "a", "--num-classes", "9"], "does not fit the model"),
        (["strongreg-out", "--pt2", "a", "--num-classes", "0"], "--num-classes"),
        (["strongreg-out", "--pt2", "a", "--batch-size", "0"], "--batch-size"),
        (
            ["strongreg-out", "--pt2", "a", "--image-shape", "1x8x8"],
            "--image-shape '1x8x8': write channels,height,width",
        ),
        (
            ["strongreg-out", "--pt2", "a", "--image-shape", "1,8,0"],
            "--image-shape '1,8,0': write channels,height,width",
        ),
        (["model.packed", "--weights", "model.packed", "--pt2", "a"], "--weights model.packed replaces the weights"),
        (["strongreg-out", "--weights", "model.packed", "--pt2", "model.packed"], "model.packed would be overwritten"),
        (
            ["strongreg-out", "--pt2", "none/a"],
            "cannot write to none/a: there is no directory none; make it, or choose",
        ),
        (
            ["strongreg-out", "--onnx", "strongreg-out"],
            "cannot write to strongreg-out: it is a directory; give a file with --onnx",
        ),
        (["strongreg-out", "--onnx", "a", "--opset", "17"], "opset=17: must be between 18 and"),
        (["strongreg-out", "--onnx", "a", "--opset", "x"], "--opset"),
        (["own_nets.py", "--pt2", "a", "--recipe", "own_nets.py"], "recipe own_nets.py is not TOML"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_error_is_one_line_and_nothing_is_written(capsys, arguments, message):
    before = sorted(Path.cwd().rglob("*"))
    assert message in error(capsys, "export", *arguments)
    assert sorted(Path.cwd().rglob("*")) == before


def test_a_missing_package_is_one_line(capsys, weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install '.[export]' in the clone" in error(capsys, "export", weights, "--onnx", "a.onnx")


@pytest.mark.usefixtures("weights")
def test_help_shows_examples_that_run(capsys, calls, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    output, _ = run(capsys, "export", "--help")
    for option in ("--onnx", "--pt2", "--opset", "--batch-size", "--weights", "--recipe", "--model", "--image-shape"):
        assert option in output
    shown = examples(output)
    assert len(shown) == 4
    for arguments in shown:
        run(capsys, *arguments)
    assert len(calls) == 5
