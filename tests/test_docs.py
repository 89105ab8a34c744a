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
from urllib.parse import urlsplit

import pytest
import torch
from markdown.extensions.toc import slugify

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
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(?:#([^)\s]*))?[^)]*\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
OUTER = re.compile(r"""https?://[^\s)\]"'<>`]+""")
PAPER = re.compile(r"arxiv(?:\.org/abs/|:)(\d{4}\.\d{5})", re.IGNORECASE)
PAPERS = {
    "2205.14135": "FlashAttention",
    "2304.11277": "PyTorch FSDP",
    "2309.14509": "DeepSpeed Ulysses",
    "2403.06807": "Multistep Consistency Models",
    "2411.01738": "xDiT",
    "2412.11706": "AsymRnR",
    "2502.06155": "Efficient-vDiT",
    "2503.06923": "TaylorSeer",
    "2506.19852": "Radial Attention",
    "2605.11869": "FIS-DiT",
}
WITH_LINKS = [*PAGES, ROOT / "CITATION.cff", ROOT / "SECURITY.md", ROOT / "pyproject.toml"]


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


def anchors(page: Path) -> list[str]:
    """What links may name in a page: its headings, as the site and GitHub write them."""
    headings = HEADING.findall(FENCE.sub("", page.read_text()))
    return [slugify(heading.replace("`", ""), "-") for heading in headings]


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
    for target, anchor in LINK.findall(FENCE.sub("", page.read_text())):
        if target.startswith(("http:", "https:")):
            continue
        there = page.parent / target if target else page
        assert there.exists(), f"{name_of(page)} links to {target}"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{name_of(page)} links to {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_headings_of_a_page_differ(page: Path) -> None:
    """Else a link to the second leads to the first."""
    assert len(anchors(page)) == len(set(anchors(page)))


@pytest.mark.parametrize("file", WITH_LINKS, ids=name_of)
def test_outer_links_are_well_formed(file: Path) -> None:
    for link in OUTER.findall(file.read_text()):
        parts = urlsplit(link)
        assert parts.scheme == "https" or parts.hostname == "127.0.0.1", link
        assert re.fullmatch(r"[a-z0-9.-]+\.[a-z0-9]+", parts.hostname or ""), link
        assert "//" not in parts.path, link


def test_papers_have_the_numbers_that_were_looked_up() -> None:
    """A wrong digit in one place is noticed; those of the passes stand in the citation."""
    of_passes = PAPER.findall((ROOT / "CITATION.cff").read_text())
    assert [PAPERS[number] for number in of_passes] == ["FIS-DiT", "AsymRnR", "Efficient-vDiT"]
    sources = sorted((ROOT / "fisopt").rglob("*.py"))
    said = {n for file in (*PAGES, *sources) for n in PAPER.findall(file.read_text())}
    assert said == set(PAPERS)


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
