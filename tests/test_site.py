"""The documentation as a site: whole, without broken links, and readable without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FETCHED = re.compile(r"""<(?:script|link|img)[^>]+(?:src|href)=["']?(?:https?:)?//""")


def test_every_page_is_in_the_navigation() -> None:
    listed = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in listed


def test_the_site_is_built_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    assert not [page for page in pages if FETCHED.search(page.read_text())]
    text = "".join(page.read_text() for page in pages)
    assert 'title="benchmarks/results in the repository">' in text
    assert not re.search(r'<a href="[^"]*" title="[^"]*in the repository', text)
    assert re.search(r'works: <abbr title="tests/[^"]+">test</abbr>', text)
    reference = (tmp_path / "api.html").read_text()
    for name in ("optimize", "FrameInterleave", "check_pass", "FisoptError"):
        assert f"{name}" in reference
