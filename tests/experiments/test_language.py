"""Language models through the whole of it: trained, stopped and taken up, compared, shrunk, exported, refused."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from strongreg import cli
from strongreg.experiments.data import load_data
from strongreg.experiments.engine import RunStoppedError, load_metrics, load_result, train
from strongreg.experiments.engine.measurement import evaluate
from strongreg.experiments.errors import UserError
from strongreg.experiments.fate import diagnose_run
from strongreg.experiments.models import build_model
from strongreg.experiments.pool import recipe_data
from strongreg.experiments.recipe import Recipe
from strongreg.experiments.table import LOSS_NAME, show_rows, summarize
from strongreg.experiments.trained import load_trained, read_safetensors

from .recipes import NEEDS_MUON, recipe

SENTENCE = b"the strong penalty is imposed only while the gradients agree; "
CONTEXT = 16
FILES = ("metrics.jsonl", "weights.safetensors", "history.safetensors", "model.packed")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("text") / "own.txt"
    file.write_bytes(SENTENCE * 40)
    return file


def _recipe(text: Path, **changes) -> Recipe:
    small = {"model": "decoder", "model__width": 32, "model__depth": 1, "data__context": CONTEXT, "batch_size": 16}
    few = {"epochs": 20, "optimizer__name": "adamw", "lr": 0.01, "strength": 1.0, "gate_threshold": 0.0}
    return recipe(**({"data": str(text), **small, **few} | changes))


def _train(directory: Path, recipe: Recipe, method="coherent", **options):
    directory.mkdir(parents=True, exist_ok=True)
    return train(recipe, method, 0, recipe_data(recipe, None), directory, **options)


@pytest.fixture(scope="module")
def run(text, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    _train(directory, _recipe(text))
    return directory


def test_it_learns_the_text_and_says_how_well(run, text):
    result = load_result(run / "result.json")
    data = load_data(str(text), context=CONTEXT)
    assert result.task == "language"
    assert result.alive
    assert result.accuracy > 0.8
    assert result.chance == data.test.labels.flatten().bincount().max() / data.test.labels.numel()
    model = build_model("decoder", (CONTEXT,), 256, width=32, depth=1)
    model.load_state_dict(read_safetensors(run / "weights.safetensors"))
    with torch.no_grad():
        outputs = model.eval()(data.test.inputs.long())
    loss = functional.cross_entropy(outputs.flatten(0, 1), data.test.labels.flatten()).item()
    assert result.loss == pytest.approx(loss, rel=1e-6)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] == result.loss
    assert lines[0]["loss"] > 2 * lines[-1]["loss"]
    assert result.compression > 1.5
    assert result.num_weights == 32 * 96 + 32 * 32 + 3 * 32 * 88 + 256 * 32  # not the embedding


def test_a_long_text_is_evaluated_in_parts_and_all_of_it(text):
    data = load_data(str(text), context=CONTEXT)
    passages = data.train.select(torch.arange(len(data.train)).repeat(20))
    assert passages.labels.numel() > 2 * 16_384
    model = nn.Sequential(nn.Embedding(256, 8), nn.Linear(8, 256))
    whole = functional.cross_entropy(model(passages.inputs.long()).flatten(0, 1), passages.labels.flatten())
    assert evaluate(model, passages, data.normalize).loss == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize(
    "changes", [{}, {"model__tied": True, "model__dropout": 0.2, "training__accumulate": 3}], ids=str
)
def test_a_stopped_run_goes_on_bit_for_bit(text, tmp_path, changes):
    recipe = _recipe(text, epochs=3, **changes)
    _train(tmp_path / "whole", recipe)
    for steps in (2, 9):
        calls = iter([False] * (steps - 1) + [True])
        with pytest.raises(RunStoppedError):
            _train(tmp_path / "parts", recipe, should_stop=lambda calls=calls: next(calls))
    _train(tmp_path / "parts", recipe)
    for file in FILES:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()


@NEEDS_MUON
def test_muon_takes_the_matrices_within_the_blocks(text, tmp_path):
    result = _train(tmp_path, _recipe(text, epochs=10, optimizer__name="muon", lr=0.02))
    assert result.accuracy > 0.5


def test_tables_of_language_models_show_their_loss(run):
    result = load_result(run / "result.json")
    header, rows = show_rows(summarize([result]))
    assert header[:3] == ["method", "accuracy", LOSS_NAME]
    assert rows[0][:3] == ["coherent", f"{100 * result.accuracy:.1f} %", f"{result.loss:.3f}"]


def test_the_commands_train_report_diagnose_and_export_it(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = {"data.context": CONTEXT, "model.width": 32, "model.depth": 1, "training.batch_size": 16}
    settings |= {"optimizer.name": "adamw", "optimizer.lr": 0.01, "penalty.strength": 0.02}
    command = ["--data", str(text), "--model", "decoder", "--epochs", "10", "--out", "out"]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    assert _exit_code(["train", *command]) == 0
    printed = capsys.readouterr()
    assert "decoder on" in printed.out
    assert "Loss: cross-entropy on the test text, in nats per byte" in printed.out
    assert ", loss " in printed.err
    html = (tmp_path / "out" / "report.html").read_text()
    assert "test loss (nats per byte)" in html
    assert "Loss and weights kept" in html
    assert _exit_code(["diagnose", "out", "--json"]) == 0
    (diagnosis,) = json.loads(capsys.readouterr().out).values()
    assert diagnosis["verdict"] == "nothing_removed"  # at this strength L1 makes next to no zeros under AdamW
    assert _exit_code(["export", "out", "--pt2", "net.pt2", "--batch-size", "2"]) == 0
    exported = torch.export.load(tmp_path / "net.pt2").module()
    tokens = torch.randint(256, (2, CONTEXT))
    model = build_model("decoder", (CONTEXT,), 256, width=32, depth=1)
    model.load_state_dict(read_safetensors(tmp_path / "out" / "runs" / "coherent-seed0" / "weights.safetensors"))
    torch.testing.assert_close(exported(tokens), model.eval()(tokens), rtol=1e-4, atol=1e-5)


def _exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return 0 if ended.value.code is None else ended.value.code


# ---------------------------------------------------------------------- networks of one's own


class _Bigram(nn.Module):
    """The next byte from the last alone."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.table = nn.Linear(num_tokens, num_tokens)

    def forward(self, tokens):
        return self.table(functional.one_hot(tokens, self.table.in_features).float())


