"""What an adapter says about one family of video transformers: names and shapes, nothing else."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fisopt.checked import count
from fisopt.errors import InputError, shown
from fisopt.spec import Grid, ModelSpec

Config = Mapping[str, Any]
AXES = ("frames", "height", "width")


@dataclass(frozen=True)
class Published:
    """A public checkpoint: its transformer and its authors' video size.

    Attributes:
        name: How users name it, in lower case (``"wan2.2-a14b"``).
        title: Its authors' name for it.
        config: Entries that differ from the defaults of the transformer class.
        height: Rows of the video, in pixels.
        width: Columns of the video, in pixels.
        num_frames: Frames of the video.
    """

    name: str
    title: str
    config: Config
    height: int
    width: int
    num_frames: int


@dataclass(frozen=True)
class Call:
    """One forward call to build: its latent size, and how to fill tensors.

    Values are drawn on the CPU, so that a seed gives the same values on every device; on the
    ``meta`` device there are only shapes.

    Attributes:
        latent: Size of the latent video (frames, height, width).
        batch: Number of videos.
        dtype: Type of the tensors that follow the model's type.
        device: Where the tensors go.
        generator: Source of the values.
        context: Lengths of conditioning streams by name (``{"text": 12}``), where they shall
            differ from the pipeline's.
    """

    latent: Grid
    batch: int
    dtype: torch.dtype
    device: torch.device
    generator: torch.Generator
    context: Mapping[str, int]

    def length(self, stream: str, default: int) -> int:
        """Return the number of tokens of a conditioning stream."""
        return self.context.get(stream, default)

    def normal(self, *shape: int) -> Tensor:
        """Return normal noise of the model's type."""
        if self.device.type == "meta":
            return torch.empty(shape, dtype=self.dtype, device=self.device)
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)

    def timestep(self, dtype: torch.dtype, *, high: int = 1000) -> Tensor:
        """Return one timestep inside (0, high), the same for every video, as samplers do."""
        if self.device.type == "meta":
            return torch.empty(self.batch, dtype=dtype, device=self.device)
        value = torch.randint(1, high, (1,), generator=self.generator)
        return value.expand(self.batch).contiguous().to(self.device, dtype)

    def mask(self, length: int, dtype: torch.dtype) -> Tensor:
        """Return a [batch, length] mask: real tokens first, then padding, differing by row."""
        real = torch.arange(1, self.batch + 1) * length // (self.batch + 1)
        rows = torch.arange(length) < real.clamp(min=1)[:, None]
        return rows.to(self.device, dtype)

    def guidance(self, scale: float) -> Tensor:
        """Return the scale of a distilled guidance, in thousandths, for every video."""
        return torch.full((self.batch,), 1000 * scale, dtype=self.dtype, device=self.device)


def square_patch(config: Config) -> Grid:
    """Return the patch of a config with one size for rows and columns, and one for frames."""
    return (config["patch_size_t"], config["patch_size"], config["patch_size"])


def patch_size(config: Config) -> Grid:
    """Return the patch that a config names ``patch_size``, as (frames, height, width)."""
    frames, height, width = config["patch_size"]
    return (frames, height, width)


def video_size(layout: str) -> Callable[[Mapping[str, Any]], Grid]:
    """Return a function that reads (F, H, W) from ``hidden_states`` laid out as ``"BCFHW"``."""
    return partial(_video_size, layout=layout)


def _video_size(inputs: Mapping[str, Any], layout: str) -> Grid:
    video = inputs.get("hidden_states")
    if not isinstance(video, Tensor) or video.ndim != len(layout):
        got = f"shape {tuple(video.shape)}" if isinstance(video, Tensor) else repr(video)
        raise InputError(
            f"hidden_states: got {got}, wanted a tensor of rank {len(layout)}, "
            f"[{', '.join(layout)}]"
        )
    return (
        video.shape[layout.index("F")],
        video.shape[layout.index("H")],
        video.shape[layout.index("W")],
    )


_BCFHW = video_size("BCFHW")


def numbered_size(inputs: Mapping[str, Any]) -> Grid:
    """Return (F, H, W) where latents are tokens and their size comes as whole numbers."""
    size = tuple(inputs.get(name) for name in ("num_frames", "height", "width"))
    if not all(isinstance(cells, int) for cells in size):
        raise InputError(
            f"num_frames, height, width: got {size}, wanted the latent size as three whole numbers"
        )
    frames, height, width = size
    return (frames, height, width)  # type: ignore[return-value]


