"""MiniMax-H3: text, audio and video packed into one sequence, whose order its indices say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from diffusers.models.transformers.transformer_minimax_h3 import (
    MINIMAX_H3_MODALITY_NUM,
    MiniMaxH3Transformer3DModel,
    MiniMaxH3TransformerOutput,
)
from diffusers.utils.peft_utils import apply_lora_scale
from torch import Tensor, nn

from fisopt.errors import InputError
from fisopt.models.family import Call, Config, Family, Published, patch_size, with_children
from fisopt.spec import Grid

_CHUNK = (1, 4, 4, 4, 4)
"""Frames of the video in each latent frame, over and over."""
_BY_ROW = {
    "hidden_states": 1,
    "video_indices": 0,
    "position_ids": 0,
    "token_tags": 0,
    "timestep_indices": 0,
}
"""The dimension in which an input has an entry for every row of the video."""
_TAGS = {"text": 1, "audio": 2, "video": 0}


class VideoLast(MiniMaxH3Transformer3DModel):
    """The same model with the rows of the sequence in one order: text, audio, video.

    The original puts them where the indices say, which are data, so that nothing tells where the
    video is. Attention does not ask for the order of its rows; equal up to the order of sums.
    """

    @apply_lora_scale("attention_kwargs")  # type: ignore[untyped-decorator]
    def forward(
        self,
        hidden_states: Tensor,
        audio_hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        timestep_indices: Tensor,
        token_tags: Tensor,
        position_ids: Tensor,
        video_indices: Tensor,
        audio_indices: Tensor,
        text_indices: Tensor,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Return the velocities of video and audio; the arguments are the original's."""
        order = torch.cat([text_indices, audio_indices, video_indices])
        times, tags, places = (x[order] for x in (timestep_indices, token_tags, position_ids))
        rotary = self.rope(places)

        def projected(layer: Any, rows: Tensor) -> Tensor:
            result: Tensor = layer(rows.to(layer.weight.dtype))
            return result

        text = self.token_refiner(projected(self.context_embedder, encoder_hidden_states))
        audio = projected(self.audio_proj_in, audio_hidden_states).to(text.dtype)
        video = projected(self.proj_in, hidden_states).to(text.dtype)
        rows = torch.cat([text, audio, video], dim=1)
        time: Any = self.time_embedder
        temb = time(self.time_proj(timestep).to(time.linear_1.weight.dtype))
        table = times * MINIMAX_H3_MODALITY_NUM + tags
        for block in self.transformer_blocks:
            rows = block(rows, temb, table, rotary)
        rows = self.norm_out(rows, temb, times).to(self.proj_out.weight.dtype)
        _, audio, video = rows.split([x.shape[1] for x in (text, audio, video)], dim=1)
        video, audio = self.proj_out(video), self.audio_proj_out(audio)
        if not return_dict:
            return (video, audio)
        return MiniMaxH3TransformerOutput(sample=video, audio_sample=audio)


def _prepare(model: MiniMaxH3Transformer3DModel) -> nn.Module:
    other = with_children(model)
    other.__class__ = VideoLast
    return other


