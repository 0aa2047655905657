"""Both pages in a real browser: nothing complains, nothing is fetched, every drawing is there to see."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from browser import needs_browser, visit
from experiments.finished import train_runs
from experiments.recipes import recipe
from strongreg.experiments.compare import Comparison
from strongreg.experiments.fate import find_runs
from strongreg.experiments.gallery import write_gallery
from strongreg.experiments.recipe import COMPARED
from strongreg.experiments.report import write_report

pytestmark = [pytest.mark.slow, needs_browser]


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("browser")
    small = recipe(model="lenet300", epochs=2)
    train_runs(directory, small, COMPARED)
    write_report(Comparison(small, COMPARED, [0], directory), directory / "report.html")
    write_gallery(find_runs(directory), directory / "gallery.html")
    return {name: directory / f"{name}.html" for name in ("report", "gallery")}


@pytest.mark.parametrize("name", ["report", "gallery"])
def test_a_browser_has_nothing_to_complain_of_and_nothing_to_fetch(pages, tmp_path, name):
    seen = visit(pages[name], tmp_path / "visit")
    assert seen.console == []
    assert seen.requests == []
    assert seen.dom.count("<svg") == 3


MEASURE = """<script>
const sizes = [...document.querySelectorAll("svg")].map(s => [s.getBoundingClientRect().width,
  s.getBoundingClientRect().height, s.querySelectorAll("path").length]);
document.body.setAttribute("data-sizes", JSON.stringify(
  {sizes, page: document.documentElement.scrollWidth, window: window.innerWidth, mode: document.compatMode}));
</script></body>"""


@pytest.mark.parametrize("name", ["report", "gallery"])
def test_every_drawing_has_its_size_and_the_page_does_not_scroll_sideways(pages, tmp_path, name):
    page = tmp_path / "page.html"
    page.write_text(pages[name].read_text(encoding="utf-8").replace("</body>", MEASURE), encoding="utf-8")
    seen = visit(page, tmp_path / "visit")
    (text,) = re.findall(r'data-sizes="([^"]*)"', seen.dom)
    measured = json.loads(text.replace("&quot;", '"'))
    assert len(measured["sizes"]) == 3
    assert all(width > 300 and height > 80 and paths > 5 for width, height, paths in measured["sizes"])
    assert measured["page"] <= measured["window"]
    assert measured["mode"] == "CSS1Compat"


def test_the_browser_would_notice_a_complaint_and_a_request(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<!doctype html><html><body><img src="http://example.org/a.png"><script>nothing.at.all</script>')
    seen = visit(page, tmp_path / "visit")
    assert any("ReferenceError" in line for line in seen.console)
    assert seen.requests == ["http://example.org/a.png"]
