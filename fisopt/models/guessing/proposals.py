"""Arguments of a forward call, made from a model's signature and config."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fisopt.models.family import Config
from fisopt.models.guessing.readings import LAYOUTS, NUMBERS
from fisopt.spec import Grid

_LATENT: Grid = (5, 8, 16)
_TEXT, _AUDIO, _BATCH = 7, 11, 1
_LENGTHS = ("max_text_seq_length", "max_sequence_length")
_TIMES = ((_BATCH,), (_BATCH, _LATENT[0]), (_BATCH, 1, _LATENT[0]))
"""Shapes of timesteps: of a video, of each latent frame, and that with a text of rank four."""
_CHANNELS = ("in_channels", "in_visual_dim", "latent_channels")
_FEATURES: Mapping[str, tuple[str, ...]] = {
    "encoder_hidden_states": (
        "text_dim",
        "text_embed_dim",
        "caption_channels",
        "in_text_dim",
        "cross_attention_dim",
    ),
    "audio_encoder_hidden_states": ("caption_channels",),
    "audio_hidden_states": ("audio_in_channels", "in_audio_dim"),
    "pooled_projections": ("pooled_projection_dim", "in_text_dim2"),
    "control_hidden_states": ("vace_in_channels",),
}
"""Entries of a config that say how many features an argument has."""


@dataclass(frozen=True)
class _Form:
    """What names leave open: layout, channels, whose times they are, whether a mask is given."""

    config: Config
    layout: str
    channels: int
    times: tuple[int, ...]
    masked: bool

    @property
    def latent(self) -> Grid:
        """Size of the latents; a few frames, where the config does not say how many."""
        frames = self.config.get("video_length")
        return (frames, *_LATENT[1:]) if isinstance(frames, int) else _LATENT

    def features(self, name: str) -> int | None:
        """The number of features of an argument, None if the config has none."""
        found = (self.config.get(entry) for entry in _FEATURES.get(name, ()))
        return next((value for value in found if isinstance(value, int)), None)

    @property
    def text(self) -> int:
        """Tokens of text: as many as the config names, or a few."""
        found = (self.config.get(entry) for entry in _LENGTHS)
        return next((value for value in found if isinstance(value, int)), _TEXT)

    def video(self, channels: int) -> Tensor:
        """Latents in the form's layout."""
        frames, rows, columns = self.latent
        if self.layout == "BNC":
            return torch.randn(_BATCH, frames * rows * columns, channels)
        sizes = {"B": _BATCH, "C": channels, "F": frames, "H": rows, "W": columns}
        return torch.randn([sizes[axis] for axis in self.layout])

    def tokens(self) -> list[Tensor]:
        """Numbers of the tokens along each axis."""
        patch = self.config.get("patch_size", 1)
        cuts = (1, patch, patch) if isinstance(patch, int) else patch
        return [torch.arange(size // cut) for size, cut in zip(self.latent, cuts, strict=True)]


_MADE: Mapping[str, Callable[[_Form], Any]] = {
    "hidden_states": lambda form: form.video(form.channels),
    "control_hidden_states": lambda form: form.video(form.features("control_hidden_states") or 0),
    "timestep": lambda form: torch.full(form.times, 500.0),
    "r_timestep": lambda form: torch.full(form.times, 250.0),
    "encoder_attention_mask": lambda form: torch.ones(_BATCH, form.text) if form.masked else None,
    "pooled_projections": lambda form: _rows(form, "pooled_projections"),
    "encoder_hidden_states": lambda form: _rows(form, "encoder_hidden_states", form.text),
    "audio_encoder_hidden_states": lambda form: _rows(
        form, "audio_encoder_hidden_states", form.text
    ),
    "audio_hidden_states": lambda form: _rows(form, "audio_hidden_states", _AUDIO),
    "guidance": lambda form: torch.full((_BATCH,), 6000.0),
    "audio_num_frames": lambda form: _AUDIO,
    "num_frames": lambda form: _LATENT[0],
    "height": lambda form: _LATENT[1],
    "width": lambda form: _LATENT[2],
    "visual_rope_pos": lambda form: form.tokens(),
    "text_rope_pos": lambda form: torch.arange(form.text),
    "return_dict": lambda form: False,
}
_BY_CONFIG = {"guidance": "guidance_embeds", "control_hidden_states": "vace_in_channels"}
"""Arguments that a model needs where its config has an entry."""


def proposals(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield arguments that a model may take, the likeliest first; one batch, five latent frames."""
    config: Config = getattr(model, "config", {})
    parameters = inspect.signature(model.forward).parameters
    reference = next(model.parameters())
    numbers = all(name in parameters for name in NUMBERS)
    layouts = ("BNC", *LAYOUTS) if numbers else LAYOUTS
    given = next((config[name] for name in _CHANNELS if isinstance(config.get(name), int)), 4)
    for channels, layout, times, masked in itertools.product(
        (given, 2 * given + 1, given - 1), layouts, _TIMES, (True, False)
    ):
        form = _Form(config, layout, channels, times, masked)
        made = {name: _MADE[name](form) for name in parameters if _wanted(name, form)}
        yield {name: _as(value, reference) for name, value in made.items() if value is not None}


def _wanted(name: str, form: _Form) -> bool:
    """Whether an argument has to be given: it has no default, or the model does not run without."""
    if name not in _MADE:
        return False
    if name in _BY_CONFIG:
        return bool(form.config.get(_BY_CONFIG[name]))
    if name in NUMBERS:
        return form.layout == "BNC"
    return True


def _rows(form: _Form, name: str, *length: int) -> Tensor | None:
    """Rows of the features that the config names, None if it names none."""
    features = form.features(name)
    if features is None:
        return None
    ahead = (_BATCH, 1) if length and len(form.times) == 3 else (_BATCH,)
    return torch.randn(*ahead, *length, features)


def _as(value: Any, reference: Tensor) -> Any:
    """The value where the model is, and of its type."""
    if isinstance(value, list):
        return [_as(x, reference) for x in value]
    if not isinstance(value, Tensor):
        return value
    value = value.to(reference.device)
    return value.to(reference.dtype) if value.is_floating_point() else value
