"""Progress: a run that measures prompt after prompt keeps them in a file, and goes on from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fisopt.checked import path_of
from fisopt.errors import FileError, InputError, shown
from fisopt.files import check_free, write
from fisopt.reading import MalformedError, read_json


class Progress:
    """What is measured of each prompt so far, in a file of JSON.

    Args:
        path: the file, or None to keep nothing.
        about: what the measurements depend on.
        damage: what of ``(model, prompts)`` is not as it is written, in words; empty if nothing is.

    Attributes:
        model: what is known of the model, whatever the prompt.
        prompts: what is measured, by the number of the prompt.

    Raises:
        InputError: what is there is damaged, of another run, or none of fisopt's.
        FileError: it cannot be read, or a file cannot be written there.
    """

    def __init__(
        self,
        path: Path | str | None,
        about: Mapping[str, Any],
        damage: Callable[[Any, Any], str],
    ) -> None:
        self.path = None if path is None else path_of("progress", path)
        self.about = dict(about)
        self.model: dict[str, Any] = {}
        self.prompts: dict[str, Any] = {}
        if self.path is None:
            return
        check_free(self.path, force=True, error=FileError)
        if self.path.exists():
            self._take_over(self.path, damage)

    def _take_over(self, path: Path, damage: Callable[[Any, Any], str]) -> None:
        anew = "remove it to start anew, or keep this run's elsewhere"
        try:
            held = read_json(path)
        except MalformedError as error:
            raise InputError(f"{path} is not complete: {error}; {anew}") from error
        there = held.get("about") if isinstance(held, dict) else None
        if not isinstance(there, dict):
            raise InputError(f"{path} is not a progress file of fisopt; {anew}")
        if other := [n for n in {**self.about, **there} if there.get(n) != self.about.get(n)]:
            kept, now = ({name: run.get(name) for name in other} for run in (there, self.about))
            raise InputError(
                f"{path} was measured with other {', '.join(other)}: {shown(kept)}, this run is "
                f"{shown(now)}; {anew}"
            )
        try:
            model, prompts = held["model"], held["prompts"]
            known = {str(index) for index in range(len(self.about["prompts"]))}
            wrong = "" if prompts.keys() <= known else "wanted prompts of this run"
            wrong = wrong or damage(model, prompts)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            raise InputError(f"{path} is damaged: {wrong}; {anew}")
        self.model, self.prompts = model, prompts

    def keep(self, index: int, measured: Any) -> None:
        """Write what was measured of a prompt, beside all before, whole or not at all.

        Raises:
            InputError: there are numbers in it that are not finite.
            FileError: the file cannot be written.
        """
        self.prompts[str(index)] = measured
        held = {"about": self.about, "model": self.model, "prompts": self.prompts}
        try:
            text = json.dumps(held, allow_nan=False)
        except ValueError as error:
            raise InputError(
                f"prompt {index}: what was measured is not finite; check the weights, the inputs "
                "and the dtype"
            ) from error
        if self.path is not None:
            write(self.path, text + "\n")

    def __contains__(self, index: int) -> bool:
        """Whether a prompt is measured."""
        return str(index) in self.prompts

    def in_order(self) -> list[Any]:
        """What is measured, by prompt."""
        return [self.prompts[name] for name in sorted(self.prompts, key=int)]


def sizes(value: Any) -> list[int]:
    """Sizes of nested lists of finite numbers.

    Raises:
        MalformedError: they are none.
    """
    found = torch.tensor(value, dtype=torch.float64)
    if not found.isfinite().all():
        raise MalformedError("numbers are not finite")
    return list(found.shape)
