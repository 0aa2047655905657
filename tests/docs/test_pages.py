"""The pages tell the truth: their code runs, their commands and options are there, their links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from docs.markdown import PAGES, ROOT, anchors, code, commands, links, name_of, pictures
from strongreg.cli.app import app
from strongreg.experiments.models import build_model
from strongreg.experiments.recipe import build_recipe, parse_settings, read_recipe

OPTIONS = {
    name: {option: parameter for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for name, command in typer.main.get_command(app).commands.items()
}
OF_ALL = {"--help", "-h", "--version", "--install-completion"}
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b|\.\.\.|[<>\[\]]")


def over(pages: list[Path]) -> pytest.MarkDecorator:
    """A test of each of these pages."""
    return pytest.mark.parametrize("page", pages, ids=name_of)


@over([page for page in PAGES if page != ROOT / "README.md" and code(page, "python")])
def test_the_code_runs(page, tmp_path, monkeypatch, capsys):
    """All blocks of a page, one after the other; those of the README have a test of their own."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for block in code(page, "python"):
        exec(compile(block, name_of(page), "exec", dont_inherit=True), names)
    capsys.readouterr()


@over([page for page in PAGES if commands(page)])
def test_every_command_and_option_is_there(page):
    for words in commands(page):
        _check(words)


def _check(words: list[str]) -> None:
    """One command: its name, its options, and what recipe and --set make."""
    shown = " ".join(words)
    name = words[0]
    if name in OF_ALL:
        return
    assert name in OPTIONS, shown
    values: dict[str, list[str]] = {}
    for i, word in enumerate(words[1:], start=1):
        if re.match(r"--?[a-zA-Z]", word):
            option = word.partition("=")[0]
            assert option in OPTIONS[name] or option in OF_ALL, f"{option} in: {shown}"
            values.setdefault(option, []).extend(words[i + 1 : i + 2])
    settings = [value for value in values.get("--set", []) if not PLACEHOLDER.search(value)]
    files = [Path(value) for value in values.get("--recipe", []) if value.startswith("recipes/")]
    penalty = {"penalty.name": values["--penalty"][0]} if values.get("--penalty") else {}
    build_recipe(penalty | parse_settings(settings), read_recipe(ROOT / files[0]) if files else None)


@over(PAGES)
def test_every_link_leads_somewhere(page):
    wrong = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        there = target.exists() and target.is_relative_to(ROOT)
        if not there or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_every_figure_is_there_for_light_and_for_dark_mode_and_said_in_words():
    shown = {page: pictures(page) for page in PAGES}
    for page, found in shown.items():
        assert len(found) == page.read_text(encoding="utf-8").count("\n<picture>\n"), name_of(page)
        for dark, light, words in found:
            assert dark.name.endswith("-dark.svg")
            assert light == dark.with_name(dark.name.replace("-dark.", "-light."))
            assert len(words) > 40
    files = {file for found in shown.values() for dark, light, _ in found for file in (dark, light)}
    assert files == set((ROOT / "docs" / "figures").iterdir())
    assert sum(file.stat().st_size for file in files) < 500_000


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_the_figures_of_runs_show_the_verdicts_that_the_page_tells(mode):
    page = ROOT / "docs" / "why-strong-regularization-fails.md"
    (told,) = (text for text in code(page, "text") if "always-seed0" in text)
    title, evidence = told.partition(": ")[2].splitlines()[:2]
    always = (ROOT / "docs" / "figures" / f"diagnose-always-{mode}.svg").read_text(encoding="utf-8")
    assert f">{title}</text>" in always
    assert f">always-seed0:{evidence.partition('evidence:')[2]}</text>" in always
    coherent = (ROOT / "docs" / "figures" / f"diagnose-coherent-{mode}.svg").read_text(encoding="utf-8")
    assert ">It learned.</text>" in coherent
    accuracy = re.search(r"The second one has ([\d.]+) %", page.read_text(encoding="utf-8"))[1]
    assert f">coherent-seed0: accuracy {accuracy}% at the end" in coherent


def test_the_checks_find_what_is_wrong(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`, c\n\n[x](gone.md#y) `strongreg train --nothing 3`\n\n```\nstrongreg compare \\\n --seeds 5\n```\n"
    )
    assert anchors(page) == {"a-b-c"}
    assert links(page) == ["gone.md#y"]
    assert commands(page) == [["compare", "--seeds", "5"], ["train", "--nothing", "3"]]
    with pytest.raises(AssertionError, match="--nothing in"):
        _check(["train", "--nothing", "3"])


# ---------------------------------------------------------------------- what the worked examples say of the suites


SUITES = {  # page: module, tests, word, least number of tests
    "adding-a-penalty.md": ("huber", "contract/test_penalty_contract.py", "huber", 40),
    "adding-a-gate.md": ("relaxing", "gates/test_gates.py", "Relaxing", 10),
}


@pytest.mark.slow
def test_the_worked_examples_pass_the_contract_suites(tmp_path, monkeypatch):
    """As the pages say, for both at once: the first block is a module, another one writes the plugin."""
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    for page, (module, tests, word, _) in SUITES.items():
        blocks = code(ROOT / "docs" / "extending" / page, "python")
        Path(f"{module}.py").write_text(blocks[0])
        exec(next(block for block in blocks if "PLUGIN" in block), {})
        command += [str(ROOT / "tests" / tests), "-p", f"{module}_case"]
        assert f"{tests} -p {module}_case -k {word}" in (ROOT / "docs" / "extending" / page).read_text(encoding="utf-8")
    command += ["-k", " or ".join(word for _, _, word, _ in SUITES.values())]
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "tests"), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= sum(least for *_, least in SUITES.values())


def test_the_network_of_the_worked_example_is_one_that_the_commands_take(tmp_path, monkeypatch):
    (tmp_path / "nets").mkdir()
    block = code(ROOT / "docs" / "extending" / "adding-a-network.md", "python")[0]
    (tmp_path / "nets" / "small.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("nets", "nets.small"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert sum(p.numel() for p in build_model("nets.small:build", (3, 15, 16), 7).parameters()) > 10_000
