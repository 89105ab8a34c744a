"""Which pipeline calls a module: several may share it, each with a scheduler of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any
from weakref import ref

from torch import nn


class CallersScheduler:
    """The scheduler of the pipeline that calls a module in this thread.

    The pipeline is found on the stack: it was handed to a function that has not returned, mostly
    as ``self``, and holds the module beside a scheduler.

    Args:
        module: the module that is called.
        otherwise: returns the scheduler where no pipeline calls, such as in a loop of one's own.
    """

    def __init__(self, module: nn.Module, otherwise: Callable[[], Any] | None) -> None:
        self._module, self._otherwise = ref(module), otherwise

    def __call__(self) -> Any:
        """The scheduler, None if there is none."""
        calling = self.calling()
        return self._otherwise() if calling is None and self._otherwise is not None else calling

    def calling(self) -> Any:
        """The scheduler of a pipeline that calls right now, None if there is none."""
        frame: FrameType | None = sys._getframe(1)
        module = self._module()
        while frame is not None:
            code = frame.f_code
            handed = frame.f_locals if code.co_argcount else {}
            for name in code.co_varnames[: code.co_argcount]:
                held = getattr(handed.get(name), "__dict__", {})
                if "scheduler" in held and any(part is module for part in held.values()):
                    return held["scheduler"]
            frame = frame.f_back
        return None
