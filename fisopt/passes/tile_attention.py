"""Tile-sparse attention: frames attend to themselves and to a few global frames.

Source: Efficient-vDiT, arXiv:2502.06155, the part that needs no training.  Exact: the kept tiles
of the score matrix.  Left out: all others, by a mask over pairs of latent frames that differs from
layer to layer but not from prompt to prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fisopt.errors import OptionError, OptionTypeError, PreconditionError, shown
from fisopt.passes.tiling.mask_table import MaskTable
from fisopt.passes.tiling.masks import FrameMask, TileMask, frame_mask
from fisopt.passes.tiling.tiled_block import Tiles, across_frames, tiles_of
from fisopt.rewrite.analysis.structure import attentions, no_self_attention
from fisopt.rewrite.block import Block
from fisopt.rewrite.block_pass import BlockPass
from fisopt.rewrite.pass_base import Stage
from fisopt.rewrite.program import Program
from fisopt.rewrite.rewriter import Rewriter

DEFAULT = TileMask(2)


@dataclass(frozen=True)
class TileAttention(BlockPass):
    """Replace self-attention over the video by attention over selected tiles of frames.

    Before and after (the same for attention written as products and a softmax)::

        %y = aten::scaled_dot_product_attention(%q, %k, %v, %mask)

        %y = fisopt::tile_attention(%q, %k, %v, %mask, @rows, @keys, pairs, None)

    Text joined to the sequence attends to everything, and every token attends to it and to past
    keys in a cache. The model's own masks still apply. Cross-attention to text, and attention
    inside one frame, stay unchanged. In a block that runs on some frames only, the pass uses the
    mask for that number of frames.

    Attributes:
        mask: which tiles to keep; an int is the k of ``TileMask``.
        table: a mask for every block, instead of ``mask``: a MaskTable, a mapping from block paths
            to masks or None, or the path of a file that ``fisopt search`` wrote.
        blocks: the sparse blocks, see `BlockPass`; the pass uses only their masks of a table.
        steps: the sparse steps, see `BlockPass`.

    Source: Efficient-vDiT, arXiv:2502.06155.
    """

    stage: ClassVar[Stage] = "attention"

    mask: FrameMask | int = DEFAULT
    table: MaskTable | Mapping[str, FrameMask | int | None] | Path | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            object.__setattr__(self, "mask", frame_mask(self.mask))
        except (TypeError, ValueError) as error:
            raise OptionError(f"TileAttention: {error}") from error
        if isinstance(self.table, (str, Path)):
            object.__setattr__(self, "table", MaskTable.load(self.table))
        elif isinstance(self.table, Mapping):
            object.__setattr__(self, "table", MaskTable(self.table))
        elif self.table is not None and not isinstance(self.table, MaskTable):
            raise OptionTypeError(
                "TileAttention: table must be a MaskTable, a mapping from block paths to masks or "
                f"the path of a file, got {shown(self.table)}"
            )

    def requires(self, program: Program) -> None:
        """Check the masks against the frames, and ``table`` and ``blocks`` against the model."""
        super().requires(program)
        paths = [block.path for block in program.blocks]
        if isinstance(self.table, MaskTable):
            self._check_table(self.table, program.block_paths)
        for path, mask in zip(paths, self._masks(program), strict=True):
            if mask is not None:
                try:
                    mask.table(program.layout.frames)
                except ValueError as error:
                    raise PreconditionError(
                        f"{error} ({program.layout} tokens)", pass_name=self.name, node=path
                    ) from error

    def _check_table(self, table: MaskTable, paths: list[str]) -> None:
        named = [path for path, _ in table.items()]
        if sorted(named) == sorted(paths):
            return
        unknown = [n for n in named if n not in paths]
        missing = [n for n in paths if n not in named]
        raise PreconditionError(
            f"the table is for {len(named)} blocks, the model has {len(paths)}"
            + (f"; it has no blocks {unknown[:4]}" if unknown else "")
            + (f"; not in the table: {missing[:4]}" if missing else "")
            + "; a table names every video block, None is dense",
            pass_name=self.name,
        )

    def _masks(self, program: Program) -> list[FrameMask | None]:
        """The mask of every block, None where it stays dense."""
        chosen = {block.index for block in self.chosen(program)}
        table = dict(self.table.items()) if isinstance(self.table, MaskTable) else None
        return [
            None
            if block.index not in chosen
            else table[block.path]
            if table is not None
            else frame_mask(self.mask)
            for block in program.blocks
        ]

    def run(self, rewriter: Rewriter) -> None:
        """Rewrite the attentions of the sparse blocks one by one."""
        program = rewriter.program
        frames = program.layout.frames
        masks = self._masks(program)
        if all(mask is None or bool(mask.table(frames).all()) for mask in masks):
            rewriter.note(f"dense: every tile is kept at {frames} latent frames")
            return
        tiler = _Tiler(rewriter)
        for block, mask in zip(program.blocks, masks, strict=True):
            tiler.block(block, mask, named=self.table is not None)
        if not tiler.attending:
            raise PreconditionError(
                "no block has self-attention across frames; there is nothing to make sparse: in "
                f"{program.blocks[0].path}, {no_self_attention(program.blocks[0].body.graph)}",
                pass_name=self.name,
            )
        if tiler.within:
            rewriter.note(f"{tiler.within} blocks have no self-attention across frames")
        if not tiler.densities:
            return
        density = sum(tiler.densities) / len(tiler.densities)
        rewriter.note(
            f"{len(tiler.densities)} of {tiler.attending} blocks tile-sparse, density "
            f"{density:.3f} (sparsity {1 - density:.3f}) of their self-attention: "
            + ", ".join(tiler.used)
        )


class _Tiler:
    """The state of one run: the figures of the report."""

    def __init__(self, rewriter: Rewriter) -> None:
        self.rewriter = rewriter
        self.densities: list[float] = []
        self.used: dict[str, None] = {}
        self.attending = self.within = 0

    def block(self, block: Block, mask: FrameMask | None, *, named: bool) -> None:
        """Make the self-attention of one block sparse."""
        graph, where = block.body.graph, block.path
        found = [a for a in attentions(graph) if across_frames(graph, a)]
        if not found:
            self.within += 1
            if named and mask is not None:
                self.rewriter.skip(
                    where, "the table gives it a mask, but it has no video self-attention"
                )
            return
        self.attending += 1
        if mask is None:
            return
        tiles: list[Tiles] = []
        for attention in found:
            if isinstance(made := tiles_of(graph, attention, mask), str):
                self.rewriter.skip(where, made)
                return
            tiles.append(made)
        if all(each.plan.density == 1.0 for each in tiles):
            return
        with self.rewriter.edit(block, name="tiles") as edit:
            for number, each in enumerate(tiles):
                each.write(edit, number)
        self.used |= dict.fromkeys(mask.at(each.queries.frames) for each in tiles)
        self.densities.append(sum(each.plan.density for each in tiles) / len(tiles))
