"""Every error that fisopt raises on purpose: one base class, and a name for each stage."""

from __future__ import annotations

LONGEST = 120


def shown(value: object) -> str:
    """A value in an error: its repr, cut where it is long."""
    try:
        text = repr(value)
    except Exception:  # of a number with too many digits, or of an object that is half made
        return f"one {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


class FisoptError(Exception):
    """Base of all errors raised by fisopt."""


class OptionError(FisoptError, ValueError):
    """An option or an argument has a value or a name that fisopt does not know."""


class OptionTypeError(OptionError, TypeError):
    """An option or an argument has a wrong type, is missing, or does not exist."""


class FileError(FisoptError, OSError):
    """A file cannot be read or written."""


class CaptureError(FisoptError):
    """The model could not be captured as a graph."""


class InputError(FisoptError, ValueError):
    """Example inputs or call inputs are missing, of the wrong rank, or not numbers."""


class VerifyError(FisoptError):
    """A Program breaks an invariant of the IR."""


class PassError(FisoptError):
    """A pass failed.

    Args:
        message: what the pass got, what it wanted and what to do.
        pass_name: the pass that failed.
        node: the graph node or block at which it failed, if there is one.
    """

    def __init__(self, message: str, *, pass_name: str, node: object | None = None) -> None:
        where = f"[{pass_name}]" if node is None else f"[{pass_name}] at {node}"
        super().__init__(f"{where}: {message}")
        self.pass_name = pass_name
        self.node = node


class PreconditionError(PassError):
    """A pass cannot run on this Program or with these options: the caller's mistake."""


class PostconditionError(PassError):
    """A pass made a Program that breaks its own promise: the mistake of its author."""


class LoweringError(FisoptError):
    """An operator has no implementation for this device, dtype or shape."""


class ScheduleError(FisoptError):
    """fisopt cannot tell the step, the number of steps or the branch, or a schedule is unfit."""


class RankError(FisoptError, RuntimeError):
    """Ranks that share a clip run different things, or one of them is gone."""


class RecipeError(FisoptError):
    """A recipe cannot be written, cannot be read, or is for another model."""


class ExportError(FisoptError):
    """An artefact cannot be written, is incomplete, or was not made by fisopt."""


class CheckError(FisoptError, AssertionError):
    """A pass fails a check of `fisopt.testing`."""
