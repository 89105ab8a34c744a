"""Which folders a forced export may replace: those that hold an artefact and nothing else."""

from __future__ import annotations

from pathlib import Path

from fisopt.artefact import aoti, onnx, pt2
from fisopt.artefact.loader import read_manifest
from fisopt.artefact.manifest import FILE, RECIPE, Format
from fisopt.errors import FisoptError

SUFFIXES: dict[Format, str] = {
    "pt2": pt2.SUFFIX,
    "aoti": aoti.SUFFIX,
    "onnx": onnx.SUFFIX,
    "text": ".txt",
}


def variant_files(format: Format, count: int) -> list[str]:
    """Names of the files of an artefact's variants in its folder."""
    return [f"variant_{i}{SUFFIXES[format]}" for i in range(count)]


def foreign(folder: Path) -> str | None:
    """What a folder holds that `fisopt.export` did not write, in words; None if there is nothing.

    The names are those that an export gives, not those that the manifest claims.
    """
    entries = sorted(folder.iterdir())
    if not entries:
        return None
    if folder / FILE not in entries:
        return f"there is no {FILE} in it"
    try:
        manifest, _ = read_manifest(folder, checked=False)
    except (FisoptError, OSError):
        return f"its {FILE} is not that of an artefact"
    files = variant_files(manifest.format, len(manifest.variants))
    data = [onnx.data_name(file) for file in files] if manifest.format == "onnx" else []
    wrote = {FILE, RECIPE, *files, *data}
    other = [e.name for e in entries if e.name not in wrote or e.is_symlink() or not e.is_file()]
    return f"besides the artefact {', '.join(other)}" if other else None
