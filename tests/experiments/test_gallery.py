"""The page of any runs: everything is on it, the front is right, and it needs nothing but itself."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from torch import nn

from experiments.finished import DAMAGES, RUN_FILES, change, damage, train_runs
from experiments.pages import Page, assert_needs_nothing, assert_references_are_there_once
from experiments.recipes import recipe
from strongreg.experiments.engine import load_result
from strongreg.experiments.errors import UserError
from strongreg.experiments.fate import diagnose_run, find_runs
from strongreg.experiments.gallery import pareto_front, write_gallery
from strongreg.experiments.recipe import COMPARED, show_recipe

RECIPE = recipe(model="lenet300", epochs=2, strength=0.015)
OTHER = recipe(model="plain_cnn", epochs=2, strength=3.0, strength_ramp_share=0.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("gallery")
    train_runs(directory / "small", RECIPE, COMPARED)
    train_runs(directory / "deep", OTHER, ["always"])
    return directory


@pytest.fixture
def directory(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "copy")


def _gallery(*directories: Path) -> str:
    file = directories[0].parent / "gallery.html"
    write_gallery([run for directory in directories for run in find_runs(directory)], file)
    return file.read_text(encoding="utf-8")


def _row(html: str, name: str) -> str:
    (row,) = re.findall(rf"<tr[^>]*><td>{re.escape(name)}(?: \*)?</td>.*?</tr>", html)
    return row


def odd(image_shape, num_classes):
    """A network whose layers have names that mean something to a typesetter."""
    model = nn.Sequential(nn.Flatten())
    model.add_module("a$x_{$<b>", nn.Linear(image_shape[1] * image_shape[2], 8))
    model.add_module("c", nn.Linear(8, num_classes))
    return model


# ---------------------------------------------------------------------- the page


def test_names_of_layers_are_shown_as_they_are(tmp_path):
    directory = train_runs(tmp_path / "new", recipe(model=f"{__name__}:odd", epochs=1), ["dense"])
    assert "a$x_{$&lt;b&gt;.weight" in _gallery(directory)


def test_the_page_needs_nothing_but_itself(trained):
    html = _gallery(trained / "small", trained / "deep")
    assert html.startswith("<!doctype html>")
    assert "<?xml" not in html
    assert html.count("<svg") == html.count("</svg>") == 3
    assert_needs_nothing(html)
    assert_references_are_there_once(html)


def test_every_run_its_numbers_and_its_verdict_are_on_it(trained):
    html = _gallery(trained)
    page = Page(html)
    assert "5 runs" in page.texts
    for folder in find_runs(trained):
        result, name = load_result(folder / "result.json"), f"{folder.parts[-3]}/{folder.name}"
        row = _row(html, name)
        assert f"<td>{100 * result.accuracy:.1f} %</td>" in row
        assert f"<td>{result.num_nonzero:,}</td><td>{result.num_weights:,}</td>" in row
        assert f"<td>{result.model}</td><td>{result.data}</td>" in row
        ratio = result.dense_bytes / result.file_bytes
        assert f"<td>{ratio:.1f}</td><td>{result.file_bytes:,}</td><td>{result.dense_bytes:,}</td>" in row
        assert f"<td>{diagnose_run(folder).verdict.replace('_', ' ')}</td>" in row
        assert f"{name}: {diagnose_run(folder)}" in page.texts


def test_runs_of_one_recipe_share_its_text(trained):
    page = Page(_gallery(trained))
    dense = RECIPE.for_method("dense")
    shared = ", ".join(f"small/{method}-seed0" for method in sorted(COMPARED))
    assert page.texts[page.texts.index(shared) + 1] == show_recipe(dense).strip()
    assert page.texts[page.texts.index("deep/always-seed0") + 1] != show_recipe(dense).strip()
    assert "Recipes" in page.texts


def test_the_drawings_name_what_they_show(trained):
    html = _gallery(trained)
    texts = Page("".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))).texts
    assert {"times smaller", "test accuracy (%)", "epoch", "share of weights kept", *COMPARED} <= set(texts)
    assert "1.weight" not in texts  # the two networks' layers have different names
    assert "1.weight" in Page(_gallery(trained / "small")).texts


def test_one_run_is_a_page(trained):
    html = _gallery(trained / "small/runs/coherent-seed0")
    page = Page(html)
    assert {"1 run", "Recipe"} <= set(page.texts)
    assert html.count("<svg") == 3
    assert_references_are_there_once(html)


def test_a_run_given_twice_is_there_once(trained):
    html = _gallery(trained / "small", trained / "small/runs/coherent-seed0", trained / "small/../small")
    assert "4 runs" in Page(html).texts


def test_runs_of_the_same_name_are_told_apart(trained, directory):
    change(directory / "small/runs/dense-seed0", accuracy=0.05, alive=False)
    html = _gallery(trained / "small", directory / "small")
    for folder, dead in ((trained, False), (directory, True)):
        row = _row(html, str(folder / "small/runs/dense-seed0"))
        assert ('class="dead"' in row) == dead
        assert " *</td>" not in row or not dead


def test_a_run_in_the_working_directory_has_a_name(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(trained / "small/runs/always-seed0")
    write_gallery(find_runs(Path()), tmp_path / "a.html")
    assert "small/always-seed0" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_a_run_made_before_there_were_packed_files_has_dashes(directory):
    run = directory / "small/runs/coherent-seed0"
    change(run, file_bytes=None, dense_bytes=None)
    assert "<td>-</td><td>-</td><td>-</td>" in _row(_gallery(directory), "small/coherent-seed0")


@pytest.mark.parametrize("left", [0, 3])
def test_a_dead_run_is_marked_and_may_have_nothing_left(directory, left):
    run = directory / "small/runs/always-seed0"
    change(run, accuracy=0.1, alive=False, num_nonzero=left, compression=50000 / left if left else None)
    row = _row(_gallery(directory), "small/always-seed0")
    assert row.startswith('<tr class="dead">')
    assert ("nothing left" in row) == (left == 0)
    assert "*" not in row


def test_only_dead_runs_and_a_living_one_with_nothing_left_are_drawn(directory):
    for run in find_runs(directory / "small"):
        change(run, accuracy=0.1, alive=False, num_nonzero=0, compression=None)
    assert _gallery(directory / "small").count("<svg") == 3
    change(run, accuracy=0.2, alive=True)  # biases alone may do better than chance
    html = _gallery(directory / "small")
    assert " *</td>" in _row(html, f"small/{run.name}")
    assert re.search(r"\b(nan|inf)\b", "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))) is None


def test_a_run_that_diverged_is_drawn_with_gaps(directory):
    change(directory / "small/runs/dense-seed0", train_loss=None, gradient_norm=None, coherence=None, weight_norm=None)
    assert _gallery(directory / "small").count("<svg") == 3


def test_text_from_the_runs_is_escaped(directory):
    run = directory / "small/runs/coherent-seed0"
    change(run, model="<script>alert('1')</script>", data="<img src=x>", penalty="a&b")
    (run / "recipe.toml").write_text("# <iframe src='http://example.org'>\n")
    html = _gallery(directory / "small")
    assert not {"script", "img", "iframe"} & set(Page(html).tags)
    assert "&lt;script&gt;" in html
    assert "a&amp;b" in html
    assert_needs_nothing(html)


_SHOWN_AS_IT_STANDS = [
    *(("recipe.toml", how) for how in ("empty", "half", "one byte")),
    *(("model.packed", how) for how in DAMAGES),  # its sizes stand in the result, its weights are read beside it
]


@pytest.mark.parametrize(
    ("name", "how"), [pair for pair in itertools.product(RUN_FILES, DAMAGES) if pair not in _SHOWN_AS_IT_STANDS]
)
def test_a_missing_or_damaged_file_is_one_error_that_names_it(directory, name, how):
    run = directory / "small/runs/coherent-seed0"
    damage(run / name, how)
    with pytest.raises(UserError) as caught:
        write_gallery([directory / "small/runs/dense-seed0", run], directory / "a.html")
    assert str(run / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (directory / "a.html").exists()


def test_a_page_that_cannot_be_written_is_an_error(trained, tmp_path):
    with pytest.raises(OSError, match="directory"):
        write_gallery([trained / "small/runs/dense-seed0"], tmp_path)


def test_a_full_disk_leaves_the_former_page_and_nothing_else(trained, tmp_path, monkeypatch):
    file = tmp_path / "page.html"
    file.write_text("the former page")
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_gallery([trained / "small/runs/dense-seed0"], file)
    assert file.read_text() == "the former page"
    assert list(tmp_path.iterdir()) == [file]


# ---------------------------------------------------------------------- the front


def _point(compression: float, accuracy: float, *, alive: bool = True) -> SimpleNamespace:
    return SimpleNamespace(compression=compression, result=SimpleNamespace(accuracy=accuracy, alive=alive))


def test_the_front_by_hand():
    large, middle, small = _point(1, 0.98), _point(20, 0.97), _point(40, 0.90)
    beaten = [_point(1, 0.95), _point(19, 0.97), _point(20, 0.96), _point(30, 0.90), _point(5, 0.5)]
    dead = [_point(5000, 0.1, alive=False), _point(float("inf"), 0.99, alive=False)]
    assert pareto_front([*beaten, small, *dead, large, middle]) == [large, middle, small]


def test_equals_stand_side_by_side_on_the_front():
    one, other = _point(2, 0.9), _point(2, 0.9)
    front = pareto_front([one, _point(2, 0.8), other, _point(1, 0.9)])
    assert [id(run) for run in front] == [id(one), id(other)]


@pytest.mark.parametrize("runs", [[], [_point(1, 0.1, alive=False)]])
def test_without_living_runs_there_is_no_front(runs):
    assert pareto_front(runs) == []


def test_nothing_left_is_the_smallest():
    nothing, dense = _point(float("inf"), 0.2), _point(1, 0.9)
    assert pareto_front([nothing, dense, _point(1e9, 0.2)]) == [dense, nothing]
