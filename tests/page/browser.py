"""A headless Chromium for tests, and what it complains of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, list[str]]]:
    """A page in a browser, ready, and what it has complained of or asked of a network so far."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next((found for name in NAMES if (found := shutil.which(name))), None)
    with playwright.sync_playwright() as driver:
        if found is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip("there is no browser; `make browser` installs one")
        browser = driver.chromium.launch(executable_path=found, args=OPTIONS)
        try:
            page, said = browser.new_page(), []
            page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: said.append(f"error: {error}"))
            page.on("request", lambda request: said.extend(_asked(request.url)))
            page.goto(path.resolve().as_uri())
            page.wait_for_selector("body[data-ready=yes]", state="attached", timeout=60_000)
            yield page, said
        finally:
            browser.close()


def _asked(url: str) -> list[str]:
    return [] if url.startswith(("data:", "file:", "blob:")) else [f"asked for {url}"]
