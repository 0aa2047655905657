"""The report: one file that shows why one run died and another lived."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from experiments.finished import change, train_runs
from experiments.pages import Page, assert_needs_nothing, assert_references_are_there_once
from experiments.recipes import recipe
from strongreg.experiments.compare import Comparison
from strongreg.experiments.recipe import COMPARED, show_recipe
from strongreg.experiments.report import write_report

RECIPE = recipe(model="lenet300", epochs=2, strength=0.015)
SEEDS = [0, 1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Four methods with two seeds, trained in this process."""
    return train_runs(tmp_path_factory.mktemp("report"), RECIPE, COMPARED, SEEDS)


def _report(directory: Path, methods=COMPARED, seeds=SEEDS) -> str:
    file = directory / "report.html"
    write_report(Comparison(RECIPE, methods, seeds, directory), file)
    return file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(trained) -> str:
    return _report(trained)


@pytest.fixture
def directory(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "copy")


def _change(directory: Path, run: str, **changes) -> None:
    change(directory / "runs" / run, **changes)


def test_the_report_needs_no_other_file_and_no_network(html):
    assert_needs_nothing(html)


def test_everything_that_a_drawing_refers_to_is_there_once(html):
    assert_references_are_there_once(html)


def test_the_report_is_one_html_page_with_three_drawings(html):
    page = Page(html)
    assert html.startswith("<!doctype html>")
    assert (page.tags.count("html"), page.tags.count("body"), page.tags.count("svg")) == (1, 1, 3)
    assert html.count("<svg") == html.count("</svg>") == 3
    assert "<?xml" not in html
    assert "<!DOCTYPE svg" not in html


@pytest.mark.parametrize(
    "text",
    [
        "test accuracy (%)",
        "weights that are not 0",
        "‖g‖ of the loss",
        "‖λr‖ of the penalty",
        "coherence",
        "share of open steps",
        "epoch",
        *COMPARED,
    ],
)
def test_the_drawings_name_what_they_show(html, text):
    assert text in Page("".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))).texts


def test_the_report_shows_every_method_every_run_and_the_whole_configuration(html):
    page = Page(html)
    assert "lenet300 on digits: dense, always, delayed, coherent" in page.texts
    rows = re.findall(r"<tr[^>]*><td>(.*?)</td><td>(.*?)</td>", html)
    assert [first for first, _ in rows] == [*COMPARED, *[method for _ in SEEDS for method in COMPARED]]
    assert [second for _, second in rows[4:]] == ["0"] * 4 + ["1"] * 4
    assert show_recipe(RECIPE).strip() in page.texts


def test_numbers_of_a_run_are_those_of_its_result(trained, html):
    result = json.loads((trained / "runs" / "coherent-seed1" / "result.json").read_text())
    (row,) = re.findall(r"<tr[^>]*><td>coherent</td><td>1</td>.*?</tr>", html)
    assert f"<td>{100 * result['accuracy']:.1f} %</td>" in row
    assert f"<td>{result['num_nonzero']:,}</td>" in row
    sizes = (result["dense_bytes"], result["file_bytes"])
    assert sizes == (202440, (trained / "runs" / "coherent-seed1" / "model.packed").stat().st_size)
    in_bytes = f"<td>{sizes[0]:,}</td><td>{sizes[1]:,}</td><td>{sizes[0] / sizes[1]:.1f}</td>"
    assert f"<td>{result['compression']:.1f}</td>{in_bytes}" in row


def test_the_outcome_of_a_method_compares_bytes_too(trained, html):
    sizes = sorted((trained / "runs" / f"dense-seed{seed}" / "model.packed").stat().st_size for seed in SEEDS)
    (row,) = re.findall(r"<tr[^>]*><td>dense</td><td>[\d.]* %</td>.*?</tr>", html)
    times = sorted({f"{202440 / size:.1f}" for size in sizes})  # two that look alike are shown as one
    assert row.endswith(f"<td>202,440</td><td>{sizes[0]:,} to {sizes[1]:,}</td><td>{' to '.join(times)}</td></tr>")


def test_runs_made_before_there_were_packed_files_have_dashes(directory):
    for seed in SEEDS:
        _change(directory, f"dense-seed{seed}", file_bytes=None, dense_bytes=None)
    rows = re.findall(r"<tr[^>]*><td>dense</td>.*?</tr>", _report(directory))
    assert [row.count("<td>-</td><td>-</td><td>-</td>") for row in rows] == [1, 1, 1]


def test_one_seed_has_no_interval(directory):
    for run in directory.glob("runs/*-seed0"):
        (run / "result.json").unlink()
    html = _report(directory, seeds=[1])
    assert "±" not in html
    assert "confidence" not in html
    assert "1 seed; strongreg" in html


def test_the_curves_say_of_which_images_they_are(tmp_path):
    held_out = recipe(model="lenet300", epochs=1, data__validation_share=0.2)
    directory = train_runs(tmp_path / "new", held_out, ["dense"])
    write_report(Comparison(held_out, ["dense"], [0], directory), directory / "report.html")
    texts = Page(re.search(r"<svg.*?</svg>", (directory / "report.html").read_text(), flags=re.DOTALL)[0]).texts
    assert "validation accuracy (%)" in texts
    assert "test accuracy (%)" not in texts


def test_runs_that_are_missing_are_left_out(directory):
    for run in ("dense-seed0", "always-seed0", "always-seed1", "delayed-seed0", "delayed-seed1"):
        (directory / "runs" / run / "result.json").unlink()
    assert "lenet300 on digits: dense, coherent" in Page(_report(directory)).texts


def test_a_dead_run_is_marked_and_has_nothing_left(directory):
    for seed in SEEDS:
        _change(directory, f"always-seed{seed}", num_nonzero=0, compression=None, alive=False, accuracy=0.1)
    rows = re.findall(r'<tr class="dead">.*?</tr>', _report(directory))
    assert len(rows) == 3  # the method and its two runs
    assert all("<td>always</td>" in row and "nothing left" in row for row in rows)


@pytest.mark.parametrize("methods", [COMPARED, ["coherent"]])
def test_a_run_that_diverged_is_drawn_with_gaps(directory, methods):
    norms = dict.fromkeys(("coherence", "gradient_norm", "penalty_norm", "weight_norm", "train_loss"))
    for method in methods:
        _change(directory, f"{method}-seed0", **norms)
    assert _report(directory, methods, [0]).count("<svg") == 3


def test_a_run_without_penalty_is_drawn(directory):
    assert _report(directory, ["dense"], [0]).count("<svg") == 3


def test_text_from_the_runs_is_escaped(directory):
    _change(directory, "coherent-seed0", gate="<script>alert('1')</script>")
    html = _report(directory)
    assert "script" not in Page(html).tags
    assert "&lt;script&gt;" in html
