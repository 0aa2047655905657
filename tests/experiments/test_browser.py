"""Both pages in a real browser: nothing complains, nothing is fetched, every drawing is there to see."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.finished import train_runs
from experiments.recipes import recipe
from strongreg.experiments.compare import Comparison
from strongreg.experiments.fate import find_runs
from strongreg.experiments.gallery import write_gallery
from strongreg.experiments.recipe import COMPARED
from strongreg.experiments.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"none of the browsers {', '.join(BROWSERS)} is installed"),
]
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--hide-scrollbars",
    "--window-size=1200,900",
    "--enable-logging=stderr",
    "--v=0",
]


@dataclass(frozen=True)
class _Visit:
    dom: str
    console: list[str]
    requests: list[str]


def _visit(page: Path, directory: Path) -> _Visit:
    """Open a page without any network, and note what it says on the console and what it asks for."""
    directory.mkdir()
    log = directory / "net.json"
    done = subprocess.run(
        [
            BROWSER,
            *QUIET,
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={directory / 'profile'}",
            f"--log-net-log={log}",
            "--virtual-time-budget=3000",
            "--dump-dom",
            page.resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert "</html>" in done.stdout, done.stderr[-2000:]
    events = json.loads(log.read_text())
    started = events["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [event["params"] for event in events["events"] if event["type"] == started and "params" in event]
    # the browser's own services have no origin; what a page asks for has that of a file
    requests = [
        p["url"] for p in asked if p.get("initiator") != "not an origin" and p.get("url", "").startswith("http")
    ]
    return _Visit(done.stdout, re.findall(r":CONSOLE[:(].*", done.stderr), requests)


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
    visit = _visit(pages[name], tmp_path / "visit")
    assert visit.console == []
    assert visit.requests == []
    assert visit.dom.count("<svg") == 3


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
    visit = _visit(page, tmp_path / "visit")
    (text,) = re.findall(r'data-sizes="([^"]*)"', visit.dom)
    measured = json.loads(text.replace("&quot;", '"'))
    assert len(measured["sizes"]) == 3
    assert all(width > 300 and height > 80 and paths > 5 for width, height, paths in measured["sizes"])
    assert measured["page"] <= measured["window"]
    assert measured["mode"] == "CSS1Compat"


def test_the_browser_would_notice_a_complaint_and_a_request(tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<!doctype html><html><body><img src="http://example.org/a.png"><script>nothing.at.all</script>')
    visit = _visit(page, tmp_path / "visit")
    assert any("ReferenceError" in line for line in visit.console)
    assert visit.requests == ["http://example.org/a.png"]
