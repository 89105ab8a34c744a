"""Captures of one model in the folder: read where nothing that decides them differs, else made.

Two kinds of files are kept: how the inputs of a model follow the frames, and a Program of some
shapes.  The key of each is a digest of everything that decides it, computed anew before each look:
the model as `fisopt.runtime.disk.state_digest` reads it, its spec, its source files, versions,
devices, modes, and the inputs.  Weights are not stored; a Program that is read uses the model's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

from torch import nn

from fisopt.errors import FisoptError
from fisopt.rewrite.axes import TokenLayout
from fisopt.rewrite.program import Program
from fisopt.rewrite.tracing.follow import Followed
from fisopt.rewrite.tracing.frame_dims import Growth
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.tracing.kept import Found, Kept, NotKept
from fisopt.rewrite.tracing.origin import Source
from fisopt.runtime.ambient import ambient
from fisopt.runtime.disk.folder import Folder, captures
from fisopt.runtime.disk.sources import sources, surroundings
from fisopt.runtime.disk.state_digest import StateDigest
from fisopt.runtime.disk.tokens import checked
from fisopt.spec import ModelSpec
from fisopt.stored.graph_file import plain
from fisopt.stored.program_data import plain_program, program_of

FORM = 1
"""Of the files; one of another form has another key."""


def keeping(model: nn.Module, spec: ModelSpec, notes: dict[str, None]) -> Kept:
    """Where captures of a model are kept; see `fisopt.rewrite.tracing.kept`."""
    folder = captures()
    return NotKept() if folder is None else OnDisk(model, spec, notes, folder)


class OnDisk:
    """Captures of a model in a folder.

    Args:
        model: the model.
        spec: its spec.
        notes: take a line on what could not be read, or not be kept.
        folder: where the files are.
    """

    def __init__(
        self, model: nn.Module, spec: ModelSpec, notes: dict[str, None], folder: Folder
    ) -> None:
        self._model, self._spec, self._notes, self._folder = model, spec, notes, folder

    def found(self, inputs: Inputs, layout: TokenLayout, find: Callable[[], Found]) -> Found:
        """See `Kept`."""
        found: Found = self._kept(("found", inputs, layout), find, plain_found, found_of)
        return found

    def program(
        self, source: Source, inputs: Inputs, layout: TokenLayout, make: Callable[[], Program]
    ) -> Program:
        """See `Kept`."""
        program: Program = self._kept(
            ("program", inputs, layout, source.followed),
            make,
            plain_program,
            lambda said: program_of(said, source, inputs),
        )
        return program

    def _kept(
        self,
        what: tuple[Any, ...],
        make: Callable[[], Any],
        write: Callable[[Any], Any],
        read: Callable[[Any], Any],
    ) -> Any:
        try:
            key = self._key(what)
        except Exception as error:  # whatever an odd model raises when it is looked at
            self._note("not kept on the disk", error)
            return make()
        try:
            if (said := self._folder.read(key)) is not None:
                return read(said)
        except Exception as error:  # whatever a file holds
            self._note("the capture on the disk was made again", error)
        made = make()
        try:
            if why := self._folder.write(key, write(made)):
                self._note("not kept on the disk", FisoptError(why))
        except Exception as error:  # whatever an odd Program holds
            self._note("not kept on the disk", error)
        return made

    def _note(self, what: str, error: Exception) -> None:
        kind = "" if isinstance(error, FisoptError) else f"{type(error).__name__}: "
        self._notes[f"{what}: {kind}{error}"] = None

    def _key(self, what: tuple[Any, ...]) -> str:
        kind, inputs, layout, *more = what
        state = StateDigest(self._model, self._spec)
        modes = ambient(x for _, x in inputs.tensors())
        parts = [
            *(f"{FORM} {kind}", state.text, repr(modes), repr(layout), repr(more)),
            *(repr(inputs.names), repr(inputs.key())),
            *surroundings(),
            *sources(state.modules),
        ]
        said = hashlib.sha256()
        for part in parts:
            said.update(f"{len(part)} {checked(kind, part)}".encode())
        return said.hexdigest()


def plain_found(found: Found) -> dict[str, Any]:
    """What trials have found, as plain values."""
    followed = found.followed
    dims = [[leaf, [list(astuple(g)) for g in growths]] for leaf, growths in followed.dims.items()]
    return {
        "dims": dims,
        "frames": followed.frames,
        "step": followed.step,
        "why_fixed": followed.why_fixed,
        "effects": list(found.effects),
    }


def found_of(said: Any) -> Found:
    """The inverse of `plain_found`.

    Raises:
        FisoptError, LookupError, TypeError, ValueError: it is malformed.
    """
    dims = {plain(leaf, int): tuple(map(_growth, growths)) for leaf, growths in said["dims"]}
    frames, step = plain(said["frames"], int), plain(said["step"], int)
    followed = Followed(dims, frames, step, plain(said["why_fixed"], str))
    return Found(followed, tuple(plain(effect, str) for effect in said["effects"]))


def _growth(said: Any) -> Growth:
    dim, per_frame, tokens, exact, plane, scale, padded = said
    rows = None if plane is None else (plain(plane[0], int), plain(plane[1], int))
    numbers = plain(dim, int), plain(per_frame, int)
    kinds = plain(tokens, bool), plain(exact, bool)
    return Growth(*numbers, *kinds, rows, plain(scale, int), plain(padded, bool))
