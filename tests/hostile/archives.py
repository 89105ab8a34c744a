"""Take exported files apart and put them together again, with a manifest that fits the new parts."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fisopt.artefact import onnx_file
from fisopt.artefact.digests import EXTRA, digests
from fisopt.artefact.manifest import SEAL
from fisopt.recipe.identity import digest

GRAPH = "models/model.json"
ROOT = "archive/"


def parts_of(path: Path) -> dict[str, bytes]:
    """The parts of an archive, in order."""
    with zipfile.ZipFile(path) as held:
        return {n.removeprefix(ROOT): held.read(n) for n in held.namelist()}


def manifest_in(parts: Mapping[str, bytes]) -> Any:
    return json.loads(parts[EXTRA])


def packed(path: Path, parts: Mapping[str, bytes], manifest: Any) -> Path:
    """Write an archive whose manifest has the right digests, as an attacker would."""
    with zipfile.ZipFile(path, "w") as made:
        for name, data in parts.items():
            if name != EXTRA:
                made.writestr(ROOT + name, data)
    try:
        held = digests("pt2", path)
    except Exception:  # the archive itself is what is wrong
        held = manifest["variants"][0]["parts"]
    text = sealed({**manifest, "variants": [{**manifest["variants"][0], "parts": held}]})
    with zipfile.ZipFile(path, "a") as made:
        made.writestr(ROOT + EXTRA, text)
    return path


def sealed(manifest: Mapping[str, Any]) -> str:
    """A manifest with its digest."""
    said = {k: v for k, v in manifest.items() if k != SEAL}
    return json.dumps({**said, SEAL: digest(said)})


def repacked_onnx(path: Path, source: Path, manifest: Mapping[str, Any]) -> Path:
    """An ONNX file with another manifest."""
    data, held = source.read_bytes(), onnx_file.manifest_of(source)
    assert held is not None
    path.write_bytes(data[: data.rindex(b"\x72", 0, data.rindex(held))])
    parts = {**manifest["variants"][0]["parts"], "model": onnx_file.sha256(path)}
    onnx_file.append(
        path, sealed({**manifest, "variants": [{**manifest["variants"][0], "parts": parts}]})
    )
    return path
