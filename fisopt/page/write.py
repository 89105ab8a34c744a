"""Write a page: template, charts, films and scripts in one file."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fisopt.errors import OptionError
from fisopt.files import write
from fisopt.page.charts import charts
from fisopt.page.data import Page
from fisopt.page.films import packed

if TYPE_CHECKING:
    import jinja2

LARGEST = 5_000_000
"""Bytes of a page."""
ASSETS = "assets"
NEEDS = "the page needs Jinja2 and vl-convert-python: pip install 'fisopt[compare]'"


def write_page(page: Page, path: Path | str, *, largest: int = LARGEST) -> Path:
    """Write a page as one HTML file.

    Args:
        page: what it shows.
        path: where; a file that is there is replaced.
        largest: bytes that it may take; films are shrunk for that.

    Returns:
        The path.

    Raises:
        OptionError: a package is missing, or the page is larger without any film.
        FileError: it cannot be written.
    """
    text = rendered(page, largest)
    if (size := len(text.encode())) > largest:
        raise OptionError(f"the page takes {size:,} bytes without films, wanted {largest:,}")
    return write(path, text)


def rendered(page: Page, largest: int = LARGEST) -> str:
    """The text of a page; see `write_page`."""
    template = _template()
    parts: dict[str, Any] = {
        "page": page,
        "style": _asset("page.css"),
        "script": _asset("page.js"),
        "vega": _vega(),
        "charts": charts(page),
        "notes": list(page.notes),
    }
    alone = template.render(**parts, data=_json({"films": [], "charts": parts["charts"]}))
    films, said = packed(page.films, largest - len(alone.encode()) - _SPARE)
    parts["notes"] += [said] if said else []
    return template.render(**parts, data=_json({"films": films, "charts": parts["charts"]}))


def has_packages() -> bool:
    """Whether the packages that a page needs are installed."""
    return all(find_spec(name) is not None for name in ("jinja2", "vl_convert"))


def check_installed() -> None:
    """Insist on the packages that a page needs, before what takes long is run for it.

    Raises:
        OptionError: one is missing.
    """
    if not has_packages():
        raise OptionError(NEEDS)


_SPARE = 20_000
"""Bytes for what is said of films beside their pictures."""


def _json(value: Any) -> str:
    """JSON that nothing in it can end the script which holds it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    check_installed()
    from vl_convert import javascript_bundle

    made: str = javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return made.replace("</script", "<\\/script").replace("<!--", "<\\!--")


@cache
def _template() -> jinja2.Template:
    check_installed()
    import jinja2

    made = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    made.filters["cell"] = _cell
    return made.from_string(_asset("page.html.jinja"))


def _cell(value: Any) -> str:
    """A cell of a table as text."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _asset(name: str) -> str:
    return (resources.files("fisopt.page") / ASSETS / name).read_text(encoding="utf-8")