@dataclass(frozen=True)
class Family:
    """A family of video transformers that share one class.

    Attributes:
        name: Short name, also the name of the adapter's file.
        title: Name for people.
        transformer: The model class.
        blocks: Glob patterns of the repeated video blocks, as in :class:`fisopt.spec.ModelSpec`.
        patch: From a config, latent cells per token along (frames, height, width).
        compression: From a config, pixels per latent cell along (frames, height, width).
        inputs: Builds the keyword arguments of one forward call.
        published: Public checkpoints, the best known one first.
        tiny: Configs of small models for tests, by name of the variant.
        latent: Reads the latent size (F, H, W) from the keyword arguments of a forward call.
        causal: The first frame of a video has a latent frame of its own, so that videos have
            ``k * compression + 1`` frames.
        beside: Number of latent frames that are not frames of the video, such as a reference
            image's.
        prepare: As in :class:`fisopt.spec.ModelSpec`; for a model that cannot be traced, or only at
            one frame count.
        tokens: Reads the token grid from the keyword arguments, for a model that takes latents as
            tokens and their size separately; instead of ``latent``.
        resized: As in :class:`fisopt.spec.ModelSpec`.
    """

    name: str
    title: str
    transformer: type[nn.Module]
    blocks: tuple[str, ...]
    patch: Callable[[Config], Grid]
    compression: Callable[[Config], Grid]
    inputs: Callable[[Config, Call], dict[str, Any]]
    published: tuple[Published, ...]
    tiny: Mapping[str, Config]
    latent: Callable[[Mapping[str, Any]], Grid] = _BCFHW
    causal: bool = True
    beside: int = 0
    prepare: Callable[[Any], nn.Module] | None = None
    tokens: Callable[[Mapping[str, Any]], Grid] | None = None
    resized: Callable[[Mapping[str, Any], int], Mapping[str, Any]] | None = None

    def config(self, overrides: Config) -> dict[str, Any]:
        """Return a full config: the class's defaults with the given entries replaced."""
        signature = inspect.signature(self.transformer.__init__)
        defaults = {
            name: parameter.default
            for name, parameter in signature.parameters.items()
            if parameter.default is not parameter.empty
        }
        return defaults | dict(overrides)

    def spec(self, config: Config) -> ModelSpec:
        """Return where the blocks and the tokens are in a model with this config."""
        latent = partial(token_grid, latent=self.latent, patch=self.patch(config))
        return ModelSpec(self.blocks, self.tokens or latent, self.prepare, self.resized)

    def latent_size(self, config: Config, *, num_frames: int, height: int, width: int) -> Grid:
        """Return the latent size (F, H, W) of a video.

        Raises:
            InputError: The video's size is not divisible into latent cells and tokens.
        """
        for axis, pixels in zip(AXES, (num_frames, height, width), strict=True):
            count(f"{self.name}: {axis}", pixels, error=InputError)
        frame_step, row_step, column_step = self.compression(config)
        patch_frames, patch_rows, patch_columns = self.patch(config)
        self._check_divides("height", height, row_step * patch_rows)
        self._check_divides("width", width, column_step * patch_columns)
        first = 1 if self.causal else 0
        self._check_divides("num_frames", num_frames, frame_step, rest=first % frame_step)
        frames = (num_frames - first) // frame_step + first + self.beside
        if frames % patch_frames:
            raise InputError(
                f"{self.name}: num_frames: got {num_frames}, which makes {frames} latent frames; "
                f"wanted a multiple of {patch_frames} of them"
            )
        return (frames, height // row_step, width // column_step)

    def pixel_size(self, config: Config, grid: Grid) -> tuple[int, int, int]:
        """Return (num_frames, height, width) of the video whose token grid is (F, H, W)."""
        frames, height, width = (
            tokens * cells for tokens, cells in zip(grid, self.patch(config), strict=True)
        )
        frame_step, row_step, column_step = self.compression(config)
        first = 1 if self.causal else 0
        frames -= first + self.beside
        return frames * frame_step + first, height * row_step, width * column_step

    def example_inputs(
        self,
        config: Config,
        *,
        height: int,
        width: int,
        num_frames: int,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        seed: int = 0,
        context: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """Build the keyword arguments of one forward call, as the family's pipeline makes them.

        Args:
            config: The model's config.
            height: Rows of the video, in pixels.
            width: Columns of the video, in pixels.
            num_frames: Frames of the video.
            batch: Number of videos.
            dtype: The model's type.
            device: Where the tensors go; ``"meta"`` gives shapes without values.
            seed: Seed of the random values.
            context: Lengths of conditioning streams by name, if they differ from the pipeline's.

        Raises:
            InputError: The size is not divisible into tokens, or the model does not support it.
        """
        count(f"{self.name}: batch", batch, error=InputError)
        for stream, length in self._streams(context).items():
            count(f"{self.name}: context: {stream}", length, error=InputError)
        seed = count(f"{self.name}: seed", seed, least=0, error=InputError)
        if not isinstance(dtype, torch.dtype):
            raise InputError(f"{self.name}: dtype: got {shown(dtype)}, wanted one of torch's")
        latent = self.latent_size(config, num_frames=num_frames, height=height, width=width)
        call = Call(
            latent=latent,
            batch=batch,
            dtype=dtype,
            device=self._device(device),
            generator=torch.Generator().manual_seed(seed),
            context=self._streams(context),
        )
        return {"return_dict": False} | self.inputs(config, call)

    def _streams(self, context: Mapping[str, int] | None) -> Mapping[str, int]:
        if context is not None and not isinstance(context, Mapping):
            raise InputError(
                f"{self.name}: context: got {shown(context)}, wanted lengths by stream"
            )
        return context or {}

    def _device(self, device: torch.device | str) -> torch.device:
        try:
            return torch.device(device)
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.name}: device: got {shown(device)}, wanted one such as cpu, cuda, meta"
            ) from error

    def _check_divides(self, axis: str, pixels: int, step: int, *, rest: int = 0) -> None:
        """Raise an error that names the nearest sizes if ``pixels % step != rest``."""
        if pixels % step == rest:
            return
        below = (pixels - rest) // step * step + rest
        nearest = [str(size) for size in (below, below + step) if size > 0]
        wanted = f"a multiple of {step}" + (f" plus {rest}" if rest else "")
        raise InputError(
            f"{self.name}: {axis}: got {pixels}, wanted {wanted}: try {' or '.join(nearest)}"
        )


def with_children(model: nn.Module, **children: nn.Module) -> nn.Module:
    """Return the same model, parameters shared, with some of its children replaced."""
    other = copy.copy(model)
    other._modules = {**model._modules, **children}
    return other


def token_grid(
    inputs: Mapping[str, Any], *, latent: Callable[[Mapping[str, Any]], Grid], patch: Grid
) -> Grid:
    """Return the token grid (F, H, W) of one forward call."""
    frames, height, width = latent(inputs)
    return (frames // patch[0], height // patch[1], width // patch[2])
