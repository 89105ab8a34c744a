"""The parts of random blocks: norms, rotary positions, attention, feed-forwards."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.fuzz.form import Form

HEAD = 8
"""Features of one head."""
PAST = 5
"""Keys and values of earlier clips in a cache."""


class Written(nn.Module):
    """A norm in plain operators."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


def norm(kind: str, width: int) -> nn.Module:
    """A norm over features."""
    if kind == "rms":
        return nn.RMSNorm(width, eps=1e-5)
    if kind == "written":
        return Written(width)
    return nn.LayerNorm(width, elementwise_affine=kind == "layer")


def angles(size: tuple[int, int, int], like: Tensor) -> Tensor:
    """Angles of every token [F H W, HEAD / 2]: by frame, row and column."""
    speeds = [1.0, 0.3], [0.7], [0.4]
    tables = []
    for dim, (count, speed) in enumerate(zip(size, speeds, strict=True)):
        place = torch.arange(count, device=like.device, dtype=like.dtype)
        table = place[:, None] * torch.tensor(speed, device=like.device, dtype=like.dtype)
        shape = [1, 1, 1, -1]
        shape[dim] = count
        tables.append(table.view(shape).expand(*size, -1))
    return torch.cat(tables, dim=-1).flatten(0, 2)


def table(kind: str, size: tuple[int, int, int], like: Tensor) -> Any:
    """What a block is given to turn queries and keys: one tensor or a pair, [N, ...] each."""
    turned = angles(size, like)
    if kind == "complex":
        return torch.polar(torch.ones_like(turned), turned)
    if kind == "full":
        turned = turned.repeat_interleave(2, dim=-1)
    return turned.cos(), turned.sin()


def rotate(kind: str, x: Tensor, given: Any) -> Tensor:
    """Turn [..., h, N, D] by tables [N, ...]."""
    if kind == "complex":
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * given).flatten(-2)
    cos, sin = given
    if kind == "halves":
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    if kind == "pairs":
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    half = torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2)
    return x * cos + half * sin


def attend(kind: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of [B, h, N, D] in one of the ways in which models write it."""
    if (groups := q.shape[1] // k.shape[1]) > 1:
        if kind == "fused" and mask is None:
            return functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if kind == "fused":
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scale = 1 / math.sqrt(q.shape[-1])
    if kind == "bmm":
        rows = q.shape[:2]
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        scores = torch.bmm(q * scale, k.transpose(1, 2)).unflatten(0, rows)
        weights = added(scores, mask).flatten(0, 1).softmax(-1)
        return torch.bmm(weights, v).unflatten(0, rows)
    if kind == "einsum":
        scores = torch.einsum("bhnd,bhmd->bhnm", q, k) * scale
        return torch.einsum("bhnm,bhmd->bhnd", added(scores, mask).softmax(-1), v)
    scores = added(torch.matmul(q, k.transpose(-1, -2)) * scale, mask)
    if kind == "wide":
        return torch.matmul(scores.double().softmax(-1).to(v.dtype), v)
    return torch.matmul(functional.softmax(scores, dim=-1), v)


def added(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores under a mask of booleans or of numbers to add."""
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -torch.inf)
    return scores + mask


class Attention(nn.Module):
    """Attention of some tokens to others, without the projection of what it returns.

    Attributes:
        core: what runs on queries, keys and values [B, h, N, D]; an oracle puts its own here.
    """

    def __init__(self, form: Form, width: int, context: int | None = None) -> None:
        super().__init__()
        self.form, self.heads = form, form.heads
        self.kv_heads = form.heads // form.shared_heads
        inner, kv = form.heads * HEAD, self.kv_heads * HEAD
        self.joined = form.qkv == "joined" and context is None
        if self.joined:
            self.qkv = nn.Linear(width, 3 * inner)
        else:
            self.q = nn.Linear(width, inner)
            self.k, self.v = (nn.Linear(context or width, kv) for _ in range(2))
        self.norms = nn.ModuleList(norm("rms", HEAD) for _ in range(2)) if form.qk_norm else None

    def heads_of(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x, keys and values of the context, [B, N, h, D] each."""
        if self.joined:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, HEAD)).unbind(-3)
        else:
            q = self.q(x).unflatten(-1, (self.heads, HEAD))
            k, v = (f(context).unflatten(-1, (self.kv_heads, HEAD)) for f in (self.k, self.v))
        if self.norms is not None:
            q, k = self.norms[0](q), self.norms[1](k)
        return q, k, v

    def core(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """The attention itself."""
        return attend(self.form.attention, q, k, v, mask)


class FeedForward(nn.Module):
    """A feed-forward on tokens [B, N, W], with a convolution over the grid where there is one."""

    def __init__(self, form: Form, width: int) -> None:
        super().__init__()
        self.form = form
        inner = 2 * width
        self.up = nn.Linear(width, inner * (1 if form.mlp == "plain" else 2))
        self.down = nn.Linear(inner, width)
        if form.convolution == "space":
            self.conv: nn.Module = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        elif form.convolution == "time":
            self.conv = nn.Conv1d(inner, inner, 3, padding=1, groups=inner)

    def forward(self, x: Tensor, size: tuple[int, int, int] | None) -> Tensor:
        y = self.up(x)
        if self.form.mlp == "gated":
            y, gate = y.chunk(2, dim=-1)
            y = y * functional.silu(gate)
        elif self.form.mlp == "chunked":
            half = y.shape[-1] // 2
            y = functional.gelu(y[..., :half]) * y[..., half:]
        else:
            y = functional.gelu(y, approximate="tanh")
        if size is not None and self.form.convolution != "none":
            y = self.mixed(y, size)
        return self.down(y)

    def mixed(self, y: Tensor, size: tuple[int, int, int]) -> Tensor:
        """The convolution over each frame's grid, or over each place's frames."""
        batch, (f, h, w) = y.shape[0], size
        grid = y.unflatten(1, (f, h, w))
        if self.form.convolution == "space":
            frames = grid.flatten(0, 1).permute(0, 3, 1, 2)
            return self.conv(frames).permute(0, 2, 3, 1).reshape(batch, f * h * w, -1)
        places = grid.permute(0, 2, 3, 4, 1).flatten(0, 2)
        return self.conv(places).reshape(batch, h, w, -1, f).permute(0, 4, 1, 2, 3).flatten(1, 3)
