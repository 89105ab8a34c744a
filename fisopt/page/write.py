"""Write a page: template, charts, films and scripts in one file."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
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


_SPARE = 20_000
"""Bytes for what is said of films beside their pictures."""


def _json(value: Any) -> str:
    """JSON that nothing in it can end the script which holds it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    try:
        from vl_convert import javascript_bundle
    except ImportError as error:
        raise OptionError(NEEDS) from error
    made: str = javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return made.replace("</script", "<\\/script").replace("<!--", "<\\!--")


@cache
def _template() -> jinja2.Template:
    try:
        import jinja2
    except ImportError as error:
        raise OptionError(NEEDS) from error
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
