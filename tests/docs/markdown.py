"""What tests read in a Markdown page: its code, its commands, its headings and its links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "recipes/README.md")]
PAGES += sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?![a-z]+:)([^)\s]+)\)")
_PICTURE = re.compile(
    r'^<picture>\n  <source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)">\n'
    r'  <img alt="([^"]+)" src="([^"]+)">\n</picture>$',
    re.MULTILINE,
)
_SHELL = ("", "console", "bash")


def name_of(page: Path) -> str:
    """The page's path within the repository."""
    return page.relative_to(ROOT).as_posix()


def code(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [block for kind, block in _FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """The links that stay within the repository."""
    return _LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page)))


def pictures(page: Path) -> list[tuple[Path, Path, str]]:
    """Each figure of the page: its file for dark mode, that for light mode, and what it shows in words."""
    found = _PICTURE.findall(prose(page))
    return [((page.parent / dark).resolve(), (page.parent / light).resolve(), words) for dark, words, light in found]


def anchors(page: Path) -> set[str]:
    """What the headings are called in links, as GitHub makes it: lower case, no punctuation, hyphens for spaces."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


def commands(page: Path) -> list[list[str]]:
    """Every ``strongreg`` command of the page, as words: those of its blocks, and those in its text."""
    lines: list[str] = []
    for language in _SHELL:
        for block in code(page, language):
            lines += block.replace("\\\n", " ").splitlines()
    lines += [" ".join(text.split()) for text in re.findall(r"`(strongreg [^`]+)`", prose(page))]
    found = []
    for line in lines:
        after = re.search(r"(?:^|^\$ |-m )strongreg (.*)$", line.strip())
        if after is not None:
            words = shlex.split(after[1], comments=True)
            stop = next((i for i, word in enumerate(words) if word in (">", "|", "&&")), len(words))
            found.append(words[:stop])
    return found
