"""What tests ask of a page: its tags and texts, and that it needs nothing but itself."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser


class Page(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.texts += [data.strip()] if data.strip() else []


def assert_needs_nothing(html: str) -> None:
    """The page refers to no other file and to no network, and nothing in it runs."""
    page = Page(html)
    assert not set(page.tags) & {"script", "link", "img", "iframe", "object", "embed", "base", "video", "audio"}
    references = [value for _, name, value in page.attributes if name in {"src", "href", "xlink:href", "data"}]
    assert all(value.startswith("#") for value in references)
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "srcset"]
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)\)", html))
    assert "@import" not in html
    # what is left are the names of XML namespaces and of the drawing's type, which nothing fetches
    names = ("xmlns", "rdf:resource")
    urls = [value for _, name, value in page.attributes if "://" in value and not name.startswith(names)]
    assert urls == []


def assert_references_are_there_once(html: str) -> None:
    """Everything that a drawing refers to has the name of nothing else."""
    ids = Counter(value for _, name, value in Page(html).attributes if name == "id")
    wanted = set(re.findall(r"url\(#([^)]*)\)", html)) | set(re.findall(r'href="#([^"]*)"', html))
    assert wanted
    assert {name: ids[name] for name in wanted} == dict.fromkeys(wanted, 1)
