"""Pages from templates: one file each, self-contained, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup

from splits.artifacts import atomic

__all__ = ["inline", "write_page"]

_HERE: Final = Path(__file__).parent


def inline(*names: str) -> Markup:
    """The style sheets or scripts of these names, to stand in a page as they are."""
    return Markup("\n".join((_HERE / name).read_text(encoding="utf-8") for name in names))


def write_page(path: Path, template: str, context: Mapping[str, Any]) -> Path:
    """Fill a template of this folder; an unknown name in it is an error, values are escaped.

    Returns:
        The path of the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(context)
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path
