"""A signature beside an artefact tells who made it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import minisign
import pytest
from typer.testing import CliRunner

import fisopt
from fisopt import ExportError, FileError, FrameInterleave, OptionError
from fisopt.artefact.loader import examined
from fisopt.artefact.signature import LARGEST
from fisopt.cli import app
from tests.artefact.models import plain

pytestmark = pytest.mark.xdist_group("exported")  # captured in one process
PASSWORD = "a long password"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two pairs of keys, the first with a password too."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine", "other"):
        pair = minisign.KeyPair.generate()
        (folder / f"{name}.pub").write_bytes(bytes(pair.public_key) + b"\n")
        (folder / f"{name}.key").write_bytes(bytes(pair.secret_key))
        pair.secret_key.encrypt(PASSWORD, opslimit=1 << 15, memlimit=1 << 25)
        (folder / f"{name}.locked").write_bytes(bytes(pair.secret_key))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file and a folder."""
    folder = tmp_path_factory.mktemp("made")
    fast, _ = plain([FrameInterleave()])
    fisopt.export(fast, folder / "a.pt2", dynamic=False)
    fisopt.export(fast, folder / "all", dynamic=False)
    return folder


@pytest.fixture(params=["a.pt2", "all"])
def path(request: pytest.FixtureRequest, made: Path, tmp_path: Path) -> Path:
    """A copy of either."""
    there, copy = made / request.param, tmp_path / request.param
    if there.is_dir():
        shutil.copytree(there, copy)
    else:
        shutil.copyfile(there, copy)
    return copy


def test_a_signed_artefact_is_loaded(path: Path, keys: Path) -> None:
    beside = fisopt.sign(path, keys / "mine.key")
    assert beside == path.with_name(f"{path.name}.minisig")
    fisopt.load(path, public_key=keys / "mine.pub")
    text = (keys / "mine.pub").read_text().split()[-1]
    assert fisopt.load(path, public_key=text).manifest.format == "pt2"
    assert examined(path, public_key=text).signed == f"fisopt artefact {path.name}"
    fisopt.load(path)


def test_the_tool_itself_can_check_it(path: Path, keys: Path) -> None:
    fisopt.sign(path, keys / "mine.key")
    signed = path / "manifest.json" if path.is_dir() else path
    signature = minisign.Signature.from_file(f"{path}.minisig")
    minisign.PublicKey.from_file(keys / "mine.pub").verify_file(signed, signature)


@pytest.mark.parametrize("attack", ["none", "other key", "other file", "cut", "old form", "large"])
def test_what_its_maker_has_not_signed_is_refused(path: Path, keys: Path, attack: str) -> None:
    beside = path.with_name(f"{path.name}.minisig")
    signed = path / "manifest.json" if path.is_dir() else path
    if attack != "none":
        fisopt.sign(path, keys / ("other.key" if attack == "other key" else "mine.key"))
    if attack == "other file":
        with signed.open("ab") as file:
            file.write(b" ")
    if attack == "cut":
        beside.write_bytes(beside.read_bytes()[:-20])
    if attack == "large":
        beside.write_bytes(b"x" * (LARGEST + 1))
    if attack == "old form":
        secret = minisign.SecretKey.from_file(keys / "mine.key")
        beside.write_bytes(bytes(secret.sign(signed.read_bytes(), prehash=False)))
    why = {"none": "is not signed", "old form": "old form", "large": "at most"}
    with pytest.raises((ExportError, FileError), match=why.get(attack, "is wrong")):
        fisopt.load(path, public_key=keys / "mine.pub")


def test_what_is_in_a_signed_folder_has_digests(made: Path, tmp_path: Path, keys: Path) -> None:
    copy = shutil.copytree(made / "all", tmp_path / "all")
    fisopt.sign(copy, keys / "mine.key")
    (copy / "recipe.yaml").write_text("another: recipe\n")
    with pytest.raises(ExportError, match=r"recipe\.yaml"):
        fisopt.load(copy, public_key=keys / "mine.pub")
    with pytest.raises(OptionError, match="needs check='digests'"):
        fisopt.load(copy, public_key=keys / "mine.pub", check="none")
    with pytest.raises(ExportError, match=r"recipe\.yaml"):
        fisopt.sign(copy, keys / "mine.key")


def test_keys_that_cannot_be_used(made: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made / "a.pt2"
    with pytest.raises(ExportError, match="pass its password"):
        fisopt.sign(path, keys / "mine.locked")
    with pytest.raises(ExportError, match="wrong password"):
        fisopt.sign(path, keys / "mine.locked", "another")
    with pytest.raises(ExportError, match=r"secret key .* is wrong"):
        fisopt.sign(path, keys / "mine.pub")
    with pytest.raises(FileError, match="cannot be read"):
        fisopt.sign(path, keys / "none.key")
    with pytest.raises(OptionError, match="is no key of minisign"):
        fisopt.load(path, public_key=keys / "mine.key")
    with pytest.raises(FileError, match="cannot be read"):
        fisopt.load(path, public_key="none.pub")
    monkeypatch.setitem(sys.modules, "minisign", None)
    with pytest.raises(ExportError, match=r"fisopt\[sign\]"):
        fisopt.load(path, public_key=keys / "mine.pub")
    assert not path.with_name("a.pt2.minisig").exists()


def test_the_commands(path: Path, keys: Path) -> None:
    run = CliRunner().invoke
    locked = ["sign", str(path), "--key", str(keys / "mine.locked")]
    assert run(app, locked, input=f"{PASSWORD}\n").exit_code == 0
    assert run(app, locked, env={"FISOPT_KEY_PASSWORD": PASSWORD}).exit_code == 0
    assert run(app, locked, env={"FISOPT_KEY_PASSWORD": "another"}).exit_code == 2
    whole = run(app, ["verify", str(path), "--public-key", str(keys / "mine.pub")])
    assert whole.exit_code == 0
    assert f"signed with the key: fisopt artefact {path.name}" in whole.output
    other = run(app, ["verify", str(path), "--public-key", str(keys / "other.pub")])
    assert other.exit_code == 1
    assert "is wrong" in other.output
