"""A command of commands, the first of which may be left out."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class FirstByDefault(TyperGroup):
    """Takes ``fisopt distill testbed`` for ``fisopt distill train testbed``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name the first command where none is named."""
        known = {*self.commands, *self.get_help_option_names(ctx)}
        if args and args[0] not in known:
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)
