r"""Equations as MathML, made while the pages are built: a page needs no script and no network to show them.

``\tag{2}`` at the end of an equation becomes its number at the right margin and the anchor ``#equation-2``. The font is
STIX Two Math, of which only the letters and what occurs in an equation are kept.
"""

from __future__ import annotations

import html
import importlib.util
import re
from logging import WARNING, getLogger
from pathlib import Path
from typing import Any

from docutils import nodes
from fontTools import subset
from fontTools.ttLib import TTFont
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

getLogger("fontTools").setLevel(WARNING)
_LOGGER = logging.getLogger(__name__)
_TAG = re.compile(r"\s*\\tag\{(\w+)\}\s*$")
_CONVERTER = LatexToMathML(annotation=False)
_FONT = "STIXTwoMath-Regular.ttf"
# ASCII, what MathML makes of letters (mathematical italics, Latin and Greek), and the sign that <msqrt> draws
_LETTERS = {*range(0x20, 0x7F), *range(0x1D434, 0x1D468), *range(0x1D6E2, 0x1D71C), 0x210E, 0x221A}


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer, and the font once the pages are written."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("build-finished", _write_font)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(_convert(node.astext(), node, display=False))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    latex, number = node.astext().strip(), None
    if tag := _TAG.search(latex):
        latex, number = latex[: tag.start()], tag[1]
    anchor = f' id="equation-{number}"' if number else ""
    shown = f'<a class="eqno" href="#equation-{number}">({number})</a>' if number else ""
    equation = f'<div class="equation">{_convert(latex, node, display=True)}</div>'
    translator.body.append(f'<div class="math-block"{anchor}>{equation}{shown}</div>\n')
    raise nodes.SkipNode


def _convert(latex: str, node: nodes.Element, *, display: bool) -> str:
    try:
        return _CONVERTER.convert_with_local_state(latex, displaystyle=display)
    except LatexError as error:
        _LOGGER.warning("equation %r: %s", latex, error, location=node)
        return f"<code>{latex}</code>"


def _write_font(app: Sphinx, error: Exception | None) -> None:
    """Keep of the font what the pages show, with what it needs to grow brackets and roots."""
    if error is not None or app.builder.format != "html":
        return
    found = importlib.util.find_spec("ziamath")
    if found is None or found.origin is None:
        raise ExtensionError("the font of the equations comes with the package ziamath: pip install '.[docs]'")
    characters = set(_LETTERS)
    for page in Path(app.outdir).rglob("*.html"):
        for equation in re.findall(r"<math.*?</math>", page.read_text(encoding="utf-8"), re.DOTALL):
            characters |= set(map(ord, html.unescape(re.sub(r"<[^>]*>", "", equation))))
    font = TTFont(Path(found.origin).parent / "fonts" / _FONT)
    options = subset.Options(flavor="woff", notdef_outline=True, layout_features=["*"])
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=characters)
    subsetter.subset(font)
    target = Path(app.outdir) / "_static" / "stix-two-math.woff"
    font.flavor = "woff"
    font.save(target)
