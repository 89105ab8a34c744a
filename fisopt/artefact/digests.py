"""Digests: what the parts of an artefact are, and whether they still are that.

Of a ``.pt2`` file every entry but the manifest has one, of an ONNX file ``model``, all of it but
the manifest, and the file of large weights beside it, of a text ``text``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from fisopt.artefact import onnx_file
from fisopt.artefact.manifest import ENTRY, Format, Manifest, VariantInfo
from fisopt.artefact.package import packed
from fisopt.errors import ExportError, shown
from fisopt.reading import MIB, is_name, opened

EXTRA = f"extra/{ENTRY}"
"""The manifest's entry in an archive."""


def digests(format: Format, file: Path) -> dict[str, str]:
    """SHA-256 of the parts of a file that has no manifest yet.

    Raises:
        ExportError: the file is not complete.
        FileError: it cannot be read.
    """
    if format == "text":
        return {"text": of_file(file)}
    if format == "onnx":
        data = re.compile(re.escape(file.name) + r"(\.\d+)?\.data")
        beside = sorted(p for p in file.parent.iterdir() if data.fullmatch(p.name))
        return {"model": onnx_file.sha256(file), **{p.name: of_file(p) for p in beside}}
    with packed(file) as package:
        return {name: package.sha256(name) for name in package.parts if name != EXTRA}


def of_file(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        FileError: it cannot be read.
    """
    held = hashlib.sha256()
    with opened(path) as file:
        while chunk := file.read(MIB):
            held.update(chunk)
    return held.hexdigest()


def check_variant(manifest: Manifest, variant: VariantInfo, file: Path) -> None:
    """Compare the parts of a variant's file with the manifest.

    Raises:
        ExportError: a part is missing, is another, or is not in the manifest.
        FileError: the file cannot be read.
    """
    if manifest.format == "onnx":
        beside = [name for name in variant.parts if name != "model"]
        if not all(map(is_name, beside)):
            raise ExportError(
                f"{file}: its manifest names the parts {shown(beside)}, wanted names of files in "
                "its folder; copy or export it again"
            )
        found = {"model": onnx_file.sha256(file)}
        found |= {name: of_file(file.with_name(name)) for name in beside}
    else:
        found = digests(manifest.format, file)
    _compare(str(file), variant.parts, found)


def check_beside(manifest: Manifest, folder: Path) -> None:
    """Compare the other files of a folder with the manifest; see `check_variant`."""
    _compare(str(folder), manifest.beside, {n: of_file(folder / n) for n in manifest.beside})


def _compare(where: str, wanted: Mapping[str, str], found: Mapping[str, str]) -> None:
    for name in sorted({*wanted, *found}):
        if wanted.get(name) == found.get(name):
            continue
        how = (
            "is missing"
            if name not in found
            else "is not in the manifest"
            if name not in wanted
            else "is not what the manifest says"
        )
        raise ExportError(
            f"{where}: its part {shown(name)} {how}: copy or export it again, or pass "
            "check='none' (--check none) to read it as it is"
        )
