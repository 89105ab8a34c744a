"""What a random model is made of: one frozen dataclass, drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace
from typing import Any

CHOICES: dict[str, dict[Any, int]] = {
    "layers": {2: 6, 3: 3, 4: 1},
    "heads": {2: 4, 1: 1, 4: 1},
    "shared_heads": {1: 6, 2: 1},
    "video": {"latents": 4, "frames": 1, "tokens": 2},
    "patch": {1: 2, 2: 1},
    "time_patch": {"one": 6, "two": 1, "causal": 1},
    "hidden": {"tokens": 4, "frames": 1, "grid": 1, "channels": 1, "folded": 2},
    "mix": {("full",): 4, ("space", "time"): 2, ("full", "space"): 1, ("rows", "time"): 1},
    "text": {"none": 2, "cross": 3, "front": 2, "behind": 2, "streams": 3, "tuned": 1},
    "attention": {"fused": 4, "written": 1, "bmm": 1, "einsum": 1, "wide": 1},
    "qkv": {"separate": 2, "joined": 1},
    "qk_norm": {False: 1, True: 1},
    "norm": {"layer": 2, "plain": 2, "rms": 1, "written": 1},
    "place": {"pre": 6, "post": 1, "both": 1},
    "rotary": {"none": 1, "halves": 2, "pairs": 1, "complex": 1, "full": 1},
    "positions": {"given": 3, "inside": 1, "input": 1},
    "learned": {False: 3, True: 1},
    "modulation": {"none": 1, "row": 3, "table": 1, "frame": 1, "token": 2, "all": 1},
    "gates": {False: 1, True: 1},
    "mlp": {"plain": 2, "gated": 1, "chunked": 1, "none": 1},
    "convolution": {"none": 5, "space": 1, "time": 1},
    "mask": {"none": 3, "keys": 1, "pairs": 1, "bias": 1, "inside": 1},
    "loops": {False: 20, True: 1},
    "skips": {False: 6, True: 1},
    "hint": {"none": 8, "projected": 1, "added": 1},
    "cache": {False: 8, True: 1},
    "returns": {"value": 3, "tuple": 1, "dict": 1, "list": 1},
    "passing": {"names": 1, "order": 1},
    "writes": {"none": 5, "inside": 1, "stream": 1, "buffer": 1},
    "numbers": {"shape": 6, "tensor": 1, "product": 1, "given": 1},
    "container": {"list": 3, "nested": 1, "dict": 1},
    "shared": {"no": 8, "block": 1, "norm": 1},
    "remembers": {False: 6, True: 1},
    "output": {"value": 1, "tuple": 1, "dict": 1},
}
"""The choices of every field and how often each is drawn; the first is the plainest."""


@dataclass(frozen=True, repr=False)
class Form:
    """One random video transformer; every field is something in which published models differ.

    Attributes:
        layers: how many blocks.
        heads: heads of queries.
        shared_heads: how many heads of queries share one of keys and values.
        video: how the video arrives: latents [B, C, F, H, W], frames [B, F, C, H, W], or tokens
            [B, N, C] beside the numbers of frames, rows and columns.
        patch: latent cells a token along rows and columns.
        time_patch: latent frames a token: one, two, or two with the first frame alone.
        hidden: how blocks hold it: tokens [B, N, W], frames [B, F, P, W], grid [B, F, H, W, C],
            channels [B, C, F, H, W], or folded: [B F, P, W] and [B P, F, W] by turns.
        mix: what the blocks attend over, in turn: all tokens, one frame, one place, one row.
        text: none, attended to (cross), joined in front of or behind the tokens, streams of
            their own with joint attention, or tuned: it attends to the video, then it is attended to.
        attention: how attention is written.
        qkv: one linear map each for queries, keys and values, or one for all.
        qk_norm: whether queries and keys are normed.
        norm: which norm.
        place: where it is: before a branch, behind the sum, or on both sides of a branch.
        rotary: how positions turn queries and keys.
        positions: whether rotary tables are given to the blocks, made in them, or an input.
        learned: whether learned positions are added to the tokens.
        modulation: how the time scales and shifts: not, by a row a clip, by a row and a table
            of the block, by a row a frame, by a row a token, or by a row a token of video and text.
        gates: whether it gates the branches too.
        mlp: the feed-forward.
        convolution: a depthwise convolution in it, over rows and columns or over frames.
        mask: of the text's keys: none, a row, a table of all pairs, numbers to add, or a row that
            the blocks make longer.
        loops: whether attention over frames is a loop.
        skips: whether later blocks read what earlier ones took, concatenated.
        hint: a second stream over the video's tokens: none, one that blocks return projected, or
            one that they add to.
        cache: whether blocks write keys and values behind those of earlier clips in an input.
        returns: how blocks return their results.
        passing: how blocks are given their arguments.
        writes: what is written in place: nothing, values of the block's own, the stream
            that the block was given, or a buffer that it returns.
        numbers: how sizes are read from shapes; the number of tokens may be an input.
        container: what holds the blocks.
        shared: whether the first two blocks are one module, or have a norm in common.
        remembers: whether blocks keep their tables on themselves.
        output: how the model returns its result.
    """

    layers: int
    heads: int
    shared_heads: int
    video: str
    patch: int
    time_patch: str
    hidden: str
    mix: tuple[str, ...]
    text: str
    attention: str
    qkv: str
    qk_norm: bool
    norm: str
    place: str
    rotary: str
    positions: str
    learned: bool
    modulation: str
    gates: bool
    mlp: str
    convolution: str
    mask: str
    loops: bool
    skips: bool
    hint: str
    cache: bool
    returns: str
    passing: str
    writes: str
    numbers: str
    container: str
    shared: str
    remembers: bool
    output: str

    @property
    def joined(self) -> bool:
        """Whether attention runs over text and video together."""
        return self.text in ("front", "behind", "streams")

    @property
    def folded(self) -> bool:
        """Whether frames or places are rows of the batch."""
        return self.hidden == "folded"

    def kind(self, block: int) -> str:
        """What a block attends over."""
        return self.mix[block % len(self.mix)]

    def __repr__(self) -> str:
        """The choices that are not the plainest."""
        plain = plainest()
        said = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if getattr(self, f.name) != getattr(plain, f.name)
        ]
        return f"form({', '.join(said)})"


def plainest() -> Form:
    """The form of which every choice is the first."""
    return Form(**{name: next(iter(options)) for name, options in CHOICES.items()})


def form(**chosen: Any) -> Form:
    """A form of which all is plain but what is said."""
    return possible(replace(plainest(), **chosen))


def draw(source: random.Random) -> Form:
    """A random form."""
    return possible(
        Form(
            **{
                name: source.choices(list(options), list(options.values()))[0]
                for name, options in CHOICES.items()
            }
        )
    )


def possible(form: Form) -> Form:
    """The nearest form that makes sense: what contradicts another choice becomes plain."""
    plain: dict[str, Any] = {}

    def unless(allowed: bool, *names: str) -> None:
        if not allowed:
            plain.update({name: next(iter(CHOICES[name])) for name in names})

    unless(form.heads % form.shared_heads == 0, "shared_heads")
    unless(form.qkv == "separate" or form.shared_heads == 1, "shared_heads")
    unless(form.text != "none", "mask")
    unless(form.video != "tokens", "patch", "time_patch", "numbers")
    unless(form.modulation != "none", "gates")
    unless(form.rotary != "none", "positions", "remembers")
    unless(form.positions == "inside", "remembers")
    unless(form.positions != "input" or not form.folded, "positions")
    unless(form.modulation != "all" or form.text in ("front", "behind"), "modulation")
    unless(form.hidden == "tokens" and form.text in ("none", "cross"), "hint", "cache")
    unless(form.mix == ("full",) or not form.cache, "cache")
    unless("space" in form.mix and not form.folded, "loops")
    unless(form.mlp != "none", "convolution")
    unless(form.place == "pre" or form.writes != "stream", "writes")
    unless(form.hidden == "tokens" or form.text not in ("front", "behind"), "hidden")
    unless(form.hidden in ("tokens", "folded") or form.writes != "stream", "writes")
    if form.folded:
        unless(form.text in ("none", "cross"), "text", "mask")
        unless(form.modulation not in ("frame", "token", "all"), "modulation", "gates")
        plain |= {"mix": ("space", "time"), "convolution": "none", "skips": False}
    elif form.joined or form.text == "tuned":
        plain["mix"] = ("full",)
    alike = not form.folded and len(plain.get("mix", form.mix)) == 1 and not form.skips
    unless(alike or form.shared == "norm", "shared")
    changed = replace(form, **plain)
    return form if changed == form else possible(changed)
