"""Where a recipe keeps schedules and mask tables: inside it.

Recipes of earlier versions have them in files beside, which are still read.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fisopt.errors import FisoptError, RecipeError, shown
from fisopt.passes.reduction.schedule import Schedule
from fisopt.passes.tiling.mask_table import MaskTable
from fisopt.reading import is_name, json_value
from fisopt.recipe.identity import digest

LONGEST = 1 << 16
"""Bytes of JSON from which on a value is compressed."""
LARGEST = 1 << 24
"""Bytes of JSON of a value that is taken."""
KINDS: dict[str, type[Schedule | MaskTable]] = {"schedule": Schedule, "mask_table": MaskTable}


class Store:
    """Schedules and mask tables that are written out in the recipe, each with its hash.

    A long one is compressed: readers take YAML of some size only.
    """

    def put(self, kind: str, value: Any) -> dict[str, Any]:
        """What the recipe says of a value."""
        plain = value.plain()
        text = json.dumps(plain, separators=(",", ":")).encode()
        if len(text) <= LONGEST:
            return {"sha256": content_hash(value), "value": plain}
        packed = base64.b85encode(zlib.compress(text, 9)).decode()
        return {"sha256": content_hash(value), "packed": packed}

    def get(self, kind: str, said: Mapping[str, Any]) -> Any:
        """Return the value that the recipe speaks of.

        Raises:
            RecipeError: it is missing or malformed.
        """
        if "packed" in said:
            return from_plain(kind, _unpacked(kind, said["packed"]))
        if "value" not in said:
            raise RecipeError(
                f"a {kind} of this recipe is in a file of its own; pass the path of the recipe"
            )
        return from_plain(kind, said["value"])


class Beside(Store):
    """Of a recipe whose values may also be files in its folder.

    Args:
        recipe: path of the recipe.
    """

    def __init__(self, recipe: Path) -> None:
        self.recipe = recipe

    def get(self, kind: str, said: Mapping[str, Any]) -> Any:
        """See `Store.get`."""
        if "file" not in said:
            return super().get(kind, said)
        name = said["file"]
        if not is_name(name):
            raise RecipeError(
                f"{self.recipe}: got {kind} file {shown(name)}, wanted the name of a file in the "
                "folder of the recipe"
            )
        path = self.recipe.parent / name
        try:
            return KINDS[kind].load(path)
        except OSError as error:
            raise RecipeError(
                f"{self.recipe} needs the {kind} {path}, which cannot be read: {error}; keep the "
                "files of a recipe together"
            ) from error
        except (ValueError, FisoptError) as error:
            raise RecipeError(f"{self.recipe}: {error}") from error


def stored(kind: str, said: Any, store: Store, where: str) -> Any:
    """Read a value through a store and check that its content is what the recipe was made with.

    Raises:
        RecipeError: it is missing, malformed, or of another content.
    """
    if not isinstance(said, Mapping) or "sha256" not in said:
        raise RecipeError(f"{where}: got {kind}={said!r}, wanted {{sha256: HASH, value: {{...}}}}")
    value = store.get(kind, said)
    if content_hash(value) != said["sha256"]:
        raise RecipeError(
            f"{where}: the {kind} {said.get('file', 'inside')} has other content than the recipe "
            f"was made with (SHA-256 {content_hash(value)[:12]}, not {str(said['sha256'])[:12]}); "
            "save the recipe again"
        )
    return value


def _unpacked(kind: str, packed: Any) -> Any:
    """The plain values of a compressed schedule or mask table."""
    try:
        data = zlib.decompressobj()
        text = data.decompress(base64.b85decode(packed), LARGEST)
        if data.unconsumed_tail or not data.eof:
            raise RecipeError(
                f"a {kind} is not complete, or has more than {LARGEST:,} bytes; save the recipe "
                "again"
            )
        return json_value(text)
    except (ValueError, TypeError, zlib.error) as error:
        raise RecipeError(f"a {kind} cannot be unpacked: {error}") from error


def content_hash(value: Any) -> str:
    """Hash of what a schedule or a mask table does; where it was measured is not part of it."""
    return digest({k: v for k, v in value.plain().items() if k != "measured"})


def from_plain(kind: str, said: Any) -> Schedule | MaskTable:
    """A schedule or a mask table from its plain values.

    Raises:
        RecipeError: an entry is missing or malformed.
    """
    try:
        return KINDS[kind].from_plain(said)
    except (KeyError, TypeError, ValueError, AttributeError, FisoptError) as error:
        raise RecipeError(f"a {kind} is malformed: {type(error).__name__}: {error}") from error
