"""A newcomer: the commands of the README as they stand, from an empty environment, timed one by one.

Times are printed, and written as JSON into the folder that NEWCOMER_OUT names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import pytest

ROOT = Path(__file__).parent.parent
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
AFTER = ("fisopt --version", "fisopt doctor", "fisopt inspect wan2.2-a14b --pass few-balanced")
"""What a newcomer may type next; it needs no weights."""
NARROWED = "tests/test_errors.py"
"""`make test` stands in the README; here it runs style, types, layers and this file."""

PINNED = {"PIP_CONSTRAINT": str(ROOT / "requirements" / "constraints.txt")}
"""The versions that are known to work, so that a run can be repeated."""


@dataclass(frozen=True)
class Step:
    """A command that was run.

    Attributes:
        command: as the README has it.
        seconds: how long it took.
        first: seconds until it said anything; None if it said nothing.
    """

    command: str
    seconds: float
    first: float | None


def commands() -> list[str]:
    """The commands of the README's first block, without their comments."""
    (block, *_) = CONSOLE.findall((ROOT / "README.md").read_text())
    lines = [line[2:] for line in block.splitlines() if line.startswith("$ ")]
    return [line.partition("  #")[0].strip() for line in lines]


def run(command: str, folder: Path, path: str) -> Step:
    """Run a command in a folder, as a shell would with this PATH and nothing else of ours."""
    left_out = ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS")
    clean = {k: v for k, v in os.environ.items() if k not in left_out}
    clean |= {"PATH": path, "PYTEST_ARGS": NARROWED, "PYTHONUNBUFFERED": "1", **PINNED}
    began, first, said = perf_counter(), None, []
    with subprocess.Popen(
        ["bash", "-c", command],
        cwd=folder,
        env=clean,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as running:
        for line in running.stdout or ():
            first = perf_counter() - began if first is None else first
            said.append(line)
    assert running.returncode == 0, f"{command}:\n{''.join(said[-60:])}"
    return Step(command, round(perf_counter() - began, 1), first and round(first, 1))


def copy(folder: Path) -> None:
    """What is tracked, and nothing that was made."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)


def test_the_readme_begins_with_commands() -> None:
    assert commands() == ["pip install .", "make demo", "make test"]


@pytest.mark.slow
def test_every_command_of_the_readme_works_from_nothing(tmp_path: Path) -> None:
    checkout = tmp_path / "fisopt"
    copy(checkout)
    venv.create(tmp_path / "env", with_pip=True)
    path = f"{tmp_path / 'env' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    first, *rest = commands()
    steps = [run(command, checkout, path) for command in (first, *AFTER, *rest)]
    assert (checkout / "out" / "demo.json").exists()
    lines = [f"{step.seconds:8.1f} s  {step.command}" for step in steps]
    print("\n".join(lines))
    if "NEWCOMER_OUT" in os.environ:
        folder = Path(os.environ["NEWCOMER_OUT"])
        folder.mkdir(parents=True, exist_ok=True)
        said = {"python": sys.version.split()[0], "steps": [asdict(step) for step in steps]}
        (folder / "newcomer.json").write_text(json.dumps(said, indent=2) + "\n")


@pytest.mark.slow
def test_extras_resolve(tmp_path: Path) -> None:
    """Pip finds versions of all extras that go together, for an environment that holds nothing."""
    copy(tmp_path / "fisopt")
    venv.create(tmp_path / "env", with_pip=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = ",".join(project["optional-dependencies"])
    pip = [str(tmp_path / "env" / "bin" / "python"), "-m", "pip", "install", "--quiet", "--dry-run"]
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | PINNED
    done = subprocess.run(
        [*pip, f"{tmp_path / 'fisopt'}[{extras}]"],
        capture_output=True,
        text=True,
        check=False,
        env=clean,
    )
    assert done.returncode == 0, done.stderr
