"""A random block: attention, text, feed-forward, each in the way that its form says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.fuzz.form import Form
from tests.fuzz.parts import HEAD, PAST, Attention, FeedForward, norm, rotate, table

Size = tuple[int, int, int]


class Block(nn.Module):
    """One video block.

    Arguments of `forward`, each only where the form has it: ``x`` the video (and the joined
    text), ``text``, ``emb`` the time, ``rope`` tables, ``mask``, ``size`` frames, rows and
    columns, ``length`` of the joined text, ``skip`` what an earlier block took, ``hint`` a second stream,
    ``cache`` earlier keys and values.
    """

    def __init__(self, form: Form, kind: str, *, skip: bool = False) -> None:
        super().__init__()
        width = form.heads * HEAD
        self.form, self.kind = form, kind
        self.attention, self.out = Attention(form, width), nn.Linear(width, width)
        self.norms = nn.ModuleList(norm(form.norm, width) for _ in range(5))
        self.mlp = FeedForward(form, width) if form.mlp != "none" else None
        parts = 6 if form.gates else 4
        if form.modulation == "table":
            self.table = nn.Parameter(torch.randn(1, parts, width) / 4)
        elif form.modulation != "none":
            self.modulate = nn.Linear(width, parts * width)
        if form.text in ("cross", "tuned"):
            self.cross, self.cross_out = Attention(form, width, width), nn.Linear(width, width)
        if form.text == "tuned":
            self.tune, self.tune_out = Attention(form, width, width), nn.Linear(width, width)
        if form.text == "streams":
            self.text_attention, self.text_out = Attention(form, width), nn.Linear(width, width)
            self.text_norms = nn.ModuleList(norm(form.norm, width) for _ in range(4))
            self.text_mlp = FeedForward(form, width) if form.mlp != "none" else None
        if form.hint != "none":
            self.hints = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.merge = nn.Linear(2 * width, width) if skip else None
        self.kept: Any = None

    def forward(
        self,
        x: Tensor,
        text: Tensor | None = None,
        emb: Tensor | None = None,
        rope: Any = None,
        mask: Tensor | None = None,
        size: Size | None = None,
        length: int = 0,
        skip: Tensor | None = None,
        hint: Tensor | None = None,
        cache: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        h, size = self.enter(x, size)
        if hint is not None:
            h = h + self.hints[0](hint)
        if self.merge is not None and skip is not None:
            h = self.merge(torch.cat([h, self.enter(skip, size)[0]], dim=-1))
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(emb, h, length)
        if self.form.positions == "inside" and self.form.rotary != "none":
            assert size is not None
            rope = self.tables(size, h)
        y = self.before(0, h, shift, scale)
        told = text if self.form.text == "streams" else None
        z, told = self.mixed(y, told, rope, mask, size, length, cache)
        h = self.add(h, self.out(z), gate, 0)
        if self.form.text == "tuned":
            text = text + self.tune_out(self.plain(self.tune, text, h, None))
        if self.form.text in ("cross", "tuned"):
            h = self.crossed(h, text, mask)
        if self.mlp is not None:
            h = self.add(h, self.fed(self.before(1, h, shift2, scale2), size, length), gate2, 1)
        if self.form.text == "streams":
            text = self.told(text, told)
        if hint is not None:
            hint = self.hints[1](hint) if self.form.hint == "projected" else hint + self.hints[1](h)
        return self.leave(self.written(h, length), x, text, hint)

    def crossed(self, h: Tensor, text: Any, mask: Any) -> Tensor:
        """The stream and what attention to the text adds to it."""
        return h + self.cross_out(self.plain(self.cross, self.norms[4](h), text, mask))

    # sequences

    def enter(self, x: Tensor, size: Size | None) -> tuple[Tensor, Size | None]:
        """The tokens [B, S, W] of what the block is given."""
        if self.form.hidden == "frames":
            return x.flatten(1, 2), size
        if self.form.hidden == "grid":
            return x.flatten(1, 3), (x.shape[1], x.shape[2], x.shape[3])
        if self.form.hidden == "channels":
            return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3], x.shape[4])
        return x, size

    def leave(self, h: Tensor, x: Tensor, text: Tensor | None, hint: Tensor | None) -> Any:
        """The results, in the form in which the block was given them."""
        if self.form.hidden == "channels":
            h = h.transpose(1, 2)
        result = h if h.shape == x.shape else h.reshape(x.shape)
        values = {"x": result}
        if self.form.text in ("streams", "tuned"):
            values["text"] = text
        if hint is not None:
            values["hint"] = hint
        if self.form.returns == "dict":
            return values
        if self.form.returns == "list":
            return list(values.values())
        if self.form.returns == "tuple" or len(values) > 1:
            return tuple(values.values())
        return result

    # modulation and norms

    def modulation(self, emb: Tensor | None, h: Tensor, length: int) -> list[Tensor | None]:
        """Shift, scale and gate of both branches, [B, 1 or S, W] each."""
        form = self.form
        if form.modulation == "none" or emb is None:
            return [None] * 6
        if form.modulation == "table":
            parts = list((self.table + emb).split(1, dim=1))
        else:
            made = self.modulate(emb)
            if form.modulation == "row":
                made = made[:, None]
            elif form.modulation == "frame":
                made = made.repeat_interleave((h.shape[1] - length) // emb.shape[1], dim=1)
                if length:
                    rows = made.new_zeros(made.shape[0], length, made.shape[2])
                    made = torch.cat([rows, made] if form.text == "front" else [made, rows], 1)
            parts = list(made.chunk(6 if form.gates else 4, dim=-1))
        if form.gates:
            return list(parts)
        return [*parts[:2], None, *parts[2:], None]

    def before(self, branch: int, h: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
        """What a branch reads: normed and modulated."""
        y = self.norms[branch](h) if self.form.place != "post" else h
        if shift is None or scale is None:
            return y
        if self.form.writes == "inside" and y is not h:
            return y.mul_(1 + scale).add_(shift)
        return y * (1 + scale) + shift

    def add(self, h: Tensor, y: Tensor, gate: Tensor | None, branch: int) -> Tensor:
        """The stream and what a branch adds to it."""
        if self.form.place == "both":
            y = self.norms[2 + branch](y)
        if gate is not None:
            y = y.mul_(gate) if self.form.writes == "inside" else y * gate.tanh()
        if self.form.writes == "stream":
            return h.add_(y)
        h = h + y
        return self.norms[branch](h) if self.form.place == "post" else h

    def written(self, h: Tensor, length: int) -> Tensor:
        """The result through a buffer, where the form says so."""
        if self.form.writes != "buffer":
            return h
        result = torch.empty_like(h)
        if length:
            cut = -length if self.form.text == "behind" else length
            result[:, cut:] = h[:, cut:]
            result[:, :cut] = h[:, :cut]
        else:
            result[..., ::2] = h[..., ::2]
            result[..., 1::2] = h[..., 1::2]
        return result

    # attention

    def tables(self, size: Size, like: Tensor) -> Any:
        """Rotary tables that the block makes itself."""
        if self.form.folded:
            size = (1, *size[1:]) if self.kind == "space" else (size[0], 1, 1)
        if not self.form.remembers:
            return table(self.form.rotary, size, like)
        if self.kept is None or self.kept[0] != size:
            self.kept = (size, table(self.form.rotary, size, like))
        return self.kept[1]

    def plain(self, attention: Attention, x: Tensor, context: Tensor, mask: Any) -> Tensor:
        """Attention to something else, as it stands."""
        q, k, v = (t.transpose(1, 2) for t in attention.heads_of(x, context))
        if mask is not None and self.form.mask == "inside":
            mask = mask[:, None, None]
        return attention.core(q, k, v, mask).transpose(1, 2).flatten(2)

    def mixed(
        self,
        y: Tensor,
        text: Tensor | None,
        rope: Any,
        mask: Any,
        size: Any,
        length: int,
        cache: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Self-attention of the tokens; of the text too where it has a stream."""
        q, k, v = (t.transpose(1, 2) for t in self.attention.heads_of(y, y))
        if text is not None:
            if rope is not None:
                q, k = (rotate(self.form.rotary, t, rope) for t in (q, k))
            read = self.text_norms[0](text)
            told = (t.transpose(1, 2) for t in self.text_attention.heads_of(read, read))
            q, k, v = (torch.cat(p, dim=2) for p in zip((q, k, v), told, strict=True))
            length = text.shape[1]
        elif rope is not None:
            q, k = (self.turned(t, rope, length) for t in (q, k))
        if cache is not None:
            k, v = (self.kept_behind(t, held) for t, held in zip((k, v), cache, strict=True))
        if self.form.folded or self.kind == "full":
            if not self.form.joined:
                mask = None
            elif mask is not None and self.form.mask == "inside":
                ones = mask.new_ones(mask.shape[0], q.shape[2] - length)
                front = self.form.text == "front"
                mask = torch.cat([mask, ones] if front else [ones, mask], dim=1)[:, None, None]
            z = self.attention.core(q, k, v, mask)
        else:
            z = self.refolded(q, k, v, size)
        z = z.transpose(1, 2).flatten(2)
        if text is None:
            return z, None
        return z[:, :-length], z[:, -length:]

    def kept_behind(self, t: Tensor, held: Tensor) -> Tensor:
        """Keys or values written behind those of earlier clips in [B, ROOM, h, D], and all."""
        end = PAST + t.shape[2]
        held[:, PAST:end] = t.transpose(1, 2)
        return held[:, :end].transpose(1, 2)

    def refolded(self, q: Tensor, k: Tensor, v: Tensor, size: Size) -> Tensor:
        """Attention over one frame, one place or one row at a time."""
        if self.form.loops and self.kind == "space":
            frames = (t.unflatten(2, (size[0], -1)).unbind(2) for t in (q, k, v))
            each = [self.attention.core(*one, None) for one in zip(*frames, strict=True)]
            return torch.cat(each, dim=2)
        rows = (self.fold(t, size) for t in (q, k, v))
        return self.unfold(self.attention.core(*rows, None), q.shape[0], size)

    def turned(self, t: Tensor, rope: Any, length: int) -> Tensor:
        """Queries or keys [B, h, S, D] turned by their positions; joined text is not."""
        if not length:
            return rotate(self.form.rotary, t, rope)
        if self.form.text == "front":
            video = rotate(self.form.rotary, t[:, :, length:], rope)
            return torch.cat([t[:, :, :length], video], dim=2)
        video = rotate(self.form.rotary, t[:, :, :-length], rope)
        return torch.cat([video, t[:, :, -length:]], dim=2)

    def fold(self, t: Tensor, size: Size) -> Tensor:
        """[B, h, N, D] with frames, places or rows in the batch."""
        f, h, w = size
        if self.kind == "time":
            return t.unflatten(2, (f, h * w)).permute(0, 3, 1, 2, 4).flatten(0, 1)
        rows = (f, h * w) if self.kind == "space" else (f * h, w)
        return t.unflatten(2, rows).permute(0, 2, 1, 3, 4).flatten(0, 1)

    def unfold(self, t: Tensor, batch: int, size: Size) -> Tensor:
        """The inverse of `fold`."""
        t = t.unflatten(0, (batch, -1))
        if self.kind == "time":
            return t.permute(0, 2, 3, 1, 4).flatten(2, 3)
        return t.permute(0, 2, 1, 3, 4).flatten(2, 3)

    # feed-forward

    def fed(self, y: Tensor, size: Size | None, length: int) -> Tensor:
        """The feed-forward; its convolution leaves joined text out."""
        assert self.mlp is not None
        if not length or self.form.convolution == "none":
            return self.mlp(y, size)
        if self.form.text == "front":
            parts = [self.mlp(y[:, :length], None), self.mlp(y[:, length:], size)]
        else:
            parts = [self.mlp(y[:, :-length], size), self.mlp(y[:, -length:], None)]
        return torch.cat(parts, dim=1)

    def told(self, text: Any, update: Any) -> Tensor:
        """The text's stream after the block."""
        text = text + self.text_out(update)
        if self.text_mlp is not None:
            text = text + self.text_mlp(self.text_norms[1](text), None)
        return text
