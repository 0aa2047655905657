"""The site is built without a warning, holds every public name, and is read without a network."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fontTools.ttLib import TTFont

import strongreg
from browser import needs_browser, visit
from docs.markdown import ROOT, code, pictures

pytest.importorskip("sphinx", reason="the extra docs is missing")
pytestmark = pytest.mark.slow
PACKAGES = ("strongreg", "strongreg.penalties", "strongreg.gates", "strongreg.compression", "strongreg.sweeps")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, as ``make docs`` builds it."""
    directory = tmp_path_factory.mktemp("site")
    options = re.search(r"^docs:.*\n(?:.*\n)*?\t.*-m sphinx (.*) docs docs/_build/html", _makefile(), re.MULTILINE)[1]
    command = [sys.executable, "-m", "sphinx", *options.split(), "-d", str(directory / "doctrees")]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, str(ROOT / "docs"), str(directory / "html")],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return directory / "html"


def _makefile() -> str:
    return (ROOT / "Makefile").read_text(encoding="utf-8")


def _documented(site: Path) -> set[str]:
    """Every Python name that the API reference has, by the address of its entry."""
    text = "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))
    return set(re.findall(r'<dt class="sig[^"]*" id="(strongreg[\w.]*)"', text))


def test_every_public_name_is_in_the_api_reference(site):
    documented = _documented(site)
    short = {name.rpartition(".")[2] for name in documented}
    assert {f"strongreg.{name}" for name in strongreg.__all__} - documented == set()
    for package in PACKAGES[1:]:
        # type aliases have no entry: they are named in the signatures
        public = [name for name in importlib.import_module(package).__all__ if name != "Values"]
        assert set(public) - short == set()


def test_every_public_class_of_the_integrations_is_in_the_api_reference(site):
    documented = _documented(site)
    for file in (ROOT / "src" / "strongreg" / "integrations").glob("[a-z]*.py"):
        if file.stem == "options":  # what their callbacks build, for themselves
            continue
        classes = [node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]
        assert {f"strongreg.integrations.{file.stem}.{name}" for name in classes if name[0] != "_"} <= documented


def test_every_command_is_in_the_reference(site):
    text = (site / "commands.html").read_text(encoding="utf-8")
    for name in ("train", "compare", "tolerance", "sweep", "diagnose", "report", "compress", "shrink", "export"):
        assert f'href="#strongreg-{name}"' in text
    assert "--target-compression" in text


def test_every_page_is_built_and_asks_for_nothing_outside(site):
    pages = list(site.rglob("*.html"))
    sources = [page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts]
    assert {path.relative_to(site).with_suffix("") for path in pages} >= {
        path.relative_to(ROOT / "docs").with_suffix("") for path in sources
    }
    for page in pages:
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|link)\b[^>]*?(?:src|href)="([^"]*)"', html)
        assert [address for address in loaded if "//" in address] == []
    for style in (site / "_static").rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", style.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["readme", "why-strong-regularization-fails"])
def test_every_figure_is_shown_in_the_mode_of_the_page(site, name):
    html = (site / f"{name}.html").read_text(encoding="utf-8")
    shown = re.findall(r'<img alt="[^"]{40,}" class="only-(light|dark)" src="([^"]+)"', html)
    assert (
        len(shown) == 2 * len(pictures(ROOT / "README.md" if name == "readme" else ROOT / "docs" / f"{name}.md")) >= 4
    )
    for mode, file in shown:
        assert file.endswith(f"-{mode}.svg")
        assert (site / file).is_file()
    assert "<picture" not in html


def test_every_equation_is_shown_and_numbered(site):
    html = (site / "theory.html").read_text(encoding="utf-8")
    assert re.findall(r'id="equation-(\d+)"', html) == [str(number) for number in range(1, 10)]
    assert html.count("<math") > 100
    assert "$$" not in re.sub(r"<pre.*?</pre>", "", html, flags=re.DOTALL)
    font = site / "_static" / "stix-two-math.woff"
    assert font.stat().st_size < 200_000
    # letters in italics, and what grows: the root, whose sign is not in the text, and the bars of a norm
    assert {ord(c) for c in "𝑔𝑤𝜆𝜃√‖{⟨∑"} <= TTFont(font).getBestCmap().keys()


def test_the_code_of_a_page_is_the_code_that_is_shown(site):
    html = (site / "quick-start.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", "", html)
    first = code(ROOT / "docs" / "quick-start.md", "python")[0].splitlines()[0]
    assert first in text


@needs_browser
@pytest.mark.parametrize("name", ["index", "readme", "theory", "why-strong-regularization-fails"])
def test_a_browser_has_nothing_to_complain_of_and_nothing_to_fetch(site, tmp_path, name):
    seen = visit(site / f"{name}.html", tmp_path / "visit")
    assert seen.console == []
    assert seen.requests == []
    assert "strongreg" in seen.dom
