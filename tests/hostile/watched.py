"""Read files under an audit hook: what a process would do beside reading them.

As a program: ``python -m tests.hostile.watched FOLDER`` reads a kind and a path a line and prints
as JSON what came of each: the outcome, seconds of the processor, bytes above those of the process
before the first file, and what the hook saw.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

READERS = ("artefact", "unchecked", "recipe", "schedule", "mask_table", "choices", "signature")
_GRAPH = "<eval_with_key>"
"""The code that torch.fx makes of a graph whose names are all ours."""
_FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect"),
    *("pickle.find_class", "ctypes.dlopen", "os.remove", "os.rename", "os.mkdir", "shutil.rmtree"),
)


class Watch:
    """An audit hook; `seen` has what is forbidden, in words.

    Args:
        folder: where files may be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.realpath(folder)
        self.seen: list[str] = []
        self.on = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and (said := self._forbidden(event, args)):
            self.seen.append(said)

    def _forbidden(self, event: str, args: tuple[Any, ...]) -> str | None:
        if event in _FORBIDDEN:
            return f"{event} {str(args)[:100]}"
        if event == "import":
            return None if args[0] in sys.modules else f"import {args[0]}"
        if event == "exec":
            name = getattr(args[0], "co_filename", "")
            return None if name.startswith(_GRAPH) else f"exec {name}"
        if event == "open" and isinstance(args[0], (str, bytes)):
            path = os.path.realpath(os.fsdecode(args[0]))
            writes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            inside = path.startswith(self.folder + os.sep)
            return None if inside and not writes else f"open {path}"
        return None


def readers() -> dict[str, Callable[[Path], object]]:
    """How each kind of file is read."""
    import fisopt
    from fisopt.codegen.choose import remembered
    from fisopt.passes.tiling.mask_table import MaskTable
    from fisopt.recipe.recipe import Recipe

    return {
        "artefact": fisopt.load,
        "unchecked": lambda path: fisopt.load(path, check="none"),
        "recipe": Recipe.load,
        "schedule": fisopt.Schedule.load,
        "mask_table": MaskTable.load,
        "choices": remembered,
        "signature": lambda path: fisopt.load(
            path.with_suffix(""), public_key=path.with_name("key.pub")
        ),
    }


def _memory(entry: str) -> int:
    """Bytes of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(x.split()[1]) for x in lines if x.startswith(f"{entry}:"))


def main() -> None:
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    known = readers()
    from fisopt import FisoptError

    with contextlib.suppress(ImportError):
        importlib.import_module("onnxruntime")  # readers do, where it is needed

    watch = Watch(folder)
    before = _memory("VmRSS")
    for line in sys.stdin:
        kind, _, path = line.rstrip("\n").partition(" ")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that of this file
        watch.seen, watch.on = [], not path.startswith("warm:")
        start = time.process_time()
        try:
            known[kind](Path(path.removeprefix("warm:")))
            outcome = "read"
        except FisoptError as error:
            outcome = f"refused {type(error).__name__}: {error}"[:300]
        except BaseException as error:  # what is counted
            outcome = f"failed {type(error).__name__}: {error}"[:300]
        seconds = time.process_time() - start
        watch.on = False
        grown = _memory("VmHWM") - before
        said = {"outcome": outcome, "seconds": seconds, "bytes": grown, "seen": watch.seen[:5]}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
