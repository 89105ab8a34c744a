"""Every python block of README and docs runs, file by file, in order, in one namespace.

``torch.compile`` is forced to run eagerly, so that the blocks can show the defaults; in the place of
released pipelines there are tiny ones, see `tests/standins.py`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fisopt.models.testbed.pipeline import WEIGHTS
from tests import prose
from tests.standins import stand_in

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """The python blocks of a page with the line numbers of their first lines."""
    text = page.read_text()
    return [
        (text.count("\n", 0, found.start(2)) + 1, found[2])
        for found in FENCE.finditer(text)
        if found[1] == "python"
    ]


@pytest.mark.parametrize("page", [p for p in PAGES if python_blocks(p)], ids=name_of)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = python_blocks(page)
    if any("load_testbed" in code for _, code in blocks) and not WEIGHTS.is_dir():
        pytest.skip("the testbed's weights are not there")
    if any("TRITON_INTERPRET" in code for _, code in blocks):
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("this process runs kernels on the GPU and cannot interpret them")
    monkeypatch.chdir(tmp_path)
    stand_in(monkeypatch)
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    torch.manual_seed(0)
    with torch.compiler.set_stance("force_eager"):
        for line, code in blocks:
            padded = "\n" * (line - 1) + code  # so that a traceback names the page's own line
            exec(compile(padded, str(page), "exec", dont_inherit=True), namespace)


def test_no_line_is_long() -> None:
    done = [sys.executable, str(ROOT / "scripts" / "wrap.py"), "--check"]
    subprocess.run(done, check=True)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 700


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    prose = FENCE.sub("", page.read_text())
    for target in LINK.findall(prose):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_fences_are_closed_and_say_their_language(page: Path) -> None:
    text = page.read_text()
    assert text.count("```") == 2 * len(FENCE.findall(text))
    assert all(language for language, _ in FENCE.findall(text))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_prose_is_plain(page: Path) -> None:
    said = prose.of_page(page)
    assert not said, "\n".join(said)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A tool is refused.", "Say who does it"),
        ("The step is told by the pipeline.", "Say who does it"),
        ("A file beside the recipe.", "Write 'next to, or besides'"),
        ("It is simply faster.", "says nothing"),
        ("The the frame.", "repeated"),
    ],
)
def test_what_plain_prose_is_not(text: str, message: str) -> None:
    (said,) = prose.found("page", text)
    assert message in said


def test_code_and_tables_are_no_prose() -> None:
    made = "<!-- results: x -->\nbeside\n<!-- end of results -->\n"
    assert not prose.found("page", f"{made}\n`beside` and [it](beside.md)\n\n```\nbeside\n```\n")
    assert not prose.found("page", "Branches are told apart by their text.")
