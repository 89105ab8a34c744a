"""Mutations of whole files with a seed: of their bytes, and of the values in them."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fisopt.artefact import onnx_file
from fisopt.artefact.digests import EXTRA
from tests.hostile.archives import manifest_in, packed, parts_of, repacked_onnx, sealed

KINDS = {
    **dict.fromkeys(("pt2", "onnx", "folder"), "artefact"),
    **{kind: kind for kind in ("recipe", "schedule", "mask_table", "choices", "signature")},
    "authors": "schedule",
}
"""Kinds of files, and their readers, see `watched.readers`."""


@dataclass(frozen=True)
class Corpus:
    """Whole files to start from, by kind."""

    whole: dict[str, Path]

    def mutated(self, seed: int, folder: Path) -> tuple[str, Path]:
        """Write mutant number ``seed``; returns the kind of its reader and its path."""
        chance = random.Random(seed)
        kind = chance.choice([k for k in KINDS if k in self.whole])
        path = _MAKERS[kind](self.whole[kind], folder / f"{seed}", chance)
        if KINDS[kind] == "artefact":
            return chance.choice(["artefact", "artefact", "unchecked"]), path
        return KINDS[kind], path


def _pt2(whole: Path, target: Path, chance: random.Random) -> Path:
    """Bytes of the file, of a part, values of a part or of the manifest; often with new digests."""
    path = target.with_suffix(".pt2")
    how = chance.choice(["bytes", "part", "value", "value", "manifest", "manifest", "entries"])
    if how == "bytes":
        path.write_bytes(bytes_of(whole.read_bytes(), chance))
        return path
    parts = parts_of(whole)
    manifest = manifest_in(parts)
    if how == "manifest":
        manifest = value_of(manifest, chance)
    elif how == "value":
        name = chance.choice([n for n in parts if n.endswith(".json") and n != EXTRA])
        parts[name] = _json(value_of(json.loads(parts[name]), chance))
    elif how == "part":
        name = chance.choice([n for n in parts if n != EXTRA])
        parts[name] = bytes_of(parts[name], chance)
    else:
        name = chance.choice(list(parts))
        parts[chance.choice([name, f"{name}_2", f"../{name}", f"/{name}", ""])] = parts.pop(name)
    try:
        return packed(path, parts, manifest)
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):  # nothing to seal
        path.write_bytes(bytes_of(whole.read_bytes(), chance))
        return path


def _onnx(whole: Path, target: Path, chance: random.Random) -> Path:
    path = target.with_suffix(".onnx")
    if chance.random() < 0.5:
        path.write_bytes(bytes_of(whole.read_bytes(), chance))
        return path
    held = onnx_file.manifest_of(whole)
    assert held is not None
    try:
        return repacked_onnx(path, whole, value_of(json.loads(held), chance))
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):
        path.write_bytes(bytes_of(whole.read_bytes(), chance))
        return path


def _folder(whole: Path, target: Path, chance: random.Random) -> Path:
    shutil.copytree(whole, target)
    file = chance.choice(sorted(target.iterdir()))
    if file.name == "manifest.json" and chance.random() < 0.8:
        said = value_of(json.loads(file.read_text()), chance)
        file.write_text(sealed(said) if isinstance(said, dict) else json.dumps(said))
    elif chance.random() < 0.2:
        file.unlink()
    else:
        file.write_bytes(bytes_of(file.read_bytes(), chance))
    return target


def _text(
    parse: Callable[[str], Any], dump: Callable[[Any], bytes]
) -> Callable[[Path, Path, random.Random], Path]:
    """A text file with its companions: its bytes, or its values."""

    def made(whole: Path, target: Path, chance: random.Random) -> Path:
        target.mkdir()
        for beside in whole.parent.iterdir():
            shutil.copy(beside, target)
        path = target / whole.name
        companions = [p for p in sorted(target.iterdir()) if p != path]
        if companions and chance.random() < 0.2:
            other = chance.choice(companions)
            other.write_bytes(bytes_of(other.read_bytes(), chance))
        elif chance.random() < 0.4:
            path.write_bytes(bytes_of(path.read_bytes(), chance))
        else:
            path.write_bytes(dump(value_of(parse(path.read_text()), chance)))
        return path

    return made


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, default=str).encode()
    except (RecursionError, ValueError):
        return b"[" * 100_000


def _yaml(value: Any) -> bytes:
    try:
        return yaml.safe_dump(value, sort_keys=False).encode()
    except Exception:  # nested too far, or a number with too many digits
        return b"- " * 100_000


_MAKERS: dict[str, Callable[[Path, Path, random.Random], Path]] = {
    "pt2": _pt2,
    "onnx": _onnx,
    "folder": _folder,
    "recipe": _text(yaml.safe_load, _yaml),
    "schedule": _text(yaml.safe_load, _yaml),
    "authors": _text(yaml.safe_load, _yaml),
    "mask_table": _text(json.loads, _json),
    "choices": _text(json.loads, _json),
    "signature": _text(str, lambda value: str(value).encode()),
}


def bytes_of(data: bytes, chance: random.Random) -> bytes:
    """Other bytes: some flipped, zeroed, cut, doubled or put in."""
    made = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8])):
        place = chance.randrange(len(made) + 1)
        length = chance.choice([1, 1, 4, 64, 4096])
        how = chance.choice(["flip", "zero", "cut", "end", "double", "random", "text"])
        if how == "flip" and place < len(made):
            made[place] ^= 1 << chance.randrange(8)
        elif how == "zero":
            made[place : place + length] = bytes(min(length, len(made) - place))
        elif how == "cut":
            del made[place : place + length]
        elif how == "end":
            del made[place:]
        elif how == "double":
            made[place:place] = made[place : place + length]
        elif how == "random":
            made[place:place] = chance.randbytes(length)
        else:
            made[place:place] = chance.choice(_TEXTS)
    return bytes(made)


_TEXTS = (
    b"[" * 100_000,
    b"{a: " * 100_000,
    b"- " * 50_000,
    b"9" * 5_000,
    b"1:" * 50_000,
    b"2001-99-99",
    b"&a [*a, *a]",
    b"\na0: &a0 [1, 1]\n"
    + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i + 1, i + 1, i, i) for i in range(60)),
    b"!!python/object/apply:os.system [echo]",
    b"\x00",
    b"\xff\xfe",
    b"\\ud800",
    b"NaN",
)
_VALUES: tuple[Callable[[random.Random], Any], ...] = (
    lambda _: None,
    lambda _: True,
    lambda _: -1,
    lambda _: 0,
    lambda _: 10**400,
    lambda _: 1 << 62,
    lambda chance: chance.randrange(10),
    lambda _: float("nan"),
    lambda _: float("inf"),
    lambda _: "0*frames",
    lambda _: "1" * 4000 + "*frames",
    lambda _: "2001-99-99",
    lambda _: "../../etc/passwd",
    lambda _: "/dev/zero",
    lambda _: "__import__('canary')",
    lambda _: "torch.hub.load",
    lambda _: "canary.Word",
    lambda _: '[1, {"type": "canary.Word", "context": "null", "children_spec": []}]',
    lambda _: "x" * 100_000,
    lambda _: "\ud800".encode("utf-8", "replace").decode(),
    lambda _: [],
    lambda _: {},
    lambda _: [[[[1]]]],
    lambda _: {"__enum__": True, "fqn": "canary:Word", "name": "yes"},
    lambda _: _nested(200),
)


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def value_of(value: Any, chance: random.Random) -> Any:
    """Other values: some entries replaced, dropped, moved, doubled or renamed."""
    made = copy.deepcopy(value)
    for _ in range(chance.choice([1, 1, 2, 5])):
        holder = _holder(made, chance)
        if holder is None:
            return chance.choice(_VALUES)(chance)
        key = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        how = chance.choice(["other", "other", "other", "drop", "move", "rename", "double"])
        if how == "other":
            holder[key] = chance.choice(_VALUES)(chance)
        elif how == "drop":
            del holder[key]
        elif how == "move":
            source = _holder(value, chance)
            holder[key] = copy.deepcopy(source)
        elif isinstance(holder, dict):
            holder[chance.choice(["more", "__class__", str(key) * 2])] = holder.pop(key)
        else:
            holder.extend(copy.deepcopy(holder) * chance.choice([1, 50]))
    return made


def _holder(value: Any, chance: random.Random) -> Any:
    """Some container in a value that is not empty, None if there is none."""
    found, here = None, value
    while isinstance(here, (dict, list)) and here:
        found = here
        if chance.random() < 0.25:
            break
        here = chance.choice(list(here.values()) if isinstance(here, dict) else here)
    return found
