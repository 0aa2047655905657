"""The command: what it prints and writes, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from unittest.mock import Mock

import pytest

import strongreg
from cli.command import COMMAND, RECIPE, SMALL, error, examples, interrupt, run
from experiments.finished import DAMAGES, damage, train_runs
from experiments.recipes import recipe
from strongreg import cli
from strongreg.experiments import pool
from strongreg.experiments.data import load_data
from strongreg.experiments.engine import RunStoppedError, train
from strongreg.experiments.errors import UserError
from strongreg.experiments.recipe import COMPARED, Recipe
from strongreg.extras import how_to_install

# ---------------------------------------------------------------------- help and version


def test_the_version_is_that_of_the_package(capsys):
    assert run(capsys, "--version") == (f"strongreg {strongreg.__version__}\n", "")


def test_python_m_strongreg_is_the_command():
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"strongreg {strongreg.__version__}\n", "")


def test_the_installed_script_is_the_command():
    (script,) = (script for script in entry_points(group="console_scripts") if script.name == "strongreg")
    assert script.load() is cli.main


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_the_commands(capsys, flag):
    output, messages = run(capsys, flag)
    assert "compare" in output
    assert "train" in output
    assert all(f" {code} " in " ".join(output.split()) for code in ("0 done;", "2 a mistake", "143 (SIGTERM)"))
    assert messages == ""


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("compare", "--data --model --penalty --strength --gate-threshold --epochs --seeds --device --out --json"),
        ("train", "--method --data --model --penalty --strength --gate-threshold --epochs --seed --device --out"),
    ],
)
def test_help_of_a_command_names_its_options_and_shows_examples_that_are_valid(capsys, no_training, command, options):
    output, _ = run(capsys, command, "--help")
    assert all(option in output for option in options.split())
    shown = examples(output)
    assert len(shown) >= 3
    for arguments in shown:
        run(capsys, *arguments)
    assert no_training.call_count == len(shown)


# ---------------------------------------------------------------------- what a command writes and prints


def test_options_reach_the_configuration_and_the_runs(capsys, no_training):
    options = "--data digits --model lenet300 --penalty group_l2 --strength 0.25 --gate-threshold -0.5 --epochs 7"
    run(capsys, "compare", *options.split(), "--seeds", 3, "--device", "cpu", "--out", "here/there")
    content = json.loads(Path("here/there/config.json").read_text())
    given = {"model": "lenet300", "penalty": "group_l2", "strength": 0.25, "gate_threshold": -0.5, "epochs": 7}
    assert Recipe(**content["config"]) == recipe(**given)
    assert {run.name for run in Path("here/there/runs").iterdir()} == {
        f"{m}-seed{s}" for s in range(3) for m in COMPARED
    }
    assert no_training.call_count == 1


def test_train_has_one_run(capsys, no_training):
    run(capsys, "train", "--method", "always", "--seed", 4, "--out", "here")
    assert [run.name for run in Path("here/runs").iterdir()] == ["always-seed4"]
    assert no_training.call_count == 1


@pytest.mark.parametrize(("workers", "used"), [(1, 1), (3, 3), (100, 8), (None, min(8, os.cpu_count()))])
def test_there_are_no_more_workers_than_asked_for_and_than_runs(capsys, no_training, workers, used):
    run(capsys, "compare", *SMALL, "--seeds", 2, *([] if workers is None else ["--workers", workers]))
    assert no_training.call_args.args[0] == used


def test_without_out_every_command_has_a_new_directory(capsys, no_training):
    for command in ("compare", "compare", "train", "compare"):
        run(capsys, command, *SMALL)
    assert sorted(path.name for path in Path("strongreg-out").iterdir()) == [
        "compare-1",
        "compare-2",
        "compare-3",
        "train-1",
    ]
    assert no_training.call_count == 4


def test_a_finished_comparison_shows_its_table_and_writes_its_report(capsys, out):
    output, messages = run(capsys, "compare", *SMALL, "--out", out)
    rows = [line.split()[0] for line in output.splitlines() if line.split()[:1] and line.split()[0] in COMPARED]
    assert rows == list(COMPARED)
    assert f"lenet300 on digits, l1 of strength {RECIPE.penalty.strength:g}, 2 epochs" in output
    assert "…" not in output
    assert max(map(len, output.splitlines())) <= 80
    assert "4 finished runs found" in messages
    assert f"wrote {out / 'results.json'} and {out / 'report.html'}\n" in messages
    assert (out / "report.html").read_text(encoding="utf-8").count("<svg") == 3
    assert len(json.loads((out / "results.json").read_text())["runs"]) == 4
    packed = (out / "runs" / "dense-seed0" / "model.packed").stat().st_size
    assert f"\ndense: {packed:,} of 202,440 bytes, {202440 / packed:.1f} times fewer\n" in output
    assert [line.split()[0] for line in output.splitlines() if line.endswith(" times fewer")] == [
        f"{method}:" for method in COMPARED
    ]


def test_the_path_of_the_found_runs_is_not_broken_over_lines(capsys, out):
    long = shutil.copytree(out, out.parent / ("long-" * 20))
    assert f" found in {long}, 0 to train\n" in run(capsys, "compare", *SMALL, "--out", long)[1]


def test_json_is_the_file_of_the_results_and_nothing_else_on_standard_output(capsys, out):
    output, messages = run(capsys, "compare", *SMALL, "--json", "--out", out)
    assert json.loads(output) == json.loads((out / "results.json").read_text())
    assert "wrote" in messages


def test_train_gives_the_numbers_of_the_same_method_and_seed_in_compare(capsys, out):
    output, messages = run(capsys, "train", "--method", "coherent", *SMALL, "--json")
    alone = Path("strongreg-out/train-1")
    (alone_run,) = json.loads(output)["runs"]
    together = json.loads((out / "runs/coherent-seed0/result.json").read_text())
    assert {**alone_run, "train_seconds": 0} == {**together, "train_seconds": 0}
    for name in ("metrics.jsonl", "weights.safetensors", "model.packed"):
        file = f"runs/coherent-seed0/{name}"
        assert (alone / file).read_bytes() == (out / file).read_bytes()
    assert "[1/1] coherent, seed 0: accuracy" in messages
    assert (alone / "report.html").exists()


def test_train_shows_the_run_that_was_asked_for_and_keeps_the_others(capsys, out):
    output, messages = run(capsys, "train", "--method", "delayed", *SMALL, "--out", out)
    rows = [line.split()[0] for line in output.splitlines() if line.split()[:1] and line.split()[0] in COMPARED]
    assert rows == ["delayed"]
    assert [line.split()[0] for line in output.splitlines() if line.endswith(" times fewer")] == ["delayed:"]
    assert "4 finished runs found" in messages
    output, _ = run(capsys, "train", "--method", "delayed", *SMALL, "--out", out, "--json")
    assert [entry["method"] for entry in json.loads(output)["runs"]] == ["delayed"]
    assert [entry["method"] for entry in json.loads((out / "results.json").read_text())["runs"]] == list(COMPARED)


def test_of_other_runs_in_the_directory_none_is_begun(capsys, no_training, out):
    (out / "runs" / "coherent-seed0" / "result.json").unlink()
    output, _ = run(capsys, "train", "--method", "coherent", *SMALL, "--out", out)
    assert output == ""  # nothing of what was asked for is there to be shown
    assert no_training.call_count == 1


def test_what_makes_runs_slow_is_said_before_they_begin(capsys, no_training):
    _, messages = run(capsys, "train", *SMALL, "--set", "training.precision=fp16", "--set", "training.compile=true")
    assert [line.partition(" ")[0] for line in messages.splitlines()[:2]] == [
        "training.precision=fp16",
        "training.compile=true:",
    ]
    assert no_training.call_count == 1


def test_runs_that_were_stopped_when_dead_are_marked(capsys, elsewhere):
    dying = recipe(model="lenet300", epochs=4, strength=100.0, training__stop_when_dead=1)
    out = train_runs(elsewhere / "dying", dying, ["dense", "always"])
    output, _ = run(capsys, "train", "--resume", out)
    assert output.splitlines().count("Stopped when dead: always seed 0 after epoch 1 of 4.") == 1
    assert "<p>Stopped when dead: always seed 0 after epoch 1 of 4.</p>" in (out / "report.html").read_text()
    run(capsys, "report", out, "--out", "both.html")
    assert "<p>Stopped when dead: dying/always-seed0 after epoch 1 of 4.</p>" in Path("both.html").read_text()
    run(capsys, "report", out / "runs" / "dense-seed0", "--out", "one.html")
    assert "Stopped when dead" not in Path("one.html").read_text()


# ---------------------------------------------------------------------- recipes


def test_a_recipe_file_is_what_is_trained_and_options_and_set_win_over_it(capsys, no_training):
    Path("mine.toml").write_text(
        """
        [model]
        name = "lenet300"
        [penalty]
        name = "l2"
        strength = 0.3
        [training]
        epochs = 9
        batch_size = 32
        [optimizer]
        lr = 0.5
        """
    )
    options = ["--strength", "0.4", "--epochs", "7", "--set", "training.epochs=5", "--set", "optimizer.lr=0.25"]
    run(capsys, "train", "--recipe", "mine.toml", *options, "--out", "here")
    saved = Recipe(**json.loads(Path("here/config.json").read_text())["config"])
    changes = {"model": "lenet300", "penalty": "l2", "strength": 0.4, "epochs": 5, "batch_size": 32, "lr": 0.25}
    assert saved == recipe(**changes)
    assert no_training.call_count == 1


def test_the_recipe_that_a_run_leaves_behind_trains_it_again(capsys, out):
    run(capsys, "train", "--recipe", out / "recipe.toml", "--method", "coherent", "--out", "again")
    for name in ("weights.safetensors", "model.packed", "metrics.jsonl"):
        file = f"runs/coherent-seed0/{name}"
        assert (Path("again") / file).read_bytes() == (out / file).read_bytes()


# ---------------------------------------------------------------------- resume


def test_resume_of_finished_runs_shows_them_and_trains_nothing(capsys, out):
    before = {file: file.stat().st_mtime_ns for file in out.glob("runs/*/*")}
    output, messages = run(capsys, "train", "--resume", out)
    rows = [line.split()[0] for line in output.splitlines() if line.split()[:1] and line.split()[0] in COMPARED]
    assert rows == list(COMPARED)
    assert f"4 finished runs found in {out}, 0 to train" in messages
    assert {file: file.stat().st_mtime_ns for file in out.glob("runs/*/*")} == before


def test_resume_trains_what_is_unfinished_from_its_checkpoint_with_the_recipe_of_the_directory(capsys, out):
    folder = out / "runs" / "coherent-seed0"
    expected = (folder / "weights.safetensors").read_bytes()
    shutil.rmtree(folder)
    folder.mkdir()
    calls = iter([False] * 30 + [True])
    with pytest.raises(RunStoppedError):
        train(RECIPE, "coherent", 0, load_data("digits"), folder, should_stop=lambda: next(calls))
    kept = (out / "runs" / "dense-seed0" / "result.json").stat().st_mtime_ns
    output, messages = run(capsys, "train", "--resume", out, "--json")
    assert f"3 finished runs found in {out}, 1 to train, 1 of them from a checkpoint" in messages
    assert [entry["method"] for entry in json.loads(output)["runs"]] == list(COMPARED)
    assert (folder / "weights.safetensors").read_bytes() == expected
    assert (out / "runs" / "dense-seed0" / "result.json").stat().st_mtime_ns == kept


@pytest.mark.usefixtures("out")
def test_a_directory_without_runs_says_which_to_give(capsys, no_training):
    def text(directory: str) -> str:
        return error(capsys, "train", "--resume", directory).removeprefix(f"{directory} holds no runs: ")

    assert text("none") == "it does not exist; give the directory that train or compare wrote"
    assert text(".").endswith("; give the directory that train or compare wrote, such as out")
    assert text("out/runs/dense-seed0").endswith("; it is one run of out: give that")
    Path("tol").mkdir()
    Path("tol/recipe.json").write_text("{}")
    assert text("tol").endswith(
        "it is of strongreg tolerance, which goes on by itself with the same command and --out tol"
    )
    assert no_training.call_count == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--epochs 50 --method dense", "without --method, --epochs: leave them out"),
        ("--seed 9", "without --seed: leave it out"),
        ("--set optimizer.lr=1 --penalty l1", "without --penalty, --set: leave them out"),
        ("--method coherent", "without --method: leave it out"),  # the default, but asked for
        ("--device cpu --out elsewhere --data-dir .", "without --device, --out: leave them out"),
    ],
)
def test_resume_takes_no_option_that_it_would_have_to_drop(capsys, out, no_training, options, named):
    before = sorted(Path.cwd().rglob("*"))
    text = error(capsys, "train", "--resume", out, *options.split())
    assert text == f"--resume {out} goes on with the recipe of {out}, {named}, or train anew without --resume"
    assert no_training.call_count == 0
    assert sorted(Path.cwd().rglob("*")) == before
    run(capsys, "train", "--resume", out, "--data-dir", ".", "--json")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"config": 3}', '{"config": null}', '{"config": {"modelx": {}}}'])
def test_resume_with_a_damaged_configuration_is_one_line(capsys, no_training, out, content):
    (out / "config.json").write_text(content)
    text = error(capsys, "train", "--resume", out)
    assert "config.json is damaged" in text or "modelx" in text
    assert no_training.call_count == 0


def test_resume_of_a_folder_that_is_no_run_and_of_a_network_that_is_gone_is_one_line(capsys, no_training, out):
    (out / "runs" / "mine-seed0").mkdir()
    assert "mine-seed0 is not the folder of a run" in error(capsys, "train", "--resume", out)
    (out / "runs" / "mine-seed0").rmdir()
    content = (out / "config.json").read_text().replace('"lenet300"', '"lenet"')
    (out / "config.json").write_text(content)
    (out / "runs" / "dense-seed0" / "result.json").unlink()
    assert "unknown model 'lenet'" in error(capsys, "train", "--resume", out)
    assert no_training.call_count == 0


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("command", ["compare", "train"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--strength -1", "strength=-1.0: must"),
        ("--strength nan", "strength=nan: must be a finite number"),
        ("--strength inf", "strength=inf: must be a finite number"),
        ("--strength strong", "'--strength'"),
        ("--gate-threshold 1.01", "gate.threshold=1.01: must"),
        ("--gate-threshold -1.01", "gate.threshold=-1.01: must"),
        ("--gate-threshold nan", "gate.threshold=nan: must"),
        ("--epochs 0", "epochs=0: must"),
        ("--epochs -3", "epochs=-3: must"),
        ("--epochs 1.5", "'--epochs'"),
        ("--strength much", "'much'"),
        ("--epochs", "'--epochs' requires an argument"),
        ("--model plain_cn", "unknown model 'plain_cn': did you mean 'plain_cnn'?"),
        ("--data digit", "unknown data set 'digit': did you mean 'digits'?"),
        ("--penalty group_l1", "unknown penalty 'group_l1': did you mean 'group_l2'?"),
        ("--device gpu", "device 'gpu' cannot be used"),
        ("--device cuda:99", "device 'cuda:99' cannot be used"),
        ("--device privateuseone", "device 'privateuseone' cannot be used"),
        ("--out mine", "cannot write to mine"),
        ("--out mine/below", "cannot write to mine/below"),
        ("--set penalty.strengthx=1", "did you mean penalty.strength?"),
        ("--set penalty.strength", "write section.key=value"),
        ("--set data.validation_share=2", "data.validation_share=2: must"),
        ("--recipe none.toml", "cannot read recipe none.toml"),
        ("--recipe mine", "recipe mine is not TOML"),
        ("--sedes 3", "--sedes"),
        ("extra", "extra"),
    ],
)
def test_a_bad_value_is_one_line_and_exit_code_2(capsys, elsewhere, no_training, command, options, message):
    (elsewhere / "mine").write_text("a file")
    assert message in error(capsys, command, *options.split())
    assert no_training.call_count == 0
    assert [path.name for path in elsewhere.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("compare --seeds 0", "seeds=0: must be >= 1"),
        ("compare --seeds -2", "seeds=-2: must be >= 1"),
        ("compare --workers 0", "workers=0: must be >= 1"),
        ("train --seed -1", "seed=-1: must be between 0 and 9223372036854775807"),
        ("train --seed 18446744073709551616", "seed=18446744073709551616: must"),
        ("compare --methods ''", "--methods '': a name is missing; write some of dense,always,"),
        ("tolerance --methods always,", "--methods 'always,': a name is missing; write some of always,delayed,"),
        ("compare --methods dense,coherrent", "unknown method 'coherrent': did you mean 'coherent'?"),
        ("compare --methods slimming --model lenet300", "slimming needs batch normalization"),
        ("train --resume nowhere", "nowhere holds no runs"),
        ("train --method coherrent", "unknown method 'coherrent': did you mean 'coherent'?"),
        ("train --method ''", "unknown method"),
        ("train --target-compression 20 --method dense", "dense has no penalty whose strength could adapt"),
        ("train --target-compression 20 --method oneshot", "--set pruning.compression=20"),
        ("compar", "'compar'. Did you mean 'compare', 'compress'? strongreg --help shows what there is"),
        ("compare extra", "(extra); strongreg compare --help shows what there is"),
        ("--verison", "--verison"),
        ("", "Missing command; strongreg --help shows what there is"),
    ],
)
def test_a_mistake_of_one_command_is_one_line_and_exit_code_2(capsys, elsewhere, no_training, arguments, message):
    assert message in error(capsys, *(word.strip("'") for word in arguments.split()))
    assert no_training.call_count == 0
    assert list(elsewhere.iterdir()) == []


def test_a_directory_that_may_not_be_written_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", Mock(side_effect=PermissionError(13, "Permission denied")))
    text = error(capsys, "compare", "--out", "locked")
    assert text == "cannot write to locked: Permission denied; choose another --out"


def test_another_configuration_in_the_directory_is_one_line_that_names_the_difference(capsys, out):
    text = error(capsys, "compare", "--model", "lenet300", "--epochs", 3, "--strength", 0.1, "--out", out)
    assert f"{out} holds runs of another recipe" in text
    assert f"strength={RECIPE.penalty.strength} there, 0.1 now" in text
    assert "epochs=2 there, 3 now" in text
    assert "choose another --out" in text


@pytest.mark.parametrize("content", ["", '{"method": "dense"', "{}", "[]"])
def test_a_damaged_result_is_one_line_that_names_the_file(capsys, out, content):
    file = out / "runs" / "delayed-seed0" / "result.json"
    file.write_text(content)
    text = error(capsys, "compare", *SMALL, "--out", out)
    assert f"{file} is damaged" in text
    assert "delete its folder to train again" in text


@pytest.mark.parametrize("name", ["weights.safetensors", "model.packed", "history.safetensors", "metrics.jsonl"])
@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("command", [["compare", *SMALL, "--out"], ["train", "--resume"]], ids=["compare", "resume"])
def test_a_damaged_file_of_a_finished_run_is_one_line_that_names_it(capsys, no_training, out, command, name, how):
    file = out / "runs" / "delayed-seed0" / name
    damage(file, how)
    assert f"{file} is missing or damaged" in error(capsys, *command, out)
    assert no_training.call_count == 0


@pytest.mark.parametrize("content", [None, '{"epoch": 1'])
def test_damaged_metrics_of_a_finished_run_end_with_one_line_that_names_the_file(capsys, out, content):
    file = out / "runs" / "delayed-seed0" / "metrics.jsonl"
    file.unlink() if content is None else file.write_text(content)
    _, messages = run(capsys, "compare", *SMALL, "--out", out, code=2)
    assert messages.splitlines()[-1].startswith("strongreg: error: ")
    assert str(file) in messages.splitlines()[-1]


def test_a_report_that_cannot_be_written_ends_with_one_line(capsys, out):
    (out / "report.html").mkdir()
    _, messages = run(capsys, "compare", *SMALL, "--out", out, code=2)
    assert messages.splitlines()[-1].startswith("strongreg: error: cannot write")


def test_an_error_during_the_runs_is_one_line(capsys, no_training):
    no_training.side_effect = UserError("a training process died\n  (out of memory?)")
    assert error(capsys, "compare", *SMALL) == "a training process died (out of memory?)"


def test_a_missing_package_is_one_line_that_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "typer", None)
    text = error(capsys, "compare")
    assert text == f"the command needs the package 'typer': {how_to_install('experiments')}"


def test_an_import_that_fails_for_another_reason_says_what_it_is(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "strongreg.cli.app", None)
    assert "strongreg.cli.app" in error(capsys, "compare")
    assert "pip install" not in error(capsys, "compare")


# ---------------------------------------------------------------------- interrupts


def test_an_interrupt_keeps_and_shows_what_is_finished(capsys, out, no_training):
    (out / "runs" / "coherent-seed0" / "result.json").unlink()
    no_training.side_effect = KeyboardInterrupt
    output, messages = run(capsys, "compare", *SMALL, "--json", "--out", out, code=2)
    assert output == ""  # half of the results are not what was asked for
    last = messages.splitlines()[-1]
    assert last == (
        f"strongreg: error: interrupted: 3 of 4 runs are finished and kept in {out}; the same command with "
        f"--out {out} goes on"
    )
    assert "delayed" in messages
    assert (out / "report.html").exists()


def test_an_interrupt_before_the_first_run_is_finished_is_one_line(capsys, no_training):
    no_training.side_effect = KeyboardInterrupt
    assert "interrupted: 0 of 4 runs are finished" in error(capsys, "compare", *SMALL, "--out", "new")


def test_an_interrupt_of_resume_says_that_resume_goes_on(capsys, out, no_training):
    (out / "runs" / "coherent-seed0" / "result.json").unlink()
    no_training.side_effect = KeyboardInterrupt
    _, messages = run(capsys, "train", "--resume", out, code=2)
    assert messages.splitlines()[-1].endswith(f" kept in {out}; strongreg train --resume {out} goes on")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("command", ["compare", "train"])
def test_a_request_to_terminate_has_the_exit_code_of_its_signal(capsys, no_training, command, number, code):
    no_training.side_effect = lambda *_: os.kill(os.getpid(), number)
    output, messages = run(capsys, command, *SMALL, "--out", "new", code=code)
    assert output == ""
    assert "error: interrupted: 0 of " in messages


def test_an_interrupt_before_the_runs_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(pool, "load_data", Mock(side_effect=KeyboardInterrupt))
    assert error(capsys, "compare") == "interrupted"


def test_ctrl_c_keeps_the_finished_runs_and_the_same_command_goes_on(capsys):
    arguments = ["compare", "--model", "lenet300", "--epochs", "8", "--workers", "1", "--out", "out"]
    stopped = interrupt(arguments, "out/runs/*/result.json")
    kept = {file: file.read_bytes() for file in Path("out/runs").glob("*/result.json")}
    assert 1 <= len(kept) < 4
    assert stopped.returncode == 2
    assert "Traceback" not in stopped.stderr
    assert stopped.stdout == ""
    last = stopped.stderr.splitlines()[-1]
    assert last.startswith("strongreg: error: interrupted: ")
    assert "of 4 runs are finished and kept in out; the same command with --out out goes on" in last

    run(capsys, *arguments)
    assert [run["method"] for run in json.loads(Path("out/results.json").read_text())["runs"]] == list(COMPARED)
    assert {file: file.read_bytes() for file in kept} == kept
    alone = Path("alone")
    alone.mkdir()
    train(recipe(model="lenet300", epochs=8), "coherent", 0, load_data("digits"), alone, lambda metrics: None)
    weights = "weights.safetensors"
    assert Path("out/runs/coherent-seed0", weights).read_bytes() == (alone / weights).read_bytes()


def test_ctrl_c_while_the_processes_start_is_answered_at_once():
    stopped = interrupt(["compare", *SMALL, "--workers", "2", "--out", "out"], "out/config.json", delay=1.0)
    assert stopped.returncode == 2
    assert stopped.stderr == (
        "interrupting: the runs under way save their checkpoints\n"
        "strongreg: error: interrupted: 0 of 4 runs are finished and kept in out; the same command with "
        "--out out goes on\n"
    )
