"""How the documentation is built: ``make docs``. Nothing in the pages needs a network to be read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from sphinx.application import Sphinx

import strongreg

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "strongreg"
author = "The strongreg authors"
copyright = author  # noqa: A001 - Sphinx names it
release = version = strongreg.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "mathml",
]
exclude_patterns = ["_build", "_extensions"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

html_theme = "furo"
html_title = f"strongreg {release}"
html_static_path = ["_static"]
html_css_files = ["strongreg.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"

napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_mock_imports = ["lightning", "skorch", "transformers"]  # to import them takes longer than all else
python_use_unqualified_type_names = True
nitpicky = True
nitpick_ignore = [("py:func", "save_packed")]
nitpick_ignore_regex = [
    # the page of the method says what these are
    (r"py:.*", r"(PenaltySpec|Mode|StrengthScale|CoherenceOf|Scope|Quantity|Values|Verdict|Terms|Array)"),
    (r"py:.*", r"(torch|nn|np|npt|numpy|collections|pathlib|os|typing|abc)\..*"),
    (r"py:.*", r"(re|lightning|skorch|transformers)\..*"),
    (r"py:.*", r"(Tensor|Optimizer|Path|Any|Callable|Mapping|Sequence|RegularizerOptions)"),
    (r"py:.*", r"strongreg\.(kernels|penalties\.terms\.Terms|compression\.packing\.directory\.Stream)"),
]

_DOCS = Path(__file__).resolve().parent
_ROOT = _DOCS.parent
# what lies outside of docs/ and is a page here
_PAGES = {
    "README.md": "readme.md",
    "benchmarks/README.md": "benchmarks.md",
    "recipes/README.md": "reproducing-the-paper.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
_COMMANDS = "<!-- every command and option -->"
_INCLUDED = re.compile(r"<!-- the file (\S+) -->")
_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_PICTURE = re.compile(
    r'<picture>\s*<source[^>]*srcset="([^"]+)"[^>]*>\s*<img alt="([^"]+)" src="([^"]+)"[^>]*>\s*</picture>'
)
_IMAGE = """
````{{container}} wide-figure
```{{image}} {file}
:alt: {alt}
:class: only-{mode}
```
````
"""
_EXAMPLES = re.compile(r"(?:^strongreg .*\n\n?)+", re.MULTILINE)
_CODE_OR_OPTION = re.compile(r"```.*?```|`[^`\n]*`|(?<![\w-])(--[a-z][a-z-]*)", re.DOTALL)
_EQUATION = re.compile(r"docs/theory\.md,\s+(equations?\s+(\d)(?:\s+(?:to|and)\s+\d)?)")


def setup(app: Sphinx) -> None:
    """Connect what changes the pages while they are read."""
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _prepare, priority=100)  # before napoleon


def _read(app: Sphinx, docname: str, source: list[str]) -> None:
    """Let links lead to the pages of the site, and put in what belongs to them but lies elsewhere."""
    del app
    folder = (_DOCS / docname).parent
    text = _INCLUDED.sub(lambda found: _included(folder / found[1], folder), source[0])
    text = _relinked(text, folder, folder)
    source[0] = text.replace(_COMMANDS, _commands()) if _COMMANDS in text else text


def _included(file: Path, folder: Path) -> str:
    """A file without its first heading, with its links as from the folder of the page."""
    return _relinked(file.read_text(encoding="utf-8").partition("\n")[2], file.resolve().parent, folder)


def _relinked(text: str, base: Path, folder: Path) -> str:
    """The text with relative links, seen from ``base``, as seen from ``folder``; to pages of the site where it can."""

    def relink(link: re.Match[str]) -> str:
        full = (base / link[1]).resolve()
        if not full.exists() or not full.is_relative_to(_ROOT):
            return link[0]
        page = _PAGES.get(full.relative_to(_ROOT).as_posix())
        target = _DOCS / page if page else full
        # a .md file that is no page is a download, as all that is none
        kind = "path:" if target.suffix == ".md" and not target.is_relative_to(_DOCS) else ""
        return f"]({kind}{os.path.relpath(target, folder)}{link[2] or ''})"

    return _LINK.sub(relink, _PICTURE.sub(lambda found: _images(found, base, folder), text))


def _images(picture: re.Match[str], base: Path, folder: Path) -> str:
    """What GitHub chooses by the reader's mode as two images, of which the site shows one: its own button chooses."""
    files = {"dark": picture[1], "light": picture[3]}
    places = {mode: os.path.relpath((base / file).resolve(), folder) for mode, file in files.items()}
    return "".join(_IMAGE.format(file=file, alt=picture[2], mode=mode) for mode, file in places.items())


def _commands() -> str:
    """Every command and option in Markdown, as typer writes it."""
    command = [sys.executable, "-m", "typer", "strongreg.cli.app", "utils", "docs", "--name", "strongreg"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition("\n")[2]
    text = _EXAMPLES.sub(lambda lines: "```console\n" + re.sub(r"\n+", "\n", lines[0]) + "```\n\n", text)
    return _CODE_OR_OPTION.sub(lambda found: f"`{found[1]}`" if found[1] else found[0], text)


def _prepare(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Make links of ``docs/theory.md, equation 3``; a returned value has no type in front, it is in the signature."""
    del app, what, name, obj, options
    text = _EQUATION.sub(
        lambda found: f"`{' '.join(found[1].split())} <../theory.html#equation-{found[2]}>`__", "\n".join(lines)
    )
    lines[:] = re.sub(r"^Returns:\n    (?=\S)", "Returns:\n    : ", text, flags=re.MULTILINE).split("\n")
