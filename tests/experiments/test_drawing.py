"""Drawings: their colours can be told apart, on light and on dark pages, and a file is the same each time."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from strongreg.experiments.drawing import DARK, LIGHT, draw_file, label_ends, svg
from strongreg.experiments.page import render_page

PALETTES = pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
# Machado, Oliveira, Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009
SIGHT = {
    "all colours": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def _linear(color: str) -> np.ndarray:
    values = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _contrast(first: str, second: str) -> float:
    """Of WCAG 2.2, 1 to 21."""
    dark, light = sorted(TO_XYZ[1] @ _linear(color) for color in (first, second))
    return (light + 0.05) / (dark + 0.05)


def _lab(color: str, sight: np.ndarray) -> np.ndarray:
    x, y, z = np.cbrt(TO_XYZ @ np.clip(np.asarray(sight) @ _linear(color), 1e-3, 1) / WHITE)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@PALETTES
def test_every_colour_stands_out_from_the_page(palette):
    assert _contrast(palette.ink, palette.paper) > 7
    assert _contrast(palette.soft, palette.paper) > 4.5
    assert all(_contrast(color, palette.paper) > 3 for color in palette.methods.values())
    assert len(set(palette.names.values())) == len(palette.names)  # a page exchanges them by their values


@PALETTES
@pytest.mark.parametrize("sight", list(SIGHT))
def test_the_colours_of_methods_shown_together_are_apart_for_every_eye(palette, sight):
    shown = [palette.methods[method] for method in ("dense", "always", "delayed", "coherent", "magnitude")]
    for first, second in itertools.combinations(shown, 2):
        assert np.linalg.norm(_lab(first, SIGHT[sight]) - _lab(second, SIGHT[sight])) > 12


def _draw(palette):
    def draw(figure: Figure) -> None:
        ax = figure.subplots()
        ax.plot([1, 2, 3], [0.1, 3.0, 1 / 3], color=palette.methods["always"])
        ax.set(xlabel="step", yscale="log")

    return draw


@PALETTES
def test_a_file_has_the_colours_of_its_palette_and_is_the_same_each_time(palette):
    content = draw_file(_draw(palette), height=2, width=3, palette=palette)
    assert content == draw_file(_draw(palette), height=2, width=3, palette=palette)
    root = ElementTree.fromstring(content)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    used = set(re.findall(r"(?<=: )#[0-9a-f]{6}", content.decode()))
    assert {palette.paper, palette.methods["always"], palette.ink} <= used <= set(palette.names.values())
    assert draw_file(_draw(palette), 2, 3, palette, "png").startswith(b"\x89PNG\r\n")


def test_text_stays_text_in_fonts_that_every_machine_has():
    content = draw_file(_draw(LIGHT), height=2, width=3).decode()
    assert re.search(r"<text[^>]*>step</text>", content)
    (fonts,) = re.findall(r'font-family[:=][^>]*?sans-serif"', content)
    assert fonts.startswith('font-family="system-ui, ')


def test_a_drawing_within_a_page_takes_its_colours_from_the_page():
    text = svg(_draw(LIGHT), height=2, width=3)
    names = set(re.findall(r"var\(--([\w]+)\)", text))
    assert {"always", "ink", "soft", "grid"} <= names
    assert re.findall(r": #[0-9a-f]{6}", text) == []
    page = render_page("sweep.html.j2", title="", subtitle="", header=[], front=[], trials=[], num_dead=0, chosen=None,
                       note="", figures=[], recipe="").decode()  # fmt: skip
    light, _, dark = page.partition("@media (prefers-color-scheme: dark)")
    for part, palette in ((light, LIGHT), (dark, DARK)):
        assert all(f"--{name}: {palette.names[name]};" in part for name in names)


def test_names_beside_lines_keep_apart_and_stay_within_the_drawing():
    ax = Figure().subplots()
    ax.set(xlim=(0, 1), ylim=(1, 100), yscale="log")
    names = [(90, "c"), (95, "d"), (1, "a"), (1, "b"), (float("nan"), "e")]
    label_ends(ax, [(y, name, "red") for y, name in names], gap=0.2)
    heights = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert sorted(heights) == ["a", "b", "c", "d"]
    assert heights["a"] == 0
    assert heights["b"] == 0.2
    assert heights["d"] - heights["c"] == pytest.approx(0.2)
    assert heights["d"] <= 1


def test_names_that_fill_the_height_are_as_far_apart_as_asked():
    ax = Figure().subplots()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    label_ends(ax, [(1.0, str(i), "red") for i in range(4)], gap=0.25)
    assert [text.get_position()[1] for text in ax.texts] == pytest.approx([0.25, 0.5, 0.75, 1.0])
