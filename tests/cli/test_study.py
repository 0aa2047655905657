"""The commands that explain: tolerance, diagnose and report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
from safetensors.torch import save

from cli.command import error, examples, interrupt, run
from experiments.finished import DAMAGES, damage
from strongreg import History
from strongreg.experiments import pool
from strongreg.experiments.engine import load_history
from strongreg.experiments.recipe import COMPARED
from strongreg.experiments.tolerance import Tolerance, ToleranceStudy

SHORT = ["--model", "lenet300", "--epochs", "2", "--methods", "always", "--strength", "0.05", "--precision", "100"]
TOLERANCE_FILES = ["recipe.json", "runs", "tolerance.json", "tolerance.svg"]


@pytest.fixture
def no_search(monkeypatch) -> Mock:
    """Stands in for the search itself: whatever is asked for is found at once."""

    def search(study: ToleranceStudy, *_: object) -> list[Tolerance]:
        (study.directory / "tolerance.json").write_text("{}\n")
        return [Tolerance(method, 0.1, 0.2, "died", 0.9, 2.0, 0.5) for method in study.methods]

    found = Mock(side_effect=search)
    monkeypatch.setattr(ToleranceStudy, "run", lambda *arguments: found(*arguments))
    return found


# ---------------------------------------------------------------------- help


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "tolerance",
            "--data --model --penalty --strength --methods --seeds --precision --device --workers --out --json",
        ),
        ("diagnose", "--figure --steps --dark --json"),
        ("report", "--out"),
    ],
)
def test_help_of_a_command_names_its_options_and_shows_examples_that_are_valid(
    capsys, out, no_search, command, options
):
    output, _ = run(capsys, command, "--help")
    assert all(option in output for option in options.split())
    for name in ("strongreg-out/compare-1", "runs/first", "runs/second", "runs/a", "runs/b", "runs/c"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).symlink_to(out.resolve())
    shown = examples(output)
    assert len(shown) >= 3
    for arguments in shown:
        run(capsys, *arguments)
    assert no_search.call_count == (len(shown) if command == "tolerance" else 0)


def test_the_examples_of_the_whole_command_name_commands_that_there_are(capsys):
    output, _ = run(capsys, "--help")
    shown = {arguments[0] for arguments in examples(output)}
    assert {"compare", "train", "tolerance", "diagnose"} <= shown
    for command in shown:
        assert f"strongreg {command}" in run(capsys, command, "--help")[0]


# ---------------------------------------------------------------------- tolerance


def test_tolerance_shows_its_levels_writes_its_files_and_trains_nothing_twice(capsys, monkeypatch):
    output, messages = run(capsys, "tolerance", *SHORT, "--out", "found")
    assert sorted(path.name for path in Path("found").iterdir()) == TOLERANCE_FILES
    content = json.loads(Path("found/tolerance.json").read_text())
    (level,) = content["tolerance"]
    assert level["method"] == "always"
    assert "always" in output
    assert f"{level['endured']:.4g}" in output
    assert max(map(len, output.splitlines())) <= 80
    assert messages.count("always at ") == len(content["probes"]) >= 2
    assert messages.endswith("wrote found/tolerance.json and found/tolerance.svg\n")
    assert Path("found/tolerance.svg").read_text().startswith("<svg")

    before = {file: file.stat().st_mtime_ns for file in Path("found/runs").glob("*/*")}
    monkeypatch.setattr(pool, "ProcessPoolExecutor", Mock(spec=["shutdown"]))  # nothing can be submitted
    again, _ = run(capsys, "tolerance", *SHORT, "--out", "found", "--json")
    assert json.loads(again) == content
    assert again == Path("found/tolerance.json").read_text()
    assert {file: file.stat().st_mtime_ns for file in Path("found/runs").glob("*/*")} == before

    # the other two commands read what it wrote
    verdicts = json.loads(run(capsys, "diagnose", "found", "--json")[0])
    assert len(verdicts) == len(before) // 5
    run(capsys, "report", "found")
    assert Path("report.html").read_text(encoding="utf-8").count("<svg") == 3


def test_options_reach_the_search(capsys, no_search):
    run(capsys, "tolerance", "--penalty", "l2", "--strength", 0.3, "--seeds", 2, "--workers", 3, "--out", "here")
    study, workers, _ = no_search.call_args.args
    assert (study.recipe.penalty.name, study.recipe.penalty.strength) == ("l2", 0.3)
    # what makes no zeros relaxes to nothing, instead of being switched off for a refit
    penalty = study.recipe.penalty
    assert (penalty.ramp_share, penalty.final_factor, penalty.refit_share) == (0.5, 0.0, 0.0)
    assert study.recipe.training.epochs == 30
    assert (study.methods, study.seeds, workers) == (["always", "delayed", "coherent"], [0, 1], 3)


def test_the_best_device_is_a_real_one(capsys, no_search):
    run(capsys, "tolerance", "--device", "auto", "--out", "here")
    assert no_search.call_args.args[0].recipe.training.device != "auto"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--methods dense", "unknown method 'dense'"),
        ("--methods always,coherrent", "unknown method 'coherrent': did you mean 'coherent'?"),
        ("--seeds 0", "seeds=0: must be >= 1"),
        ("--workers 0", "workers=0: must be >= 1"),
        ("--precision 1", "precision=1.0: must be above 1"),
        ("--precision nan", "precision=nan: must be above 1"),
        ("--precision inf", "precision=inf: must be above 1"),
        ("--precision fine", "'--precision'"),
        ("--strength 0", "strength=0.0: the search for always begins at a positive strength"),
        ("--strength -1", "strength=-1.0: must"),
        ("--epochs 0", "epochs=0: must"),
        ("--device gpu", "device 'gpu' cannot be used"),
        ("--data digit", "unknown data set 'digit'"),
        ("--model plain_cn", "unknown model 'plain_cn'"),
        ("--set methods.always.penalty.strength=1", "methods.always sets penalty.strength"),
        ("--out mine", "cannot write to mine"),
        ("--out mine/below", "cannot write to mine/below"),
        ("--recipe none.toml", "cannot read recipe none.toml"),
        ("extra", "extra"),
    ],
)
def test_a_bad_value_is_one_line_and_nothing_is_written(capsys, elsewhere, no_search, options, message):
    (elsewhere / "mine").write_text("a file")
    assert message in error(capsys, "tolerance", *options.split())
    assert no_search.call_count == 0
    assert [path.name for path in elsewhere.iterdir()] == ["mine"]


@pytest.mark.usefixtures("no_search")
def test_another_recipe_in_the_directory_and_a_damaged_one_are_one_line(capsys):
    run(capsys, "tolerance", "--out", "here")
    assert "here holds runs of another recipe" in error(capsys, "tolerance", "--epochs", 7, "--out", "here")
    run(capsys, "tolerance", "--set", "training.checkpoint_every=3", "--out", "here")  # changes no number
    Path("here/recipe.json").write_text("{")
    assert "here/recipe.json is damaged" in error(capsys, "tolerance", "--out", "here")


@pytest.mark.usefixtures("no_search")
def test_a_drawing_that_cannot_be_written_is_one_line(capsys):
    Path("here/tolerance.svg").mkdir(parents=True)
    assert error(capsys, "tolerance", "--out", "here").startswith("cannot write to here/tolerance.svg: ")


def test_a_damaged_run_of_a_search_is_one_line_that_names_it(capsys):
    folder = Path("here/runs/dense-seed0")
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    assert f"{folder / 'result.json'} is damaged" in error(capsys, "tolerance", *SHORT, "--out", "here")


def test_ctrl_c_keeps_what_was_tried_and_the_same_command_goes_on():
    arguments = ["tolerance", "--model", "lenet300", "--epochs", "400", "--workers", "1", "--out", "out"]
    stopped = interrupt(arguments, "out/runs/*/metrics.jsonl")
    assert stopped.returncode == 2
    assert stopped.stdout == ""
    assert stopped.stderr == (
        "strongreg: error: interrupted: what was tried is kept in out; the same command with --out out goes on\n"
    )
    assert Path("out/runs/dense-seed0/checkpoint.pt").exists()


# ---------------------------------------------------------------------- diagnose


@pytest.mark.usefixtures("out")
def test_diagnose_says_of_every_run_what_happened(capsys):
    output, messages = run(capsys, "diagnose", "out")
    assert messages == ""
    assert re.findall(r"^(\S+): ", output, flags=re.MULTILINE) == [f"{method}-seed0" for method in sorted(COMPARED)]
    assert output.count("evidence: accuracy") == 4
    alone, _ = run(capsys, "diagnose", "out/runs/dense-seed0")
    assert alone.startswith("out/runs/dense-seed0: It learned")
    assert alone.removeprefix("out/runs/") in output


@pytest.mark.usefixtures("out")
def test_diagnose_as_json_is_nothing_else_on_standard_output(capsys):
    output, messages = run(capsys, "diagnose", "out", "--json")
    assert messages == ""
    verdicts = json.loads(output)
    assert sorted(verdicts) == [f"out/runs/{method}-seed0" for method in sorted(COMPARED)]
    for verdict in verdicts.values():
        assert sorted(verdict) == ["advice", "evidence", "layer", "step", "verdict"]
    assert verdicts["out/runs/dense-seed0"]["verdict"] == "learned"


@pytest.mark.usefixtures("out")
def test_diagnose_draws_a_run_and_says_what_it_says_without(capsys):
    plain, _ = run(capsys, "diagnose", "out/runs/always-seed0")
    output, messages = run(capsys, "diagnose", "out/runs/always-seed0", "--figure", "a.svg")
    assert (output, messages) == (plain, "wrote a.svg\n")
    title = plain.partition(": ")[2].partition("\n")[0]
    assert f">{title}</text>" in Path("a.svg").read_text(encoding="utf-8")
    content = Path("a.svg").read_bytes()
    output, _ = run(capsys, "diagnose", "out/runs/always-seed0", "--figure", "a.svg", "--json")
    assert list(json.loads(output)) == ["out/runs/always-seed0"]
    assert Path("a.svg").read_bytes() == content
    run(capsys, "diagnose", "out/runs/always-seed0", "--figure", "a.svg", "--dark", "--steps", "0:20")
    assert Path("a.svg").read_bytes() != content
    run(capsys, "diagnose", "out/runs/always-seed0", "--figure", "a.PNG", "--quiet")
    assert Path("a.PNG").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("out")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("out/runs/dense-seed0 --figure a.pdf", "--figure a.pdf: give the file an ending of .svg or .png"),
        ("out/runs/dense-seed0 --figure a", "--figure a: give the file an ending of .svg or .png"),
        ("out/runs/dense-seed0 --figure none/a.svg", "there is no directory none; make it, or choose another --figure"),
        ("out/runs/dense-seed0 --figure file/a.svg", "cannot write to file/a.svg: "),
        ("out/runs/dense-seed0 --figure dir.svg", "it is a directory; give a file with --figure"),
        ("out --figure a.svg", "--figure shows one run, out holds 4: name one, such as out/runs/always-seed0"),
        ("out/runs/dense-seed0 --dark", "--dark is for a figure: say with --figure where to draw"),
        ("out/runs/dense-seed0 --steps 0:9", "--steps is for a figure: say with --figure where to draw"),
        ("out/runs/dense-seed0 --figure a.svg --steps 9", "--steps 9: give the first and the last step, such as 0:100"),
        ("out/runs/dense-seed0 --figure a.svg --steps 9:0", "--steps 9:0: give the first and the last step"),
        ("out/runs/dense-seed0 --figure a.svg --steps=-1:4", "--steps -1:4: give the first and the last step"),
        ("out/runs/dense-seed0 --figure a.svg --steps 500:900", "--steps 500:900: 0 of these steps recorded"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_one_line_and_no_file(capsys, arguments, message):
    Path("file").write_text("mine")
    Path("dir.svg").mkdir()
    assert message in error(capsys, "diagnose", *arguments.split())
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["dir.svg", "file", "out"]


@pytest.mark.usefixtures("out")
def test_a_run_without_history_has_no_figure(capsys):
    file = Path("out/runs/dense-seed0/history.safetensors")
    empty = History(load_history(file).layers)
    file.write_bytes(save(empty.state_dict(), metadata={"layers": json.dumps(empty.layers)}))
    message = error(capsys, "diagnose", "out/runs/dense-seed0", "--figure", "a.svg")
    assert "a run without recorded steps or epochs cannot be diagnosed" in message
    assert not Path("a.svg").exists()


def _unfinish(folder: Path) -> None:
    for name in ("result.json", "history.safetensors", "model.packed", "weights.safetensors"):
        (folder / name).unlink()


@pytest.mark.usefixtures("out")
def test_a_run_that_is_not_finished_is_left_out_with_a_word_on_what_finishes_it(capsys):
    _unfinish(Path("out/runs/delayed-seed0"))
    told = "the run in out/runs/delayed-seed0 is not finished (epoch 2 is done, accuracy "
    output, messages = run(capsys, "diagnose", "out")
    assert output.count("evidence: accuracy") == 3
    assert messages.startswith(told)
    assert "strongreg train --resume out finishes it" in messages
    _, messages = run(capsys, "report", "out")
    assert messages.startswith(f"left out: {told}")
    for command in ("diagnose", "report"):
        assert told in error(capsys, command, "out/runs/delayed-seed0")


# ---------------------------------------------------------------------- report


@pytest.mark.usefixtures("out")
def test_report_draws_several_directories_on_one_page(capsys):
    Path("new").mkdir()
    output, messages = run(capsys, "report", "out/runs/dense-seed0", "out", "--out", "new/both.html")
    assert (output, messages) == ("", "wrote new/both.html\n")
    html = Path("new/both.html").read_text(encoding="utf-8")
    assert "<title>4 runs</title>" in html
    assert all(f"out/{method}-seed0" in html for method in COMPARED)


@pytest.mark.usefixtures("out")
def test_a_report_that_cannot_be_written_is_one_line(capsys):
    Path("file").write_text("mine")
    for place in ("file/below.html", "out"):
        assert f"cannot write to {place}: " in error(capsys, "report", "out", "--out", place)
    text = error(capsys, "report", "out", "--out", "none/x.html")
    assert text == "cannot write to none/x.html: there is no directory none; make it, or choose another --out"
    assert not Path("none").exists()


# ---------------------------------------------------------------------- mistakes of both


@pytest.mark.usefixtures("out")
@pytest.mark.parametrize("command", ["diagnose", "report"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere", "nowhere holds no finished run: it does not exist"),
        ("file", "file holds no finished run: it is a file"),
        ("", "Missing argument"),
        ("out --jsno", "--jsno"),
    ],
)
def test_what_holds_no_runs_is_one_line(capsys, command, arguments, message):
    Path("file").write_text("mine")
    assert message in error(capsys, command, *arguments.split())
    assert not Path("report.html").exists()


@pytest.mark.usefixtures("out")
@pytest.mark.parametrize("command", ["diagnose", "report"])
@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl", "history.safetensors"])
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_one_line_that_names_it(capsys, command, name, how):
    file = Path("out/runs/delayed-seed0") / name
    damage(file, how)
    if (name, how) == ("result.json", "missing"):  # a run that is not finished is none
        run(capsys, command, "out")
    else:
        assert str(file) in error(capsys, command, "out")


@pytest.mark.parametrize("command", ["tolerance", "sweep"])
def test_a_search_of_strengths_refuses_a_target_that_adapts_them(capsys, command):
    message = error(capsys, command, "--set", "penalty.target_compression=20")
    assert "penalty.target_compression=20 adapts the strength that is searched for here: leave it out" in message
