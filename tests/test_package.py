"""What is shipped: a wheel and an sdist that install and run where nothing else of this folder is."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import fisopt

ROOT = Path(__file__).parent.parent
RUN = """
import fisopt
from fisopt.models.testbed import load_testbed
from fisopt.testing import zoo
assert "site-packages" in fisopt.__file__, fisopt.__file__
pipe = load_testbed()
pipe.set_progress_bar_config(disable=True)
fisopt.optimize(pipe, passes=["few-fast"], backend="eager")
clip = pipe("red circle moving left fast over waves", num_inference_steps=1).frames[0]
assert clip.shape == (16, 32, 32, 3)
assert len(zoo()) > 20
"""


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def test_what_the_package_says_of_itself() -> None:
    assert project()["version"] == fisopt.__version__
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"]) == (fisopt.__version__, project()["license"])
    for page in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert {"name", "description", "body"} <= set(yaml.safe_load(page.read_text()))


def test_every_pinned_version_is_one_that_is_allowed() -> None:
    pinned = {}
    for line in (ROOT / "requirements" / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        pinned[name.lower().replace("_", "-")] = version
    extras = project()["optional-dependencies"].values()
    for text in (*project()["dependencies"], *(each for extra in extras for each in extra)):
        wanted = Requirement(text)
        version = pinned.get(wanted.name.lower().replace("_", "-"))
        if version is not None:
            assert wanted.specifier.contains(version, prereleases=True), text


@pytest.mark.slow
def test_wheel_and_sdist_run_in_an_environment_of_their_own(tmp_path: Path) -> None:
    """Its dependencies come from this environment, fisopt from the wheel alone."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("fisopt/py.typed", "fisopt/passes/figures.json", "fisopt/tuning/prior.json"):
        assert wanted in names
    assert any("testbed/weights" in name for name in names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "docs"))]
    with tarfile.open(sdist) as held:
        assert any(name.endswith("/pyproject.toml") for name in held.getnames())
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True)
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (lib,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (lib / "dependencies.pth").write_text(f"{here}\n")
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([python, "-c", RUN], check=True, cwd=tmp_path, env=clean)
    subprocess.run([str(tmp_path / "env" / "bin" / "fisopt"), "--version"], check=True, env=clean)
