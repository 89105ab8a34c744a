"""Every claim of the relation table against brute force on random layouts.

A link says: entries of frame f of an operand reach only entries of frame f of the result, and
the operator run on some frames gives those frames of its result.  Both are tried.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import optimum.quanto  # noqa: F401 - registers its operators
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from fisopt.rewrite.axes import FrameAxis, set_axes
from fisopt.rewrite.ops.attend_by import attend_by
from fisopt.rewrite.ops.match_nearby import match_nearby
from fisopt.rewrite.ops.match_tokens import match_tokens
from fisopt.rewrite.ops.reduce_tokens import reduce_tokens
from fisopt.rewrite.ops.restore_tokens import restore_tokens
from fisopt.rewrite.ops.tile_attention import tile_attention
from fisopt.rewrite.relations import Relation, relation, relation_rule
from fisopt.rewrite.relations.table import RULES
from fisopt.rewrite.tools import quanto  # noqa: F401 - declares them

aten = torch.ops.aten
A = FrameAxis
Built = tuple[Any, tuple[Any, ...]]


@dataclass(frozen=True)
class Op:
    """One way of using an operator.

    Attributes:
        shapes: sizes of the operands for a frame axis.
        framed: the operand dimensions that carry the axis.
        call: target and arguments from the operands.
        follows: result dimensions that must be followed for any layout; the table may say no
            more than that an entry is mixed, but not here.
        pure: only for dimensions without text.
        plain: only for dimensions without text and with outer = 1.
        frames_only: the dimension holds frames, not tokens.
        integer: operands that hold small whole numbers.
        given: operands that cannot be random.
    """

    shapes: Callable[[A], list[tuple[int, ...]]]
    framed: tuple[tuple[int, int], ...]
    call: Callable[[list[Any], A], Built]
    follows: tuple[int, ...] = ()
    pure: bool = False
    plain: bool = False
    frames_only: bool = False
    integer: tuple[int, ...] = ()
    given: Mapping[int, Callable[[A], Tensor]] = field(default_factory=dict)


def unary(target: Any, *args: Any, follows: tuple[int, ...] = (1,)) -> Op:
    """On [2, frames, 4]."""
    return Op(lambda a: [(2, a.size, 4)], ((0, 1),), lambda x, a: (target, (x[0], *args)), follows)


def own_tiles(axis: A) -> Tensor:
    """Another range of keys for each head, and an empty one, which is not where numbers change."""
    ends = 2 + torch.arange(axis.size) % 3
    first = torch.stack([torch.zeros_like(ends), ends], -1)
    return torch.stack([first, torch.tensor([[2, 1]]).expand_as(first)], 1)[:, None]


sdpa = aten.scaled_dot_product_attention.default
TOKENS = ((0, 1),)
OPS: dict[str, Op] = {
    "relu": unary(aten.relu.default),
    "clone": unary(aten.clone.default),
    "zeros_like": unary(aten.zeros_like.default),
    "softmax of channels": unary(aten.softmax.int, -1),
    "softmax of tokens": unary(aten.softmax.int, 1, follows=()),
    "cumsum of tokens": unary(aten.cumsum.default, 1, follows=()),
    "flip of tokens": unary(aten.flip.default, [1], follows=()),
    "roll of channels": unary(aten.roll.default, [1], [2]),
    "layer_norm": unary(aten.layer_norm.default, [4]),
    "rms_norm": unary(aten.rms_norm.default, [4]),
    "norm over tokens too": Op(
        lambda a: [(2, a.size, 4)],
        TOKENS,
        lambda x, a: (aten.layer_norm.default, (x[0], [a.size, 4])),
    ),
    "group_norm": Op(
        lambda a: [(2, a.size, 4)], TOKENS, lambda x, a: (aten.group_norm.default, (x[0], 1))
    ),
    "mean of channels": unary(aten.mean.dim, [-1]),
    "mean of channels, kept": unary(aten.mean.dim, [-1], True),
    "mean of tokens": unary(aten.mean.dim, [1], follows=()),
    "sum of all": unary(aten.sum.dim_IntList, [], follows=()),
    "amax of batch": unary(aten.amax.default, [0], follows=(0,)),
    "argmax of channels": unary(aten.argmax.default, 2),
    "vector_norm": unary(aten.linalg_vector_norm.default, 2, [2]),
    "transpose": unary(aten.transpose.int, 1, -1, follows=(2,)),
    "permute": unary(aten.permute.default, [1, 2, 0], follows=(0,)),
    "unsqueeze before": unary(aten.unsqueeze.default, 1, follows=(2,)),
    "unsqueeze after": unary(aten.unsqueeze.default, -1),
    "squeeze": Op(
        lambda a: [(1, a.size, 4)], TOKENS, lambda x, a: (aten.squeeze.dim, (x[0], 0)), (0,)
    ),
    "squeeze of all": Op(
        lambda a: [(1, a.size, 1)], TOKENS, lambda x, a: (aten.squeeze.default, (x[0],)), (0,)
    ),
    "expand": Op(
        lambda a: [(a.size, 1)],
        ((0, 0),),
        lambda x, a: (aten.expand.default, (x[0], [2, a.size, 3])),
        (1,),
    ),
    "repeat of heads": unary(aten.repeat.default, [1, 1, 3]),
    "repeat of tokens": unary(aten.repeat.default, [1, 2, 1], follows=()),
    "repeat_interleave of channels": unary(aten.repeat_interleave.self_int, 2, 2),
    "repeat_interleave of tokens": Op(
        lambda a: [(2, a.size, 4)],
        TOKENS,
        lambda x, a: (aten.repeat_interleave.self_int, (x[0], 2, 1)),
        (1,),
        pure=True,
    ),
    "heads apart": Op(
        lambda a: [(2, a.size, 6)],
        TOKENS,
        lambda x, a: (aten.reshape.default, (x[0], [2, a.size, 3, 2])),
        (1,),
    ),
    "heads joined": Op(
        lambda a: [(2, a.size, 3, 2)],
        TOKENS,
        lambda x, a: (aten.reshape.default, (x[0], [2, a.size, 6])),
        (1,),
    ),
    "frames apart": Op(
        lambda a: [(2, a.size, 4)],
        TOKENS,
        lambda x, a: (aten.reshape.default, (x[0], [2, a.frames, a.inner, 4])),
        (1,),
        plain=True,
    ),
    "batch joined to tokens": Op(
        lambda a: [(2, a.size, 4)],
        TOKENS,
        lambda x, a: (aten.reshape.default, (x[0], [2 * a.size, 4])),
        (0,),
        pure=True,
    ),
    "batch split from tokens": Op(
        lambda a: [(2 * a.size, 4)],
        (),
        lambda x, a: (aten.reshape.default, (x[0], [2, a.size, 4])),
    ),
    "frames to the batch": Op(
        lambda a: [(2, a.frames, a.inner, 4)],
        TOKENS,
        lambda x, a: (aten.reshape.default, (x[0], [2 * a.frames, a.inner, 4])),
        (0,),
        plain=True,
        frames_only=True,
    ),
    "everything flat": Op(
        lambda a: [(2, a.size, 4)],
        TOKENS,
        lambda x, a: (aten.reshape.default, (x[0], [2 * a.size * 4])),
        (0,),
        pure=True,
    ),
    "cut elsewhere": Op(
        lambda a: [(2, a.size, 6)],
        TOKENS,
        lambda x, a: (aten.reshape.default, (x[0], [2, a.size * 2, 3])),
    ),
    "first text": Op(
        lambda a: [(2, a.size, 4)],
        TOKENS,
        lambda x, a: (aten.slice.Tensor, (x[0], 1, 0, a.before)),
    ),
    "without first text": Op(
        lambda a: [(2, a.size, 4)],
        TOKENS,
        lambda x, a: (aten.slice.Tensor, (x[0], 1, a.before)),
        (1,),
    ),
    "without last text": Op(
        lambda a: [(2, a.size, 4)],
        TOKENS,
        lambda x, a: (aten.slice.Tensor, (x[0], 1, 0, a.before + a.video)),
        (1,),
    ),
    "narrow to the video": Op(
        lambda a: [(2, a.size, 4)],
        TOKENS,
        lambda x, a: (aten.narrow.default, (x[0], 1, a.before, a.video)),
        (1,),
    ),
    "part of the video": Op(
        lambda a: [(2, a.size, 4)],
        TOKENS,
        lambda x, a: (aten.slice.Tensor, (x[0], 1, a.before + 1, a.size)),
    ),
    "every second token": Op(
        lambda a: [(2, a.size, 4)],
        TOKENS,
        lambda x, a: (aten.slice.Tensor, (x[0], 1, 0, a.size, 2)),
    ),
    "every second channel": unary(aten.slice.Tensor, 2, 0, 4, 2),
    "one channel": unary(aten.select.int, -1, 1),
    "one token": unary(aten.select.int, 1, 0, follows=()),
    "cat with text": Op(
        lambda a: [(2, 3, 4), (2, a.size, 4), (2, 2, 4)],
        ((1, 1),),
        lambda x, a: (aten.cat.default, (x, 1)),
        (1,),
    ),
    "cat of channels": Op(
        lambda a: [(2, a.size, 4), (2, a.size, 2)],
        ((0, 1), (1, 1)),
        lambda x, a: (aten.cat.default, (x, -1)),
        (1,),
    ),
    "cat of two videos": Op(
        lambda a: [(2, a.size, 4), (2, a.size, 4)],
        ((0, 1), (1, 1)),
        lambda x, a: (aten.cat.default, (x, 1)),
    ),
    "pad": unary(aten.constant_pad_nd.default, [0, 0, 2, 1]),
    "pad by hand": unary(aten.pad.default, [0, 0, 2, 1]),
    "stack": Op(
        lambda a: [(2, a.size, 4), (2, a.size, 4)],
        ((0, 1), (1, 1)),
        lambda x, a: (aten.stack.default, (x, 1)),
        (2,),
    ),
    "slice_scatter of channels": Op(
        lambda a: [(2, a.size, 4), (2, a.size, 2)],
        ((0, 1), (1, 1)),
        lambda x, a: (aten.slice_scatter.default, (*x, 2, 0, 4, 2)),
        (1,),
    ),
    "select_scatter of channels": Op(
        lambda a: [(2, a.size, 4), (2, a.size)],
        ((0, 1), (1, 1)),
        lambda x, a: (aten.select_scatter.default, (*x, 2, 0)),
        (1,),
    ),
    "add": Op(
        lambda a: [(2, a.size, 4), (a.size, 1)],
        ((0, 1), (1, 0)),
        lambda x, a: (aten.add.Tensor, tuple(x)),
        (1,),
    ),
    "add of one row": Op(
        lambda a: [(2, a.size, 4), (2, 1, 4)],
        ((0, 1),),
        lambda x, a: (aten.add.Tensor, tuple(x)),
        (1,),
    ),
    "mul of one column": Op(
        lambda a: [(a.size, 1), (2, a.size, 4)],
        ((0, 0), (1, 1)),
        lambda x, a: (aten.mul.Tensor, tuple(x)),
        (1,),
    ),
    "linear": Op(
        lambda a: [(2, a.size, 4), (3, 4), (3,)],
        ((0, 1),),
        lambda x, a: (aten.linear.default, tuple(x)),
        (1,),
    ),
    "linear of quanto": Op(
        lambda a: [(2, a.size, 4), (3, 4), (3, 1)],
        ((0, 1),),
        lambda x, a: (torch.ops.quanto.qbytes_mm.default, tuple(x)),
        (1,),
    ),
    "linear over tokens": Op(
        lambda a: [(2, 4, a.size), (3, a.size)],
        ((0, 2), (1, 1)),
        lambda x, a: (aten.linear.default, tuple(x)),
    ),
    "matmul of rows": Op(
        lambda a: [(2, a.size, 4), (4, 3)],
        ((0, 1),),
        lambda x, a: (aten.matmul.default, tuple(x)),
        (1,),
    ),
    "bmm of columns": Op(
        lambda a: [(2, 3, 4), (2, 4, a.size)],
        ((1, 2),),
        lambda x, a: (aten.bmm.default, tuple(x)),
        (2,),
    ),
    "scores": Op(
        lambda a: [(2, a.size, 4), (2, 4, 5)],
        ((0, 1),),
        lambda x, a: (aten.bmm.default, tuple(x)),
        (1,),
    ),
    "matmul over tokens": Op(
        lambda a: [(2, 3, a.size), (2, a.size, 4)],
        ((0, 2), (1, 1)),
        lambda x, a: (aten.matmul.default, tuple(x)),
    ),
    "frames in the batch of a product": Op(
        lambda a: [(a.size, 3, 4), (a.size, 4, 2)],
        ((0, 0), (1, 0)),
        lambda x, a: (aten.bmm.default, tuple(x)),
        (0,),
    ),
    "mm": Op(
        lambda a: [(a.size, 4), (4, 3)], ((0, 0),), lambda x, a: (aten.mm.default, tuple(x)), (0,)
    ),
    "mv": Op(
        lambda a: [(a.size, 4), (4,)], ((0, 0),), lambda x, a: (aten.mv.default, tuple(x)), (0,)
    ),
    "addmm": Op(
        lambda a: [(3,), (a.size, 4), (4, 3)],
        ((1, 0),),
        lambda x, a: (aten.addmm.default, tuple(x)),
        (0,),
    ),
    "baddbmm": Op(
        lambda a: [(2, a.size, 3), (2, a.size, 4), (2, 4, 3)],
        ((0, 1), (1, 1)),
        lambda x, a: (aten.baddbmm.default, tuple(x)),
        (1,),
    ),
    "attention to text": Op(
        lambda a: [(2, 2, a.size, 4), (2, 2, 5, 4), (2, 2, 5, 4)],
        ((0, 2),),
        lambda x, a: (sdpa, tuple(x)),
        (2,),
    ),
    "attention to itself": Op(
        lambda a: [(2, 2, a.size, 4)] * 3,
        ((0, 2), (1, 2), (2, 2)),
        lambda x, a: (sdpa, tuple(x)),
        (2,),
    ),
    "attention with a mask": Op(
        lambda a: [(2, 2, a.size, 4), *[(2, 2, 5, 4)] * 2, (1, 1, a.size, 5)],
        ((0, 2), (3, 2)),
        lambda x, a: (sdpa, tuple(x)),
        (2,),
    ),
    "causal attention": Op(
        lambda a: [(2, 2, a.size, 4)] * 3,
        ((0, 2), (1, 2), (2, 2)),
        lambda x, a: (sdpa, (*x, None, 0.0, True)),
    ),
    "attention by a function": Op(
        lambda a: [(2, 2, a.size, 4)] * 3,
        ((0, 2), (1, 2), (2, 2)),
        lambda x, a: (attend_by.target, (*x, None, 0.5, "", True)),
        (2,),
    ),
    "attention that only its function knows": Op(
        lambda a: [(2, 2, a.size, 4)] * 3,
        ((0, 2), (1, 2), (2, 2)),
        lambda x, a: (attend_by.target, (*x, None, 0.5, "", False)),
    ),
    "frames in the batch of an attention": Op(
        lambda a: [(a.size, 2, 3, 4)] * 3,
        ((0, 0), (1, 0), (2, 0)),
        lambda x, a: (sdpa, tuple(x)),
        (0,),
    ),
    "tokens matched in every row": Op(
        lambda a: [(a.size, 6, 4), (2,)],
        ((0, 0),),
        lambda x, a: (match_tokens.target, (*x, 2, 0, 0)),
        (0,),
        integer=(1,),
        given={1: lambda a: torch.tensor([1, 4])},
    ),
    "tokens matched with others": Op(
        lambda a: [(2, a.size, 4), (2,)],
        ((0, 1),),
        lambda x, a: (match_tokens.target, (*x, 1, 0, 0)),
        integer=(1,),
        given={1: lambda a: torch.tensor([0, 2])},
    ),
    "a profile of all rows": Op(
        lambda a: [(a.size, 6, 4), (2,)],
        ((0, 0),),
        lambda x, a: (match_tokens.target, (*x, 2, 0, 0, True)),
        integer=(1,),
        given={1: lambda a: torch.tensor([1, 4])},
    ),
    "tokens matched nearby in every row": Op(
        lambda a: [(a.size, 8, 4), (2,), (3,)],
        ((0, 0),),
        lambda x, a: (match_nearby.target, (*x, [4, 2, 1], [2, 2, 1], 2, 0, 0)),
        (0,),
        integer=(1, 2),
        given={1: lambda a: torch.tensor([1, 6]), 2: lambda a: torch.zeros(3, dtype=torch.long)},
    ),
    "tokens kept in every row": Op(
        lambda a: [(a.size, 6, 4), (a.size, 3)],
        ((0, 0), (1, 0)),
        lambda x, a: (reduce_tokens.target, (*x, None, 1)),
        (0,),
        integer=(1,),
    ),
    "tokens joined in every row": Op(
        lambda a: [(a.size, 6, 4), (a.size, 3), (a.size, 6)],
        ((0, 0), (1, 0), (2, 0)),
        lambda x, a: (reduce_tokens.target, (*x, 1)),
        (0,),
        integer=(1, 2),
        given={2: lambda a: (torch.arange(6) % 3).repeat(a.size, 1)},
    ),
    "tokens of frames that are kept": Op(
        lambda a: [(2, a.size, 4), (2, 3)],
        ((0, 1),),
        lambda x, a: (reduce_tokens.target, (*x, None, 1)),
        integer=(1,),
    ),
    "channels of kept tokens": Op(
        lambda a: [(2, 6, a.size), (2, 3)],
        ((0, 2),),
        lambda x, a: (reduce_tokens.target, (*x, None, 1)),
        (2,),
        integer=(1,),
    ),
    "tokens restored in every row": Op(
        lambda a: [(a.size, 3, 4), (a.size, 6)],
        ((0, 0), (1, 0)),
        lambda x, a: (restore_tokens.target, (*x, 1, 0, 0, 0)),
        (0,),
        integer=(1,),
    ),
    "frames in the batch of an attention on tiles": Op(
        lambda a: [*[(a.size, 2, 6, 4)] * 3, (2,), (1, 1, 1, 2)],
        ((0, 0), (1, 0), (2, 0)),
        lambda x, a: (tile_attention.target, (*x[:3], None, *x[3:], 24, None)),
        (0,),
        integer=(3, 4),
        given={3: lambda a: torch.tensor([0, 6]), 4: lambda a: torch.tensor([[[[0, 4]]]])},
    ),
    "tokens of an attention on tiles": Op(
        lambda a: [(1, 2, a.size, 4), *[(1, 2, 6, 4)] * 2, (2,), (1, 1, 1, 2)],
        ((0, 2),),
        lambda x, a: (tile_attention.target, (*x[:3], None, *x[3:], 24, None)),
        integer=(3, 4),
        given={3: lambda a: torch.tensor([0, a.size]), 4: lambda a: torch.tensor([[[[0, 4]]]])},
    ),
    "heads that have tiles of their own": Op(
        lambda a: [*[(2, a.size, 6, 4)] * 3, (2,), (a.size, 1, 2, 2)],
        ((0, 1), (1, 1), (2, 1), (4, 0)),
        lambda x, a: (tile_attention.target, (*x[:3], None, *x[3:], 24, None)),
        (1,),
        integer=(3, 4),
        given={3: lambda a: torch.tensor([0, 6]), 4: own_tiles},
    ),
    "embedding of numbers": Op(
        lambda a: [(7, 4), (2, a.size)],
        ((1, 1),),
        lambda x, a: (aten.embedding.default, tuple(x)),
        (1,),
        integer=(1,),
    ),
    "embedding from frames": Op(
        lambda a: [(a.size, 4), (2, 3)],
        ((0, 0),),
        lambda x, a: (aten.embedding.default, tuple(x)),
        integer=(1,),
    ),
    "index_select of channels": Op(
        lambda a: [(2, a.size, 4), (3,)],
        ((0, 1),),
        lambda x, a: (aten.index_select.default, (x[0], 2, x[1])),
        (1,),
        integer=(1,),
    ),
    "index_select by tokens": Op(
        lambda a: [(7, 4), (a.size,)],
        ((1, 0),),
        lambda x, a: (aten.index_select.default, (x[0], 0, x[1])),
        (0,),
        integer=(1,),
    ),
    "index of channels": Op(
        lambda a: [(2, a.size, 4), (3,)],
        ((0, 1),),
        lambda x, a: (aten.index.Tensor, (x[0], [None, None, x[1]])),
        (1,),
        integer=(1,),
    ),
    "index by tokens": Op(
        lambda a: [(7, 4), (2, a.size)],
        ((1, 1),),
        lambda x, a: (aten.index.Tensor, (x[0], [x[1]])),
        (1,),
        integer=(1,),
    ),
    "index apart": Op(
        lambda a: [(3, a.size, 4), (5,), (5,)],
        ((0, 1),),
        lambda x, a: (aten.index.Tensor, (x[0], [x[1], None, x[2]])),
        (1,),
        integer=(1, 2),
    ),
    "gather of channels": Op(
        lambda a: [(2, a.size, 4), (2, a.size, 3)],
        ((0, 1), (1, 1)),
        lambda x, a: (aten.gather.default, (x[0], 2, x[1])),
        (1,),
        integer=(1,),
    ),
    "gather of tokens": Op(
        lambda a: [(2, a.size, 4), (2, 3, 4)],
        ((0, 1),),
        lambda x, a: (aten.gather.default, (x[0], 1, x[1])),
        integer=(1,),
    ),
    "conv of one frame": Op(
        lambda a: [(2, 4, a.size, 6), (3, 4, 1, 3)],
        ((0, 2),),
        lambda x, a: (aten.conv2d.default, (*x, None, [1, 1], [0, 1])),
        (2,),
    ),
    "conv over frames": Op(
        lambda a: [(2, 4, a.size, 6), (3, 4, 3, 1)],
        ((0, 2),),
        lambda x, a: (aten.conv2d.default, (*x, None, [1, 1], [1, 0])),
    ),
    "slice_scatter of text": Op(
        lambda a: [(2, a.size, 4), (2, a.before, 4)],
        TOKENS,
        lambda x, a: (aten.slice_scatter.default, (*x, 1, 0, a.before)),
        (1,),
    ),
    "slice_scatter of one token": Op(
        lambda a: [(2, a.size, 4), (2, 1, 4)],
        TOKENS,
        lambda x, a: (aten.slice_scatter.default, (*x, 1, 2, 3)),
    ),
    "select_scatter of a token": Op(
        lambda a: [(2, a.size, 4), (2, 4)],
        TOKENS,
        lambda x, a: (aten.select_scatter.default, (*x, 1, 2)),
    ),
    "index_copy of channels": Op(
        lambda a: [(2, a.size, 4), (3,), (2, a.size, 3)],
        ((0, 1), (2, 1)),
        lambda x, a: (aten.index_copy.default, (x[0], 2, x[1], x[2])),
        (1,),
        integer=(1,),
    ),
    "index_copy of tokens": Op(
        lambda a: [(2, a.size, 4), (2,), (2, 2, 4)],
        TOKENS,
        lambda x, a: (aten.index_copy.default, (x[0], 1, x[1], x[2])),
        integer=(1,),
    ),
    "index_fill of channels": Op(
        lambda a: [(2, a.size, 4), (3,)],
        TOKENS,
        lambda x, a: (aten.index_fill.int_Scalar, (x[0], 2, x[1], 0.5)),
        (1,),
        integer=(1,),
    ),
    "index_put of channels": Op(
        lambda a: [(2, a.size, 4), (3,), (2, a.size, 3)],
        ((0, 1), (2, 1)),
        lambda x, a: (aten.index_put.default, (x[0], [None, None, x[1]], x[2])),
        (1,),
        integer=(1,),
    ),
    "index_put apart": Op(
        lambda a: [(3, a.size, 4), (5,), (5,), (5, a.size)],
        ((0, 1), (3, 1)),
        lambda x, a: (aten.index_put.default, (x[0], [x[1], None, x[2]], x[3], True)),
        (1,),
        integer=(1, 2),
    ),
    "index_put of tokens": Op(
        lambda a: [(2, a.size, 4), (2,), (2, 2, 4)],
        TOKENS,
        lambda x, a: (aten.index_put.default, (x[0], [None, x[1]], x[2])),
        integer=(1,),
    ),
    "scatter of channels": Op(
        lambda a: [(2, a.size, 4)] * 3,
        ((0, 1), (1, 1), (2, 1)),
        lambda x, a: (aten.scatter.src, (x[0], 2, x[1], x[2])),
        (1,),
        integer=(1,),
    ),
    "scatter_add of tokens": Op(
        lambda a: [(2, a.size, 4)] * 3,
        ((0, 1), (1, 1), (2, 1)),
        lambda x, a: (aten.scatter_add.default, (x[0], 1, x[1], x[2])),
        integer=(1,),
    ),
    "scatter of some rows": Op(
        lambda a: [(2, a.size, 4), (1, 2, 4), (2, 2, 4)],
        TOKENS,
        lambda x, a: (aten.scatter.src, (x[0], 2, x[1], x[2])),
        integer=(1,),
    ),
    "topk of channels": unary(aten.topk.default, 2),
    "topk of tokens": unary(aten.topk.default, 2, 1, follows=()),
    "sort of channels": unary(aten.sort.default),
    "sort of tokens": unary(aten.sort.default, 1, follows=()),
    "max of channels": unary(aten.max.dim, 2),
    "variance and mean": unary(aten.var_mean.correction, [2]),
    "norm of channels": unary(aten.norm.ScalarOpt_dim, 2, [2]),
    "bucketize": Op(
        lambda a: [(2, a.size, 4), (3,)],
        TOKENS,
        lambda x, a: (aten.bucketize.Tensor, tuple(x)),
        (1,),
    ),
    "one_hot": Op(
        lambda a: [(2, a.size)],
        TOKENS,
        lambda x, a: (aten.one_hot.default, (x[0], 3)),
        (1,),
        integer=(0,),
    ),
    "view_as_complex": Op(
        lambda a: [(2, a.size, 4, 2)],
        TOKENS,
        lambda x, a: (aten.view_as_complex.default, (x[0],)),
        (1,),
    ),
    "polar": Op(
        lambda a: [(2, a.size, 4)] * 2,
        ((0, 1), (1, 1)),
        lambda x, a: (aten.polar.default, tuple(x)),
        (1,),
    ),
    "complex": Op(
        lambda a: [(2, a.size, 4)] * 2,
        ((0, 1), (1, 1)),
        lambda x, a: (aten.complex.default, tuple(x)),
        (1,),
    ),
    "glu": unary(aten.glu.default),
    "unfold of channels": unary(aten.unfold.default, 2, 2, 1),
    "unfold of tokens": unary(aten.unfold.default, 1, 2, 1, follows=()),
    "instance_norm": unary(
        aten.instance_norm.default, None, None, None, None, True, 0.1, 1e-5, False
    ),
    "pixel_shuffle": Op(
        lambda a: [(2, 4, a.size, 3)],
        ((0, 2),),
        lambda x, a: (aten.pixel_shuffle.default, (x[0], 2)),
        (2,),
        pure=True,
    ),
    "upsample of columns": Op(
        lambda a: [(2, 4, a.size, 3)],
        ((0, 2),),
        lambda x, a: (aten.upsample_nearest2d.vec, (x[0], [a.size, 6], None)),
        (2,),
    ),
    "upsample of rows": Op(
        lambda a: [(2, 4, a.size, 3)],
        ((0, 2),),
        lambda x, a: (aten.upsample_bilinear2d.vec, (x[0], [2 * a.size, 3], False, None)),
    ),
    "pool of columns": Op(
        lambda a: [(2, 4, a.size, 6)],
        ((0, 2),),
        lambda x, a: (aten.avg_pool2d.default, (x[0], [1, 2])),
        (2,),
    ),
    "pool of rows": Op(
        lambda a: [(2, 4, a.size, 6)],
        ((0, 2),),
        lambda x, a: (aten.avg_pool2d.default, (x[0], [2, 1])),
    ),
    "reflected columns": Op(
        lambda a: [(2, 4, a.size, 6)],
        ((0, 2),),
        lambda x, a: (aten.reflection_pad2d.default, (x[0], [1, 1, 0, 0])),
        (2,),
    ),
    "repeated edges of rows": Op(
        lambda a: [(2, 4, a.size, 6)],
        ((0, 2),),
        lambda x, a: (aten.replication_pad2d.default, (x[0], [0, 0, 1, 1])),
    ),
    "channels in a circle": unary(aten.pad.default, [1, 1], "circular"),
    "tril of tokens": Op(
        lambda a: [(2, a.size, 4)],
        TOKENS,
        lambda x, a: (aten.tril.default, (x[0],)),
    ),
}


def node_of(
    op: Op, axis: A, values: list[Tensor], carried: A | None = None
) -> tuple[fx.Node, list[fx.Node]]:
    """A call of the operator; ``carried`` is the axis of its operands, where it differs."""
    graph = fx.Graph()
    holders = []
    carried = carried or axis
    for i, value in enumerate(values):
        holder = graph.placeholder(f"x{i}")
        holder.meta["val"] = value
        set_axes(holder, tuple(carried if (i, d) in op.framed else None for d in range(value.ndim)))
        holders.append(holder)
    target, args = op.call(holders, axis)
    node = graph.call_function(target, args)
    node.meta["val"] = target(*fx.node.map_arg(args, lambda n: n.meta["val"]))
    return node, holders


def entries(axis: A, frame: int) -> Tensor:
    video = [
        axis.before + (o * axis.frames + frame) * axis.inner + i
        for o in range(axis.outer)
        for i in range(axis.inner)
    ]
    return torch.tensor(video)


def kept(axis: A, frames: list[int]) -> Tensor:
    video = [
        axis.before + (o * axis.frames + f) * axis.inner + i
        for o in range(axis.outer)
        for f in frames
        for i in range(axis.inner)
    ]
    end = axis.before + axis.video
    return torch.tensor([*range(axis.before), *video, *range(end, end + axis.after)])


def evaluate(op: Op, values: list[Tensor], axis: A) -> Tensor:
    target, args = op.call(list(values), axis)
    return first(target(*args))


def first(result: Any) -> Tensor:
    """The result of an operator, or the first of several."""
    tensor: Tensor = result[0] if isinstance(result, tuple) else result
    return tensor


layouts = st.builds(
    A,
    frames=st.integers(3, 5),
    outer=st.integers(1, 2),
    inner=st.integers(1, 3),
    before=st.integers(0, 2),
    after=st.integers(0, 2),
)


@pytest.mark.parametrize("name", OPS)
@settings(max_examples=8)
@given(axis=layouts, frame=st.integers(0, 4), seed=st.integers(0, 99))
def test_links_hold(name: str, axis: A, frame: int, seed: int) -> None:
    op = OPS[name]
    if op.pure or op.plain:
        axis = replace(axis, before=0, after=0)
    if op.plain:
        axis = replace(axis, outer=1)
    assume(frame < axis.frames)
    operand_axis = replace(axis, inner=1) if op.frames_only else axis
    torch.manual_seed(seed)
    values = [
        torch.randint(0, 3, shape) if i in op.integer else torch.randn(shape, dtype=torch.float64)
        for i, shape in enumerate(op.shapes(axis))
    ]
    for i, made in op.given.items():
        values[i] = made(axis)
    node, holders = node_of(op, axis, values, operand_axis)
    found = relation(node)
    links = [
        (holders.index(link.operand), link.dim, link.out, link.convert(operand_axis))
        for link in found.links
        if (holders.index(link.operand), link.dim) in op.framed
    ]
    said = {out for _, _, out, converted in links if converted is not None}
    assert set(op.follows) <= said
    result = first(node.meta["val"])
    for i, d, out, converted in links:
        if converted is None:
            continue
        assert converted.size == result.shape[out]
        changed = perturbed(op, axis, values, i, d, entries(operand_axis, frame))
        differs = (changed != result).movedim(out, 0).reshape(result.shape[out], -1).any(1)
        mine = torch.zeros_like(differs)
        mine[entries(converted, frame)] = True
        assert not bool((differs & ~mine).any()), "another frame changed"
    for out in said:
        check_restriction(op, axis, operand_axis, values, result, links, out)


def perturbed(op: Op, axis: A, values: list[Tensor], i: int, dim: int, rows: Tensor) -> Tensor:
    others = list(values)
    changed = values[i].clone().movedim(dim, 0)
    noise = 3 - changed[rows] * 2 if i in op.integer else torch.randn_like(changed[rows]) * 3
    changed[rows] = noise.clamp(0, 2) if i in op.integer else noise
    others[i] = changed.movedim(0, dim)
    return evaluate(op, others, axis)


def check_restriction(
    op: Op,
    axis: A,
    operand_axis: A,
    values: list[Tensor],
    result: Tensor,
    links: list[Any],
    out: int,
) -> None:
    """Run on the first and the last frames only."""
    frames = [0, axis.frames - 1]
    short = list(values)
    for i, d, to, converted in links:
        if to == out and converted is not None:
            short[i] = short[i].index_select(d, kept(operand_axis, frames))
    converted = next(c for _, _, to, c in links if to == out and c is not None)
    got = evaluate(op, short, axis.at(2))
    want = result.index_select(out, kept(converted, frames))
    torch.testing.assert_close(got, want)


@given(axis=layouts, sizes=st.lists(st.integers(1, 3), min_size=0, max_size=3))
def test_split_pieces(axis: A, sizes: list[int]) -> None:
    """A split of text, video, text; each piece is followed, or has no frames."""
    parts = [axis.before, axis.video, axis.after, *[0 for _ in sizes]]
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.randn(2, axis.size, 4)
    set_axes(x, (None, axis, None))
    split = graph.call_function(aten.split_with_sizes.default, (x, parts, 1))
    split.meta["val"] = aten.split_with_sizes.default(x.meta["val"], parts, 1)
    set_axes(split, (None, axis, None))
    for i, size in enumerate(parts):
        piece = graph.call_function(operator.getitem, (split, i))
        piece.meta["val"] = split.meta["val"][i]
        links = [link for link in relation(piece).links if link.dim == 1]
        if i == 1:
            assert links[0].convert(axis) == A(axis.frames, axis.outer, axis.inner)
        elif size:
            assert not [link for link in links if link.convert(axis) is not None]
        assert not relation(piece).mixed


def test_unknown_operators_are_barriers() -> None:
    op = Op(lambda a: [(2, a.size, 4)], TOKENS, lambda x, a: (aten.fft_fft.default, (x[0],)))
    node, _ = node_of(op, A(3), [torch.randn(2, 3, 4)])
    found = relation(node)
    assert found.barrier
    assert not found.links
    assert len(found.mixed) == 3


def test_registering_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="has a relation already"):
        relation_rule(aten.linear.default)(lambda _: Relation())


def test_the_table_is_covered() -> None:
    """Most of the table is tried above; what is not has no frames to follow or is an alias."""
    tried = set()
    for op in OPS.values():
        values: list[Any] = [torch.zeros(s) for s in op.shapes(A(3))]
        tried.add(op.call(values, A(3))[0])
    splits_and_makers = "getitem|split|chunk|unbind|new_|_like|full|zeros|ones|empty|scalar_tensor"
    makers = "arange|linspace|eye|tril_indices"
    missing = {
        str(target)
        for target in set(RULES) - tried
        if not re.search(f"{splits_and_makers}|{makers}", str(target))
        and not relation_of_other(target)
    }
    assert missing == {str(t) for t in RULES if RULES[t] is RULES[aten.take.default]}


def test_pairs_become_a_dimension() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.randn(2, 3, 4, dtype=torch.complex64)
    set_axes(x, (None, A(3), None))
    node = graph.call_function(aten.view_as_real.default, (x,))
    node.meta["val"] = aten.view_as_real.default(x.meta["val"])
    assert [(link.dim, link.out) for link in relation(node).links] == [(0, 0), (1, 1), (2, 2)]
    assert not relation(node).mixed


def test_a_mask_with_one_value_is_followed() -> None:
    """``x[mask] = value`` keeps every entry in its place; values one by one do not."""
    graph = fx.Graph()
    x, mask, one, many = (graph.placeholder(name) for name in "xmov")
    x.meta["val"], mask.meta["val"] = torch.zeros(2, 3, 4), torch.eye(2, 3, dtype=torch.bool)
    one.meta["val"], many.meta["val"] = torch.ones(()), torch.ones(2, 4)
    for holder in (x, mask, one, many):
        set_axes(holder, (None,) * holder.meta["val"].ndim)
    for values, barrier in ((one, False), (many, True)):
        node = graph.call_function(aten.index_put.default, (x, [mask], values))
        node.meta["val"] = aten.index_put.default(
            x.meta["val"], [mask.meta["val"]], values.meta["val"]
        )
        found = relation(node)
        assert found.barrier == barrier
        assert len(found.links) == (0 if barrier else 5)


@pytest.mark.parametrize("name", ["sort of tokens", "topk of tokens", "index_copy of tokens"])
def test_what_goes_by_number_reads_every_frame(name: str) -> None:
    op = OPS[name]
    shapes = op.shapes(A(4))
    values = [
        torch.zeros(s, dtype=torch.long if i in op.integer else torch.float32)
        for i, s in enumerate(shapes)
    ]
    node, holders = node_of(op, A(4), values)
    found = relation(node)
    assert (holders[0], 1) in found.addressed
    assert 1 in found.kept
    assert not found.barrier


def relation_of_other(target: Any) -> bool:
    """Whether a tried operator has the very same rule."""
    tried = {op.call([torch.zeros(s) for s in op.shapes(A(3))], A(3))[0] for op in OPS.values()}
    return any(RULES.get(t) is RULES[target] for t in tried)
