"""Pages of HTML that are whole in one file: templates, and the colours of light and dark screens."""

from __future__ import annotations

from typing import Any

import jinja2

from strongreg.experiments.drawing import DARK, LIGHT


def render_page(template: str, **content: Any) -> bytes:
    """Fill a template.

    Args:
        template: its file, in templates/.
        **content: what it names.

    Returns:
        The page, in UTF-8.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("strongreg.experiments"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template).render(light=LIGHT.names, dark=DARK.names, **content).encode()
