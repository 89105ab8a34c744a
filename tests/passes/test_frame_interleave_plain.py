"""FrameInterleave on a plain model without diffusers, against a plain loop over its layers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from itertools import combinations, product
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from fisopt import FrameInterleave, ModelSpec, PassManager, capture, program_cost
from tests import plain_dit
from tests.conftest import plain_captured
from tests.plain_dit import FORMS, Form, Layer, PlainDiT

TOLERANCE = 1e-5


class Loop:
    """The layers of a PlainDiT on anchor frames."""

    def __init__(self, form: Form, frames: int, inner: int, text: int, options: Any) -> None:
        self.form, self.frames, self.inner, self.options = form, frames, inner, options
        self.before = text if form.text == "front" else 0
        self.after = text if form.text == "behind" else 0

    def rows(self, kept: list[int], video_only: bool = False) -> Tensor:
        before, after = (0, 0) if video_only else (self.before, self.after)
        end = before + self.frames * self.inner
        video = [before + f * self.inner + i for f in kept for i in range(self.inner)]
        return torch.tensor([*range(before), *video, *range(end, end + after)])

    def fill(self, x: Tensor | None, y: Tensor, kept: list[int], dim: int) -> Tensor:
        """Row blocks of skipped frames between those of the anchors."""
        step = self.inner

        def frame(values: Tensor, position: int) -> Tensor:
            return values.narrow(dim, self.before + position * step, step)

        pieces = [y.narrow(dim, 0, self.before)]
        for f in range(self.frames):
            if f in kept:
                pieces.append(frame(y, kept.index(f)))
                continue
            left, right = max(k for k in kept if k < f), min(k for k in kept if k > f)
            w = (f - left) / (right - left)
            ends = [frame(y, kept.index(k)) for k in (left, right)]
            base = torch.zeros_like(ends[0]) if x is None else frame(x, f)
            if self.options["fill"] == "residual" and x is not None:
                ends = [e - frame(x, k) for e, k in zip(ends, (left, right), strict=True)]
            between = (1 - w) * ends[0] + w * ends[1]
            fills = {"carry": base, "state": between, "residual": base + between}
            pieces.append(fills[self.options["fill"]])
        pieces.append(y.narrow(dim, y.shape[dim] - self.after, self.after))
        return torch.cat(pieces, dim)

    def layer(self, layer: Layer, kept: list[int], args: tuple[Any, ...]) -> Tensor:
        x, text, time, angles = args
        if self.form.rotary != "given":
            angles = torch.arange(self.frames * self.inner)[:, None] * layer.frequencies
        forward = type(layer).forward
        given = replace(self.form, rotary="given")
        with mock.patch.object(layer, "form", given):
            if self.options["scope"] == "attention":
                with mock.patch.object(layer.attend, "mix", self.mix(layer, kept)):
                    return forward(layer, x, text, time, angles)
            rows = self.rows(kept)
            if self.options["kv"] == "all":
                y = forward(layer, x, text, time, angles)[:, rows]
            else:
                each = time[:, rows] if self.form.per_token else time
                own = angles[self.rows(kept, video_only=True)]
                y = forward(layer, x[:, rows], text, each, own)
        return self.fill(x, y, kept, 1)

    def mix(self, layer: Layer, kept: list[int]) -> Any:
        attend, rows = layer.attend.mix, self.rows(kept)

        def sparse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if self.options["kv"] == "anchors":
                k, v = k[:, :, rows], v[:, :, rows]
            return self.fill(None, attend(q[:, :, rows], k, v), kept, 2)

        return sparse


def looped(model: PlainDiT, inputs: dict[str, Any], frames: int, **options: Any) -> Tensor:
    inner = inputs["video"].shape[1] // frames
    loop = Loop(model.form, frames, inner, inputs["text"].shape[1], options)
    with ExitStack() as stack, torch.no_grad():
        for index, layer in enumerate(model.layers):
            kept = [f for f in range(frames) if f % 2 == index % 2 or f in (0, frames - 1)]

            def run(*args: Any, layer: Any = layer, kept: list[int] = kept) -> Tensor:
                return loop.layer(layer, kept, args)

            stack.enter_context(mock.patch.object(layer, "forward", run))
        output: Tensor = model(**inputs)["video"]
    return output


VALUES = (tuple(FORMS), ("block", "attention"), ("anchors", "all"), ("residual", "carry", "state"))


def rows() -> list[Any]:
    """One fill for every form, scope and kv, so that every two values meet; the others are slow."""
    found = []
    for places in product(*map(range, map(len, VALUES))):
        form, scope, kv, fill = places
        marks = (pytest.mark.slow,) if (form + scope + 2 * kv + fill) % 3 else ()
        values = [of[place] for of, place in zip(VALUES, places, strict=True)]
        found.append(pytest.param(*values, id="-".join(values), marks=marks))
    return found


def test_every_two_values_meet() -> None:
    run = [row.values for row in rows() if not row.marks]
    for one, other in combinations(range(4), 2):
        met = {(values[one], values[other]) for values in run}
        assert met == set(product(VALUES[one], VALUES[other]))


@pytest.mark.parametrize(("name", "scope", "kv", "fill"), rows())
def test_equals_plain_loop(name: str, scope: Any, kv: Any, fill: Any) -> None:
    form = FORMS[name]
    model, program = plain_captured(form)
    inputs = plain_dit.inputs(form, 7, 2, 3, batch=2)
    step = FrameInterleave(stride=2, blocks=":", fill=fill, kv=kv, scope=scope)
    sparse = PassManager([step]).run(program.at(inputs))
    want = looped(model, inputs, 7, fill=fill, kv=kv, scope=scope)
    difference = float((sparse(**inputs)["video"] - want).abs().max())
    assert difference <= TOLERANCE


class Padded(nn.Module):
    """Tokens are padded with zeros to a length, as Wan's own code pads them to ``seq_len``."""

    def __init__(self, plain: PlainDiT) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, video: Tensor, seq_len: int, time: Tensor) -> dict[str, Tensor]:
        tail = video.new_zeros(video.shape[0], seq_len - video.shape[1], 32)
        return self.plain(video, tail, time)