def bigram(input_shape, num_classes):
    assert input_shape == (CONTEXT,)
    return _Bigram(num_classes)


def last_only(input_shape, num_classes):
    return nn.Sequential(nn.Embedding(num_classes, 4), nn.Flatten(), nn.Linear(4 * input_shape[0], num_classes))


def test_a_network_of_ones_own_reads_text(text, tmp_path):
    model = f"{__name__}:bigram"
    result = _train(tmp_path, _recipe(text, model=model, model__width=None, model__depth=None, lr=0.1))
    followers = set(itertools.pairwise(SENTENCE))
    assert 0.4 < result.accuracy < 1
    assert result.loss < math.log(len(followers))


def test_a_network_with_one_answer_per_passage_is_an_error_that_says_the_shape():
    with pytest.raises(
        UserError, match=r"turns text of shape \(2, 16\) into shape \(2, 256\) instead of shape \(2, 16, 256"
    ):
        build_model(f"{__name__}:last_only", (CONTEXT,), 256)


# ---------------------------------------------------------------------- what is for images


@pytest.mark.parametrize(
    ("key", "value"),
    [("data.flip", True), ("data.crop_padding", 2), ("data.cutout", 3), ("training.channels_last", True)],
)
def test_what_is_for_images_is_an_error(text, key, value):
    changes = {key.replace(".", "__"): value}
    with pytest.raises(UserError, match=rf"^{key}={value} is for images, and .*own\.txt is a text: leave it out$"):
        recipe_data(_recipe(text, **changes), None)


@pytest.mark.parametrize(
    ("method", "changes", "verdict"),
    [("always", {"strength": 50.0, "epochs": 6}, "collapsed"), ("dense", {"epochs": 1, "lr": 1e-5}, "stalled")],
)
def test_the_loss_of_an_untrained_model_is_no_divergence(text, tmp_path, method, changes, verdict):
    """It is that of 256 bytes of the same probability, three times that of the commonest byte alone."""
    _train(tmp_path, _recipe(text, **changes), method)
    result = load_result(tmp_path / "result.json")
    assert result.num_classes == 256
    assert not result.alive
    assert load_metrics(tmp_path / "metrics.jsonl", result.epochs)[0].train_loss > -3 * math.log(result.chance)
    assert diagnose_run(tmp_path).verdict == verdict


def test_a_trained_model_needs_its_text_no_more(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = (run / "recipe.toml").read_text(encoding="utf-8")
    gone = re.sub(r'name = "[^"]*own\.txt"', 'name = "gone.txt"', recipe)
    assert gone != recipe
    shutil.copytree(run, "run")
    Path("run/recipe.toml").write_text(gone, encoding="utf-8")
    trained = load_trained(Path("run"))
    assert (trained.input_shape, trained.num_classes) == ((CONTEXT,), 256)
