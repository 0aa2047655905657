"""A real browser, for what pages show: it opens one without any network and notes what it says and asks for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"none of the browsers {', '.join(BROWSERS)} is installed")
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
class Visit:
    """The page as it stood in the end, what it said on the console, and what it asked for."""

    dom: str
    console: list[str]
    requests: list[str]


def visit(page: Path, directory: Path) -> Visit:
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
    return Visit(done.stdout, re.findall(r":CONSOLE[:(].*", done.stderr), requests)
