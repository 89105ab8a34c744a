"""What the site needs beyond MkDocs: pages of the repository's root, and links that leave docs."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
PAGES["CHANGELOG.md"] = "changelog.md"
PAGES["README.md"] = "index.md"
LINK = re.compile(r"\]\(([^)\s#:]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root; those that nobody has written yet stay out."""
    for name, page in PAGES.items():
        if page != "index.md":
            text = (ROOT / name).read_text()
            files.append(File.generated(config, page, content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links to the root's pages lead to those of the site, and name other files in place."""
    folder = posixpath.dirname(page.file.src_uri)
    parts = FENCE.split(markdown)
    for index in range(0, len(parts), 2):
        parts[index] = LINK.sub(lambda found: _link(found, folder, files), parts[index])
    return "".join(parts)


def _link(found: re.Match[str], folder: str, files: Files) -> str:
    target, anchor = found[1], found[2] or ""
    path = posixpath.normpath(posixpath.join("docs", folder, target))
    inside = posixpath.relpath(path, "docs")
    if files.get_file_from_path(inside) or not (ROOT / path).exists():
        root = (ROOT / target).exists() and target in PAGES
        return f"]({PAGES[target]}{anchor})" if root and not folder else found[0]
    if path in PAGES:
        return f"]({posixpath.relpath(PAGES[path], folder or '.')}{anchor})"
    # The site holds no files of the repository: the path stands behind the words.
    return f"](#){{ title='{path} in the repository' }}"
