"""The commands for packed files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cli.command import SMALL, error, examples, run
from experiments.finished import RUN_FILES
from strongreg import load_packed, save_packed
from strongreg.cli import packed


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A file of weights in the working directory."""
    monkeypatch.chdir(tmp_path)
    state = {"w": torch.randn(40, 50).masked_fill_(torch.rand(40, 50) < 0.9, 0.0), "bias": torch.randn(40)}
    save_file(state, "model.safetensors")
    return state


def test_compress_inspect_unpack_gives_the_same_weights(capsys, weights):
    output, messages = run(capsys, "compress", "model.safetensors", "-o", "small.packed")
    assert messages == "wrote small.packed\n"
    assert "times fewer bytes (8,160 to " in output
    assert run(capsys, "inspect", "small.packed") == (output, "")
    assert run(capsys, "unpack", "small.packed", "-o", "again.safetensors")[1] == "wrote again.safetensors\n"
    again = load_file("again.safetensors")
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_a_run_is_compressed_beside_its_weights(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(capsys, "train", *SMALL, "--out", "out")
    folder = tmp_path / "out" / "runs" / "coherent-seed0"
    output, _ = run(capsys, "compress", folder, "--values", "bf16")
    result = json.loads((folder / "result.json").read_text())
    counts = json.loads(run(capsys, "inspect", folder / "weights.packed", "--json")[0])
    assert counts["num_nonzero"] == result["num_nonzero_parameters"]
    assert counts["num_elements"] == result["num_parameters"]
    assert counts["dense_bytes"] == 4 * result["num_parameters"]
    assert counts["file_bytes"] == (folder / "weights.packed").stat().st_size
    assert sum(row["packed_bytes"] for row in counts["tensors"]) < counts["file_bytes"]
    assert "bfloat16" in output


def test_tied_tensors_are_unpacked_twice(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared = torch.randn(3)
    save_packed({"a": shared, "b": shared}, "tied.packed")
    run(capsys, "unpack", "tied.packed")
    state = load_file("tied.safetensors")
    assert torch.equal(state["a"], shared)
    assert torch.equal(state["b"], shared)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["compress", "none.safetensors"],
            "there is no file none.safetensors: give the directory of a finished run, or a file",
        ),
        (["compress", "."], "there is no file weights.safetensors: give the directory of a finished run, or a file"),
        (["compress", "noise"], "noise is no safetensors file, or damaged"),
        (["compress", "model.safetensors", "--values", "fp8"], "values 'fp8'"),
        (
            ["compress", "model.safetensors", "-o", "none/x.packed"],
            "cannot write to none/x.packed: there is no directory none; make it, or",
        ),
        (["compress", "large.safetensors", "--values", "fp16"], "cannot hold 1e+06 in tensor 'w'"),
        (["compress", "fine.packed"], "fine.packed would be overwritten"),
        (["inspect", "noise"], "noise is no packed file, or damaged"),
        (["inspect", "model.safetensors"], "a safetensors file, but no packed one"),
        (["unpack", "none"], "cannot read none: No such file or directory; give a packed file, such as model.packed"),
        (["inspect", "none"], "cannot read none: No such file or directory; give a packed file, such as model.packed"),
        (["inspect", "."], "cannot read .: Is a directory; give a packed file, such as model.packed"),
        (["unpack", "fine.packed", "-o", "fine.packed"], "fine.packed would be overwritten"),
        (["unpack", "fine.packed", "--max-bytes", "10"], "choose a larger --max-bytes"),
        (["unpack", "fine.packed", "-o", "none/x"], "cannot write to none/x: there is no directory none; make it, or"),
        (["unpack", "odd.packed"], "safetensors cannot hold the tensors of odd.packed"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_every_error_is_one_line_that_names_the_file(capsys, weights, tmp_path, arguments, message):
    (tmp_path / "noise").write_bytes(b"noise" * 100)
    save_file({"w": torch.full((2, 2), 1e6)}, "large.safetensors")
    save_packed(weights, "fine.packed")
    save_packed({"x": torch.zeros(3, dtype=torch.bits8)}, "odd.packed")
    assert message in error(capsys, *arguments)


def test_a_directory_means_the_run_in_it(capsys, out):
    assert "holds 4 runs: name one, such as out/runs/" in error(capsys, "compress", "out")
    shutil.rmtree(out / "runs" / "always-seed0")
    shutil.copytree(out / "runs" / "dense-seed0", "alone/runs/dense-seed0")
    assert run(capsys, "compress", "alone")[1] == "wrote alone/runs/dense-seed0/weights.packed\n"
    text = error(capsys, "inspect", "alone/runs/dense-seed0")
    assert text.endswith("Is a directory; give alone/runs/dense-seed0/model.packed")


@pytest.mark.parametrize("name", [*RUN_FILES, "checkpoint.pt", "../../config.json", "../../recipe.toml"])
def test_no_command_writes_over_the_files_of_a_run(capsys, out, name):
    folder = Path("out/runs/dense-seed0")
    file = folder / name
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    shutil.copy(folder / "weights.safetensors", "mine.safetensors")
    for command in (["compress", "mine.safetensors"], ["shrink", folder], ["unpack", folder / "model.packed"]):
        text = error(capsys, *command, "-o", file)
        assert text in (
            f"{file} is a file of the run in {file.parent}: choose another --out",
            f"{file} would be overwritten: choose another with --out",
        )
    for option in ("--onnx", "--pt2"):
        assert f"choose another {option}" in error(capsys, "export", out / "runs" / "always-seed0", option, file)
    assert "choose another --out" in error(capsys, "report", "out", "--out", file)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_files_of_these_names_elsewhere_are_written(capsys, out):
    Path("recipe.toml").write_text("")
    run(capsys, "compress", "out/runs/dense-seed0", "-o", "model.packed")
    run(capsys, "unpack", "model.packed", "-o", "weights.safetensors")
    run(capsys, "compress", "out/runs/dense-seed0", "-o", "out/model.packed")
    assert (out / "model.packed").read_bytes() == Path("model.packed").read_bytes()  # the same weights, the same file


def test_the_examples_run(capsys, weights):
    run(capsys, "train", *SMALL, "--out", "strongreg-out/train-1")
    for text in (packed.EPILOG_COMPRESS, packed.EPILOG_INSPECT, packed.EPILOG_UNPACK):
        for arguments in examples("Examples:" + text.partition("Examples:")[2]):
            run(capsys, *arguments)
    loaded = load_packed("model.packed")
    assert torch.equal(loaded["w"], weights["w"].bfloat16().float())
