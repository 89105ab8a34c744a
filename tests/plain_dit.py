"""A plain video transformer with no diffusers in it, in forms that differ where it matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Form:
    """What differs: how it attends, where positions and text come from, how it is modulated.

    Attributes:
        fused: one fused attention, or matmul, softmax and matmul.
        rotary: "given" as tables to every block, or made "inside" it from arange or cumsum.
        text: "cross" attention, or joined to the sequence in "front" or "behind".
        per_token: modulation has a row for every token.
        post_norm: each branch ends in a norm over the sum, so no clean residual is left.
    """

    fused: bool = True
    rotary: str = "given"
    text: str = "cross"
    per_token: bool = False
    post_norm: bool = False


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate halves of [B, h, N, D] by [N, D/2]."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.heads, self.fused = heads, fused

    def forward(self, x: Tensor, context: Tensor, angles: Tensor | None, text: slice) -> Tensor:
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.q, x), (self.k, context), (self.v, context))
        )
        if angles is not None:
            rows = angles.new_zeros(x.shape[1] - angles.shape[0], angles.shape[1])
            parts = [rows, angles] if text.start == 0 else [angles, rows]
            full = torch.cat(parts) if rows.shape[0] else angles
            q, k = rotate(q, full), rotate(k, full)
        return self.out(self.mix(q, k, v).transpose(1, 2).flatten(2))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.fused:
            return functional.scaled_dot_product_attention(q, k, v)
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, form: Form) -> None:
        super().__init__()
        self.form = form
        self.attend = Attention(width, heads, form.fused)
        self.cross = Attention(width, heads, form.fused) if form.text == "cross" else None
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.modulation = nn.Linear(width, 2 * width)
        self.frequencies = nn.Parameter(torch.rand(width // heads // 2))

    def forward(self, x: Tensor, text: Tensor, time: Tensor, angles: Tensor | None) -> Tensor:
        where = (
            slice(0, text.shape[1]) if self.form.text == "front" else slice(-text.shape[1], None)
        )
        video = x.shape[1] - (0 if self.cross is not None else text.shape[1])
        if self.form.rotary == "arange":
            angles = torch.arange(video)[:, None] * self.frequencies
        elif self.form.rotary == "cumsum":
            angles = (torch.ones(video).cumsum(0) - 1)[:, None] * self.frequencies
        shift, scale = self.modulation(time).chunk(2, dim=-1)
        if self.form.post_norm:
            x = self.norm1(x + self.attend(x, x, angles, where)) * (1 + scale) + shift
            return self.norm2(x + self.mlp(x))
        y = self.norm1(x) * (1 + scale) + shift
        x = x + self.attend(y, y, angles, where)
        if self.cross is not None:
            x = x + self.cross(x, text, None, where)
        return x + self.mlp(self.norm2(x))


class PlainDiT(nn.Module):
    """Tokens [B, N, C] in and out; text [B, T, W]; time [B] or, per token, [B, N]."""

    def __init__(self, form: Form, width: int = 32, heads: int = 2, layers: int = 3) -> None:
        super().__init__()
        self.form = form
        self.embed, self.unembed = nn.Linear(6, width), nn.Linear(width, 6)
        self.layers = nn.ModuleList(Layer(width, heads, form) for _ in range(layers))
        self.frequencies = nn.Parameter(torch.rand(width // heads // 2))
        self.time = nn.Linear(1, width)

    def forward(self, video: Tensor, text: Tensor, time: Tensor) -> dict[str, Tensor]:
        x, length = self.embed(video), text.shape[1]
        time = self.time(time[..., None] if time.ndim == 2 else time[:, None, None])
        if self.form.text != "cross":
            parts = [text, x] if self.form.text == "front" else [x, text]
            x = torch.cat(parts, dim=1)
            if self.form.per_token:
                rows = time.new_zeros(time.shape[0], length, time.shape[2])
                parts = [rows, time] if self.form.text == "front" else [time, rows]
                time = torch.cat(parts, dim=1)
        angles = None
        if self.form.rotary == "given":
            angles = torch.arange(video.shape[1])[:, None] * self.frequencies
        for layer in self.layers:
            x = layer(x, text, time, angles)
        if self.form.text != "cross":
            x = x[:, length:] if self.form.text == "front" else x[:, :-length]
        return {"video": self.unembed(x)}


FORMS = {
    "fused": Form(),
    "written_out": Form(fused=False),
    "arange_inside": Form(rotary="arange"),
    "cumsum_inside": Form(rotary="cumsum", fused=False),
    "text_in_front": Form(text="front"),
    "text_behind": Form(text="behind", fused=False),
    "text_in_front_per_token": Form(text="front", per_token=True, rotary="arange"),
    "per_token": Form(per_token=True),
    "post_norm": Form(post_norm=True, text="behind"),
}


def build(form: Form) -> PlainDiT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PlainDiT(form).eval().requires_grad_(False)


def inputs(
    form: Form, frames: int, height: int, width: int, batch: int = 1, text: int = 5
) -> dict[str, Any]:
    tokens = frames * height * width
    generator = torch.Generator().manual_seed(0)
    rows = (batch, tokens) if form.per_token else (batch,)
    return {
        "video": torch.randn(batch, tokens, 6, generator=generator),
        "text": torch.randn(batch, text, 32, generator=generator),
        "time": torch.rand(rows, generator=generator),
    }
