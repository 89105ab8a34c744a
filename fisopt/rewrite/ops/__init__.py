"""The operators that passes insert, each declared in a file of its own.

Importing one makes all known.
"""

from fisopt.rewrite.ops import (
    attend_by,
    attend_masked,
    fill_frames,
    gather_frames,
    match_nearby,
    match_tokens,
    reduce_attend_restore,
    reduce_tokens,
    restore_tokens,
    tile_attend_masked,
    tile_attention,
)

__all__ = [
    "attend_by",
    "attend_masked",
    "fill_frames",
    "gather_frames",
    "match_nearby",
    "match_tokens",
    "reduce_attend_restore",
    "reduce_tokens",
    "restore_tokens",
    "tile_attend_masked",
    "tile_attention",
]
