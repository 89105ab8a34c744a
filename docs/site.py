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
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
TEST = re.compile(r"`(tests/[\w/]+\.py::\w+)`")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root; those that nobody has written yet stay out."""
    for name, page in PAGES.items():
        if page != "index.md":
            text = (ROOT / name).read_text()
            files.append(File.generated(config, page, content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links to the root's pages lead to those of the site, and name other files on demand."""
    folder = posixpath.dirname(page.file.src_uri)
    parts = FENCE.split(markdown)
    for index in range(0, len(parts), 2):
        text = LINK.sub(lambda found: _link(found, folder, files), parts[index])
        parts[index] = TEST.sub(lambda found: _hint("test", found[1]), text)
    return "".join(parts)


def _link(found: re.Match[str], folder: str, files: Files) -> str:
    words, target, anchor = found[1], found[2], found[3] or ""
    path = posixpath.normpath(posixpath.join("docs", folder, target))
    inside = posixpath.relpath(path, "docs")
    if files.get_file_from_path(inside) or not (ROOT / path).exists():
        root = (ROOT / target).exists() and target in PAGES
        return f"{words}]({PAGES[target]}{anchor})" if root and not folder else found[0]
    if path in PAGES:
        return f"{words}]({posixpath.relpath(PAGES[path], folder or '.')}{anchor})"
    return _hint(words[1:], f"{path} in the repository")  # of which the site holds no files


def _hint(words: str, where: str) -> str:
    """Words that say on demand where something is that the site does not hold."""
    return f'<abbr title="{where}">{words}</abbr>'