@pytest.mark.parametrize("tail", [1, 6, 13], ids="tail={}".format)
@pytest.mark.parametrize("scope", ["block", "attention"])
def test_tokens_that_are_padded(tail: int, scope: Any) -> None:
    """The padding is a tail behind the frames; it has no size that an input has."""
    form = FORMS["text_behind"]
    plain = plain_dit.build(form)
    inputs = plain_dit.inputs(form, 5, 2, 3, text=tail)
    inputs["text"].zero_()
    given = {"video": inputs["video"], "seq_len": 30 + tail, "time": inputs["time"]}
    spec = ModelSpec(blocks=("plain.layers.*",), grid=(5, 2, 3))
    program = capture(Padded(plain).eval().requires_grad_(False), given, spec=spec)
    assert not program.source.followed.why_fixed
    step = FrameInterleave(stride=2, blocks=":", scope=scope)
    sparse = PassManager([step]).run(program)
    want = looped(plain, inputs, 5, fill="residual", kv="anchors", scope=scope)
    torch.testing.assert_close(sparse(**given)["video"], want, rtol=0, atol=TOLERANCE)
    longer = plain_dit.inputs(form, 7, 2, 3, text=tail)
    given = {"video": longer["video"], "seq_len": 42 + tail, "time": longer["time"]}
    longer["text"].zero_()
    sparse = PassManager([step]).run(program.at(given))
    want = looped(plain, longer, 7, fill="residual", kv="anchors", scope=scope)
    torch.testing.assert_close(sparse(**given)["video"], want, rtol=0, atol=TOLERANCE)


class Apart(nn.Module):
    """A layer that modulates the tokens of the first frame apart, as HunyuanVideo may."""

    def __init__(self, layer: Layer, inner: int) -> None:
        super().__init__()
        self.layer, self.inner = layer, inner

    def forward(self, x: Tensor, text: Tensor, rows: tuple[Tensor, Tensor], angles: Tensor) -> Any:
        layer, n = self.layer, self.inner
        (a, b), (c, d) = (layer.modulation(row).chunk(2, dim=-1) for row in rows)
        y = layer.norm1(x)
        y = torch.cat([y[:, :n] * (1 + b) + a, y[:, n:] * (1 + d) + c], dim=1)
        z = layer.attend(y, y, angles, slice(0))
        x = torch.cat([x[:, :n] + z[:, :n], x[:, n:] + z[:, n:]], dim=1)
        x = x + layer.cross(x, text, None, slice(0))
        return x + layer.mlp(layer.norm2(x))


class FirstApart(nn.Module):
    def __init__(self, plain: PlainDiT, inner: int) -> None:
        super().__init__()
        self.plain, self.layers = plain, nn.ModuleList(Apart(x, inner) for x in plain.layers)

    def forward(self, video: Tensor, text: Tensor, first: Tensor, others: Tensor) -> Any:
        x, rows = (
            self.plain.embed(video),
            [self.plain.time(t[:, None, None]) for t in (first, others)],
        )
        angles = torch.arange(video.shape[1])[:, None] * self.plain.frequencies
        for layer in self.layers:
            x = layer(x, text, tuple(rows), angles)
        return {"video": self.plain.unembed(x)}


@pytest.mark.parametrize("kv", ["anchors", "all"])
@pytest.mark.parametrize("scope", ["block", "attention"])
def test_a_first_frame_that_is_modulated_apart(scope: Any, kv: Any) -> None:
    """The same as times of every token, of which those of the first frame are others."""
    form = FORMS["per_token"]
    plain = plain_dit.build(form)
    inputs = plain_dit.inputs(form, 7, 2, 3)
    inputs["time"] = torch.cat([torch.full((1, 6), 0.1), torch.full((1, 36), 0.7)], dim=1)
    model = FirstApart(plain, 6).eval().requires_grad_(False)
    given = {"video": inputs["video"], "text": inputs["text"]}
    given |= {"first": torch.tensor([0.1]), "others": torch.tensor([0.7])}
    program = capture(model, given, spec=ModelSpec(blocks=("layers.*",), grid=(7, 2, 3)))
    step = FrameInterleave(stride=2, blocks=":", scope=scope, kv=kv)
    done = PassManager([step]).run(program)
    want = looped(plain, inputs, 7, fill="residual", kv=kv, scope=scope)
    torch.testing.assert_close(done(**given)["video"], want, rtol=0, atol=TOLERANCE)
    dense, sparse = (program_cost(x).total for x in (program, done))
    assert sparse < 0.95 * dense
