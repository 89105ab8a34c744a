"""The package of nodes, loaded as ComfyUI loads a folder of ``custom_nodes``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
NAME = str(FOLDER).replace(".", "_x_")


@contextmanager
def loaded() -> Iterator[ModuleType]:
    """Inside, the nodes are there; then neither they nor ``comfy`` are imported any more."""
    spec = importlib.util.spec_from_file_location(NAME, FOLDER / "__init__.py")
    package = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = package
    try:
        spec.loader.exec_module(package)
        yield package
    finally:
        ours = [n for n in sys.modules if n.partition(".")[0] == "comfy" or n.startswith(NAME)]
        for name in ours:
            del sys.modules[name]
