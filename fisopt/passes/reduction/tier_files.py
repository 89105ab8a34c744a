"""Where the table of tiers is that belongs to some thresholds or to a published reduction."""

from __future__ import annotations

import re
from pathlib import Path

from fisopt.errors import FileError, ScheduleError

AUTHORS = "https://github.com/wenhao728/AsymRnR"
_FOLDER = "schedulers"
"""Where the authors' repository keeps its tables; the thresholds are in a folder beside it."""


def table_beside(thresholds: Path) -> Path:
    """Find the table of a file of thresholds that names none.

    It has the same name (``a.yaml``, ``a.safetensors``), or the one that the authors give it:
    ``hyvideo_cache3_0.yaml`` and ``hyvideo_cache3_1.yaml`` share
    ``euclidean_hyvideo_cache3.safetensors``.

    Raises:
        ScheduleError: there is none.
    """
    stem = thresholds.stem
    names = (stem, "euclidean_" + re.sub(r"_\d+$", "", stem))
    folders = (thresholds.parent, thresholds.parent.parent / _FOLDER)
    places = [folder / f"{name}.safetensors" for folder in folders for name in names]
    if (found := _first(places)) is None:
        raise ScheduleError(
            f"{thresholds} names no table; pass table=, a safetensors file of tiers. Looked for "
            f"{_listed(places)}"
        )
    return found


def table_in(folder: Path, name: str) -> Path:
    """Find a table by its name in a folder of tables, or in a checkout of the authors' code.

    Raises:
        FileError: it is not there.
    """
    places = [folder / name, folder / _FOLDER / name]
    if (found := _first(places)) is None:
        raise FileError(
            f"{folder} has no table {name}; give the folder of the authors' tables ({AUTHORS}). "
            f"Looked for {_listed(places)}"
        )
    return found


def _first(places: list[Path]) -> Path | None:
    return next((place for place in places if place.is_file()), None)


def _listed(places: list[Path]) -> str:
    return ", ".join(map(str, places))
