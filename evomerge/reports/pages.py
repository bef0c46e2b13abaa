"""Pages that need no network: data, style and scripts are all inside one HTML file.

Everything that came from outside is escaped: by Jinja in the page, by `tojson` in data; scripts make text of it, never
HTML. Knows nothing of what a page says.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evomerge.errors import DiskError, require

__all__ = ["render_page", "write_page"]


def render_page(template: str, filters: dict[str, Callable[..., str]], **content: Any) -> str:
    """A page from a template of this package.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    jinja2 = require("jinja2", "report")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("evomerge.reports"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= filters
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    page: str = environment.get_template(template).render(**content)
    return page


def write_page(page: str, out: Path) -> Path:
    """Write a page; the file is there whole or not at all.

    Raises:
        DiskError: the file cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(out.name + ".partial")
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, out)
    except OSError as error:
        raise DiskError(f"{out}: expected to write a page there; got {error.strerror}; choose another --out") from error
    return out
