"""Exported files: they compute what the network does at every batch size, or there is no file."""

from __future__ import annotations

import copy
import logging
import math
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import strongreg
from strongreg import ExportError, export_onnx, export_pt2
from strongreg.compression.exporting import agreement, capture, export
from strongreg.compression.exporting.agreement import relative_difference
from strongreg.compression.exporting.capture import Candidate
from strongreg.experiments.models import build_model

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))


class TwoInputs(nn.Module):
    """Images and token numbers in, two outputs in a tuple and a dictionary."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.linear = nn.Linear(12, 5)

    def forward(self, images, tokens):
        both = self.linear(images.flatten(1)) + self.embedding(tokens).mean(1)
        return both, {"sum": both.sum(1)}


class First(nn.Module):
    def forward(self, *inputs):
        return inputs[0]


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)


class Eigenvalues(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvalsh(x.unsqueeze(1) * x.unsqueeze(2))


class NotATensor(nn.Module):
    def forward(self, x):
        return x, "text"


class Noise(nn.Module):
    """Not the same twice: no export can agree with it."""

    def forward(self, x):
        return x + torch.rand_like(x)


def trained(name: str, shape: tuple[int, int, int]) -> nn.Module:
    """A network in training mode, its running statistics moved and no two biases the same."""
    model = build_model(name, shape, 10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        model(torch.randn(16, *shape))
    return model


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def dense_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def run_onnx(file, *inputs: torch.Tensor) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    given = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
    return [torch.from_numpy(output) for output in session.run(None, given)]


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert relative_difference(expected, got) < 1e-5


# ---------------------------------------------------------------------- what is written


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("plain_cnn", (1, 8, 8)),
        ("resnet20", (3, 16, 16)),
        pytest.param("vit_tiny", (3, 16, 16), marks=pytest.mark.slow),
    ],
)
def test_an_onnx_file_computes_the_same_at_every_batch_size(tmp_path, name, shape):
    model, file = trained(name, shape), tmp_path / "model.onnx"
    exported = export_onnx(model, torch.randn(4, *shape), file)
    assert exported.difference < 1e-5
    assert (exported.path, exported.dynamic_batch, exported.batch_sizes) == (file, True, (4, 1, 5))
    for batch_size in (1, 2, 5):
        images = torch.randn(batch_size, *shape)
        (got,) = run_onnx(file, images)
        with torch.no_grad():
            assert_close(got, copy.deepcopy(model).eval()(images))
    proto = onnx.load(file, load_external_data=False)
    onnx.checker.check_model(proto)
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": exported.opset}
    assert [output.name for output in proto.graph.output] == ["output"]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    # one file, with the weights and little else: no stack trace per node, which would name folders of this machine
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
    assert exported.file_bytes == file.stat().st_size
    assert 0.99 * dense_bytes(model) < exported.file_bytes < 1.01 * dense_bytes(model) + 10_000
    assert b".py" not in file.read_bytes()


@pytest.mark.parametrize(
    ("name", "shape"),
    [("resnet20", (3, 16, 16)), pytest.param("vit_tiny", (3, 16, 16), marks=pytest.mark.slow)],
)
def test_a_pt2_file_computes_the_same_at_every_batch_size(tmp_path, name, shape):
    model, file = trained(name, shape), tmp_path / "model.pt2"
    exported = export_pt2(model, torch.full((4, *shape), math.pi), file)
    assert exported.difference < 1e-5
    assert (exported.path, exported.opset, exported.dynamic_batch) == (file, None, True)
    program = torch.export.load(file)
    for batch_size in (1, 2, 5):
        images = torch.randn(batch_size, *shape)
        with torch.no_grad():
            assert_close(program.module()(images), copy.deepcopy(model).eval()(images))
    assert exported.file_bytes == file.stat().st_size < 1.02 * dense_bytes(model) + 250_000
    content = file.read_bytes()
    assert program.example_inputs is None
    assert np.float32(math.pi).tobytes() * 3 not in content
    assert b".py" not in content


def test_several_inputs_and_outputs(tmp_path):
    model = TwoInputs().eval()
    example = (torch.randn(3, 12), torch.randint(7, (3, 6)))
    onnx_file, pt2_file = tmp_path / "two.onnx", tmp_path / "two.pt2"
    assert export_onnx(model, example, onnx_file).batch_sizes == (3, 1, 4)
    export_pt2(model, list(example), pt2_file)
    loaded = torch.export.load(pt2_file).module()
    for batch_size in (1, 2, 5):
        inputs = (torch.randn(batch_size, 12), torch.randint(7, (batch_size, 6)))
        with torch.no_grad():
            first, named = model(*inputs)
            again, again_named = loaded(*inputs)
        for got in (run_onnx(onnx_file, *inputs), [again, again_named["sum"]]):
            assert_close(got[0], first)
            assert_close(got[1], named["sum"])
    graph = onnx.load(onnx_file).graph
    assert [value.name for value in graph.input] == ["images", "tokens"]
    assert [value.name for value in graph.output] == ["output_0", "output_1"]


@pytest.mark.parametrize("opset", [18, 22])
def test_the_opset_asked_for_is_that_of_the_file(tmp_path, opset):
    exported = export_onnx(small(), torch.randn(2, 4), tmp_path / "model.onnx", opset=opset)
    assert exported.opset == opset
    assert onnx.load(exported.path).opset_import[0].version == opset
    assert f"opset {opset}, any batch size" in str(exported)


@pytest.mark.parametrize("write", [export_onnx, export_pt2])
def test_the_batch_size_can_be_fixed(tmp_path, write):
    exported = write(Fixed(), torch.randn(2, 4), tmp_path / "fixed", dynamic_batch=False)
    assert (exported.dynamic_batch, exported.batch_sizes, exported.difference) == (False, (2,), 0.0)
    assert "batches of 2 only; compared with torch at batches of 2: no difference" in str(exported)
    if write is export_onnx:
        assert onnx.load(exported.path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


@pytest.mark.parametrize("write", [export_onnx, export_pt2])
def test_an_example_of_one_gives_any_batch_size(tmp_path, write):
    exported = write(small(), torch.randn(1, 4), tmp_path / "one")
    assert (exported.dynamic_batch, exported.batch_sizes) == (True, (1, 2))


@pytest.mark.skipif(TORCH < (2, 9), reason="torch exports compiled networks from 2.9 on")
def test_inputs_that_forward_does_not_name(tmp_path):
    exported = export_onnx(
        torch.compile(First(), backend="eager"), (torch.randn(2, 4), torch.ones(3)), tmp_path / "model"
    )
    assert exported.dynamic_batch


@pytest.mark.slow
def test_recurrent_networks_and_attention(tmp_path):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    for model in (nn.LSTM(8, 5, batch_first=True), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)):
        exported = export_onnx(model, torch.randn(3, 6, 8), tmp_path / "sequence.onnx")
        assert exported.difference < 1e-5
        assert exported.dynamic_batch


# ---------------------------------------------------------------------- what is left alone


@pytest.mark.parametrize("write", [export_onnx, export_pt2])
def test_the_network_and_the_process_stay_as_they_were(tmp_path, capfd, write):
    model, example = small().train(), torch.randn(3, 4)
    before, inputs = copy.deepcopy(model.state_dict()), example.clone()
    modes, random, levels = [m.training for m in model.modules()], torch.get_rng_state(), _levels()
    write(model, example, tmp_path / "model")
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(example, inputs)
    assert torch.equal(torch.get_rng_state(), random)
    assert _levels() == levels
    assert capfd.readouterr() == ("", "")


def _levels() -> list[int]:
    return [logging.getLogger(name).level for name in ("torch", "onnxscript")]


def test_what_the_network_itself_says_is_heard(tmp_path, capsys):
    class Talks(nn.Module):
        def forward(self, x):
            sys.stderr.write("heard")
            return nn.functional.softmax(x)

    with pytest.warns(UserWarning, match="Implicit dimension choice for softmax"):
        export_pt2(Talks(), torch.randn(2, 4), tmp_path / "model")
    assert "heard" in capsys.readouterr().err


# ---------------------------------------------------------------------- what fails

_BOTH = [
    (Branch(), {}, ExportError, "torch cannot export Branch: Could not guard on data-dependent expression"),
    (Fixed(), {}, ExportError, "Fixed does not take batches of any size, or .*dynamic_batch=False"),
    (Noise(), {}, ExportError, "file of Noise at batch size 2 differs from torch by .* more than 0.0001"),
    (nn.Linear(5, 2), {}, ExportError, "Linear fails on the example inputs: mat1 and mat2"),
    (NotATensor(), {}, TypeError, "the network returns a str"),
    (None, {}, TypeError, "model must be a torch.nn.Module, got NoneType"),
]
_ONNX = [
    (Eigenvalues(), {}, ExportError, "torch cannot write Eigenvalues as ONNX: No ONNX function found for .*eigh"),
    (nn.Linear(4, 2).bfloat16(), {}, ExportError, "onnxruntime does not take Linear: .*NOT_IMPLEMENTED"),
    (nn.Identity(), {"opset": 17}, ValueError, "opset=17: must be between 18 and"),
    (nn.Identity(), {"opset": 99}, ValueError, "opset=99: must be between 18 and"),
    (nn.Identity(), {"opset": "20"}, ValueError, "opset='20': must be between 18 and"),
]


@pytest.mark.parametrize(
    ("write", "model", "options", "kind", "message"),
    [(write, *case) for write, cases in ((export_onnx, _BOTH + _ONNX), (export_pt2, _BOTH)) for case in cases],
)
def test_a_failed_export_leaves_the_former_file_and_says_one_line(
    tmp_path, capfd, write, model, options, kind, message
):
    file = tmp_path / "model"
    file.write_bytes(b"former")
    dtype = model.weight.dtype if isinstance(model, nn.Linear) else torch.float32
    with pytest.raises(kind, match=message) as caught:
        write(model, torch.randn(2, 4, dtype=dtype), file, **options)
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == b"former"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("write", [export_onnx, export_pt2])
def test_an_interrupted_write_leaves_the_former_file(tmp_path, monkeypatch, write):
    def interrupt(_):
        raise KeyboardInterrupt

    file = tmp_path / "model"
    file.write_bytes(b"former")
    monkeypatch.setattr("strongreg.files.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(nn.Identity(), torch.randn(2, 4), file)
    assert file.read_bytes() == b"former"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("write", [export_onnx, export_pt2])
@pytest.mark.parametrize(
    ("inputs", "kind", "message"),
    [
        (None, TypeError, "example_inputs=NoneType: give a tensor"),
        ((), TypeError, r"example_inputs=\(\): give a tensor"),
        ((torch.ones(2, 4), 3), TypeError, r"example_inputs=\(Tensor, int\): give a tensor"),
        (torch.tensor(1.0), ValueError, r"shapes \[\(\)\]: the first dimension is the batch"),
        (torch.ones(0, 4), ValueError, r"shapes \[\(0, 4\)\]: the first dimension is the batch, of 1 or more"),
    ],
)
def test_inputs_without_a_batch_are_refused(tmp_path, write, inputs, kind, message):
    with pytest.raises(kind, match=message):
        write(nn.Identity(), inputs, tmp_path / "model")


@pytest.mark.parametrize("write", [export_onnx, export_pt2])
def test_a_folder_that_is_not_there_is_an_error_before_the_work(tmp_path, monkeypatch, write):
    monkeypatch.setattr(Candidate, "capture", None)
    with pytest.raises(FileNotFoundError):
        write(nn.Identity(), torch.randn(2, 4), tmp_path / "none" / "model")
    with pytest.raises(IsADirectoryError):
        write(nn.Identity(), torch.randn(2, 4), tmp_path)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs the package {package}: run pip install '\.\[export\]' in the clone"):
        export_onnx(nn.Identity(), torch.randn(2, 4), tmp_path / "model.onnx")


def test_a_network_beyond_what_onnx_holds_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(Candidate, "capture", None)
    monkeypatch.setattr(export, "_MAX_ONNX_BYTES", 1000)
    with pytest.raises(ExportError, match="Linear takes 1,640 bytes, an ONNX file at most 1,000: use float16, or exp"):
        export_onnx(nn.Linear(40, 10), torch.randn(2, 40), tmp_path / "model.onnx")


def test_another_opset_than_the_one_asked_for_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "FIRST_OPSET", 7)
    told = "opset=9: torch cannot write Sequential in it, only in 18" if TORCH >= (2, 9) else "cannot write Sequential"
    with pytest.raises(ExportError, match=told):
        export_onnx(small(), torch.randn(2, 4), tmp_path / "model.onnx", opset=9)


# ---------------------------------------------------------------------- how it is checked


def test_random_inputs_are_of_the_kind_of_the_example():
    numbers, tokens = torch.rand(3, 5) + 4, torch.tensor([[1, 2], [3, 4], [5, 6]])
    table, mask = torch.randn(7, 2), torch.tensor([[True, False]] * 3)
    candidate = Candidate.of(First(), (numbers, tokens, table, mask, torch.zeros(3, 2)))
    assert candidate.batched == (True, True, False, True, True)
    drawn = candidate.inputs_at(50)
    assert [each.shape[0] for each in drawn] == [50, 50, 7, 50, 50]
    assert torch.isin(drawn[0], numbers).all()
    assert {tuple(row) for row in drawn[1].tolist()} == {(1, 2), (3, 4), (5, 6)}
    assert drawn[2] is candidate.inputs[2]
    assert torch.equal(drawn[3], mask[:1].expand(50, 2))
    assert 0.5 < drawn[4].std() < 1.5
    assert all(map(torch.equal, drawn, candidate.inputs_at(50)))


def test_the_difference_is_relative_to_the_largest_number():
    one = torch.tensor([100.0, 0.0])
    assert relative_difference(one, torch.tensor([100.0, 1.0])) == pytest.approx(0.01)
    assert relative_difference(torch.zeros(2), torch.tensor([0.0, 0.25])) == 0.25
    assert relative_difference(torch.zeros(0), torch.zeros(0)) == 0.0
    odd = torch.tensor([math.nan, math.inf, 1.0])
    assert relative_difference(odd, odd.clone()) == 0.0
    assert relative_difference(odd, torch.tensor([math.nan, math.inf, 1.5])) == 0.5
    assert relative_difference(odd, torch.tensor([0.0, math.inf, 1.0])) == math.inf
    assert relative_difference(one, torch.tensor([100.0, math.inf])) == math.inf


def test_a_size_at_which_the_network_itself_fails_is_left_out():
    model = nn.BatchNorm1d(4, track_running_stats=False)  # which asks for more than one
    candidate = Candidate.of(model, torch.randn(3, 4))
    found = agreement.compare(candidate, lambda inputs: candidate.model(*inputs), dynamic_batch=True, label="it")
    assert found.batch_sizes == (3, 4)


@pytest.mark.parametrize(
    ("exported", "message"),
    [
        (lambda x: 1.001 * x, r"it of Identity at batch size 2 differs from torch by 1.0e-03 of its largest output"),
        (lambda x: x.double(), r"returns \[\('float64', \(2, 4\)\)\] where torch returns \[\('float32', \(2, 4\)\)\]"),
        (lambda x: (x, x), r"at batch size 2 returns \[.*, .*\] where torch returns \["),
        (lambda x: x if len(x) != 1 else x[0], r"at batch size 1 returns \[\('float32', \(4,\)\)\]"),
        (lambda x: x if len(x) != 3 else 1 / 0, "it of Identity fails at batch size 3: division by zero"),
    ],
)
def test_what_differs_is_said(exported, message):
    candidate = Candidate.of(nn.Identity(), torch.randn(2, 4))
    with pytest.raises(ExportError, match=message):
        agreement.compare(candidate, lambda inputs: exported(*inputs), dynamic_batch=True, label="it")


def test_half_precision_has_a_wider_tolerance():
    candidate = Candidate.of(nn.Identity(), torch.ones(2, 4, dtype=torch.float16))
    found = agreement.compare(candidate, lambda inputs: 1.002 * inputs[0], dynamic_batch=True, label="it")
    assert 1e-4 < found.difference < 1e-2


def test_the_reason_is_the_first_line_of_the_first_cause():
    error = RuntimeError("no operator\nmuch more")
    assert capture.reason(error) == "no operator"
    error.__cause__ = KeyError()
    assert capture.reason(error) == "KeyError"


def test_the_names_are_those_of_strongreg():
    assert strongreg.export_onnx is export_onnx
    assert strongreg.export_pt2 is export_pt2
    assert issubclass(strongreg.ExportError, RuntimeError)


class InPlace(nn.Module):
    """Changes what it is given."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(x.add_(1))


@pytest.mark.parametrize("export", [export_onnx, export_pt2])
def test_a_network_that_changes_its_input(export, tmp_path):
    example = torch.zeros(3, 4)
    assert export(InPlace(), example, tmp_path / "model").difference <= 1e-5
    assert torch.equal(example, torch.zeros(3, 4))


def test_weights_that_are_not_finite_are_an_error(tmp_path):
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    with pytest.raises(ExportError, match="weight of Linear holds NaN or infinity"):
        export_onnx(model, torch.zeros(3, 4), tmp_path / "model")