def _tokens(inputs: Mapping[str, Any]) -> Grid:
    """Return (F, H, W) in tokens, from the places of the video's rows.

    A meta tensor has no values: `_inputs` leaves the rows and columns on it.
    """
    places, rows = inputs.get("position_ids"), inputs.get("video_indices")
    if not isinstance(places, Tensor) or not isinstance(rows, Tensor):
        raise InputError("position_ids, video_indices: wanted the places of the rows as tensors")
    plane = getattr(places, "plane", None)
    if plane is None:
        plane = tuple(len(set(places[rows, axis].tolist())) for axis in (1, 2))
    if len(rows) % prod(plane):
        raise InputError(f"video_indices: got {len(rows)} rows, wanted whole frames of {plane}")
    return (len(rows) // prod(plane), *plane)


def _resized(inputs: Mapping[str, Any], frames: int) -> dict[str, Any]:
    """Return inputs of the shapes of another number of frames; the plane stays."""
    before, *plane = _tokens(inputs)
    more, result = (frames - before) * prod(plane), dict(inputs)
    for name, dim in _BY_ROW.items():
        sizes = list(inputs[name].shape)
        sizes[dim] += more
        result[name] = inputs[name].new_zeros(sizes)
    result["position_ids"].plane = tuple(plane)
    return result


def _places(call: Call, plane: tuple[int, int], text: int, audio: int) -> Tensor:
    """Return time, row and column of every row: [text + 2 * audio + N, 3]."""
    height, width = plane
    size = (height * width) ** 0.5
    spans = torch.tensor([5 / 3 * _CHUNK[i % 5] for i in range(call.latent[0])])
    starts = text + torch.cat([torch.zeros(1), spans[:-1].cumsum(0)])

    def axis(cells: int) -> Tensor:
        result: Tensor = 32 * ((1 - cells / size) / 2 + torch.arange(cells) / size)
        return result

    columns = axis(width)
    video = torch.cartesian_prod(starts, axis(height), columns)
    words = torch.zeros(text, 3)
    words[:, 0] = torch.arange(text)
    sound = torch.zeros(2, audio, 3)
    sound[..., 0] = text + torch.arange(audio)
    sound[..., 2] = columns[[0, -1], None]
    rows = torch.cat([words, sound.flatten(0, 1), video])
    places = rows.to(call.device, torch.float64)
    places.plane = plane  # type: ignore[attr-defined]
    return places


def _inputs(config: Config, call: Call) -> dict[str, Any]:
    _, rows, columns = patch_size(config)
    frames, height, width = call.latent
    plane = (height // rows, width // columns)
    text = call.length("text", 256)
    audio = call.length("audio", round(_pixel_frames(frames) * 40 / 24))
    lengths = {"text": text, "audio": 2 * audio, "video": frames * prod(plane)}
    tags = torch.cat([torch.full((n,), _TAGS[kind]) for kind, n in lengths.items()])
    rows_of = torch.arange(len(tags), device=call.device)
    indices = torch.split_with_sizes(rows_of, tuple(lengths.values()))
    features = (config["text_dim"], config["audio_in_channels"])
    return {
        "hidden_states": call.normal(
            call.batch, lengths["video"], config["in_channels"] * prod(patch_size(config))
        ),
        "audio_hidden_states": call.normal(call.batch, 2 * audio, features[1]),
        "encoder_hidden_states": call.normal(call.batch, text, features[0]),
        "timestep": torch.tensor([0.3, 0.7], device=call.device),
        "timestep_indices": (tags != _TAGS["audio"]).long().to(call.device),
        "token_tags": tags.to(call.device),
        "position_ids": _places(call, plane, text, audio),
        **{f"{kind}_indices": x for kind, x in zip(lengths, indices, strict=True)},
    }


def _pixel_frames(latent: int) -> int:
    return latent // 5 * sum(_CHUNK) + sum(_CHUNK[: latent % 5])


@dataclass(frozen=True)
class ChunkedFamily(Family):
    """A family whose latent frames hold one frame and then four frames, in chunks of seventeen."""

    def latent_size(self, config: Config, *, num_frames: int, height: int, width: int) -> Grid:
        """See `Family.latent_size`."""
        latent = next(n for n in range(1, num_frames + 2) if _pixel_frames(n) >= num_frames)
        if _pixel_frames(latent) != num_frames:
            near = _pixel_frames(latent - 1), _pixel_frames(latent)
            raise InputError(
                f"{self.name}: num_frames: got {num_frames}, wanted frames of whole latent frames: "
                f"try {' or '.join(str(n) for n in near if n)}"
            )
        _, rows, columns = super().latent_size(config, num_frames=1, height=height, width=width)
        return (latent, rows, columns)

    def pixel_size(self, config: Config, grid: Grid) -> tuple[int, int, int]:
        """See `Family.pixel_size`."""
        _, height, width = super().pixel_size(config, grid)
        return (_pixel_frames(grid[0]), height, width)


FAMILY = ChunkedFamily(
    name="minimax_h3",
    title="MiniMax-H3",
    transformer=MiniMaxH3Transformer3DModel,
    blocks=("transformer_blocks.*",),
    patch=patch_size,
    compression=lambda config: (4, 16, 16),
    inputs=_inputs,
    tokens=_tokens,
    resized=_resized,
    prepare=_prepare,
    published=(Published("minimax-h3", "MiniMax-H3", {}, 704, 1280, 124),),
    tiny={
        "minimax_h3": {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "hidden_size": 24,
            "num_layers": 3,
            "num_refiner_layers": 1,
            "ffn_dim": 32,
            "in_channels": 4,
            "audio_in_channels": 6,
            "text_dim": 8,
            "freq_dim": 8,
            "time_embed_hidden_dim": 24,
            "time_embed_dim": 16,
            "rope_freq_dim": 2,
        }
    },
)
