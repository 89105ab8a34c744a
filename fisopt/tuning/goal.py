"""What a tuned pipeline is to reach: a speed, a time, or a distance to the dense one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from fisopt.errors import OptionError, OptionTypeError, shown

Kind = Literal["speed", "ms", "error", "psnr"]
_FORMS: dict[Kind, str] = {
    "speed": r"(\d+(?:\.\d+)?)x",
    "ms": r"(\d+(?:\.\d+)?)ms",
    "error": r"error<=(\d+(?:\.\d+)?)",
    "psnr": r"psnr>=(\d+(?:\.\d+)?)",
}
_WANTED = (
    "wanted '2x' (times as fast as dense), '350ms' (of all transformer calls of one clip), "
    "'error<=0.1' (relative L2 error of the final latents) or 'psnr>=28' (dB, of the final latents)"
)


@dataclass(frozen=True)
class Goal:
    """A target, read from text.

    Attributes:
        kind: what is bounded.
        value: the bound.
    """

    kind: Kind
    value: float

    @staticmethod
    def of(text: object) -> Goal:
        """Read a target.

        Raises:
            OptionTypeError: it is no text.
            OptionError: it is of another unit, or below what dense does already.
        """
        if not isinstance(text, str):
            raise OptionTypeError(f"target: got {shown(text)}; {_WANTED}")
        said = re.sub(r"\s+", "", text.lower())
        for kind, form in _FORMS.items():
            if (found := re.fullmatch(form, said)) is not None:
                return Goal(kind, float(found[1]))._checked(text)
        raise OptionError(f"target: got {shown(text)}; {_WANTED}")

    def _checked(self, text: str) -> Goal:
        if self.kind == "speed" and self.value < 1:
            raise OptionError(f"target: got {shown(text)}, slower than dense; wanted 1x or more")
        if self.value <= 0 or (self.kind == "error" and self.value >= 1):
            bound = "an error in (0, 1)" if self.kind == "error" else "a number above 0"
            raise OptionError(f"target: got {shown(text)}, wanted {bound}")
        return self

    @property
    def bounds_error(self) -> bool:
        """Whether quality is given and speed is sought."""
        return self.kind in ("error", "psnr")

    def most_error(self, peak: float) -> float:
        """The largest relative error that is allowed.

        Args:
            peak: range of the dense latents over their root mean square.
        """
        return self.value if self.kind == "error" else peak * 10 ** (-self.value / 20)

    def __str__(self) -> str:
        forms = {"speed": "{}x", "ms": "{}ms", "error": "error<={}", "psnr": "psnr>={}"}
        return forms[self.kind].format(f"{self.value:g}")


def psnr_of(error: float, peak: float) -> float:
    """PSNR of latents in dB, from their relative error; see `Goal.most_error`."""
    return 100.0 if error <= 0 else min(100.0, 20 * math.log10(peak / error))


def geometric(values: Iterable[float]) -> float:
    """Geometric mean of squared errors; one that is nothing counts as -120 dB."""
    return math.exp(fmean(math.log(max(value, 1e-12)) for value in values))
