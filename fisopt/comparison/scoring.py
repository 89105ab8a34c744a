"""Whether a clip shows what was asked: scorers, the testbed's own among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fisopt.errors import OptionError, OptionTypeError, shown
from fisopt.models import testbed

Scorer = Callable[[np.ndarray, str], float | Mapping[str, float]]
"""Of a clip [frames, height, width, 3] in [0, 1] and its prompt: a number, or several by name."""
CHECKED = ("colour", "shape", "direction", "right")
CLIP_MODEL = "openai/clip-vit-base-patch32"


def check(clip: np.ndarray, prompt: str) -> dict[str, float]:
    """What of a testbed's clip is right, 1 or 0 each, and whether all three are."""
    found = testbed.check_clip(clip, prompt)
    return {name: float(getattr(found, name)) for name in CHECKED}


def scorer_of(pipeline: Any, given: Scorer | None) -> Scorer | None:
    """The given scorer, or that of the pipeline's own."""
    if given is not None and not callable(given):
        raise OptionTypeError(f"scorer: got {shown(given)}, wanted a function of clip and prompt")
    own = check if isinstance(pipeline, testbed.TestbedPipeline) else None
    return own if given is None else given


def scored(scorer: Scorer | None, clip: np.ndarray, prompt: str) -> dict[str, float]:
    """What a scorer says of a clip, by name.

    Raises:
        OptionTypeError: it says no numbers.
    """
    if scorer is None:
        return {}
    said = scorer(clip, prompt)
    try:
        named = said.items() if isinstance(said, Mapping) else [("score", said)]
        return {str(name): float(value) for name, value in named}
    except (TypeError, ValueError) as error:
        raise OptionTypeError(
            f"scorer: got {shown(said)}, wanted a number, or numbers by name"
        ) from error


def clip_scorer(model: str = CLIP_MODEL, frames: int = 8) -> Scorer:
    """A scorer by CLIP: the cosine of prompt and frame, mean over some frames of a clip.

    It needs transformers and the model, which is fetched from the Hugging Face hub once (600 MB
    for the default) unless ``model`` is a folder.

    Args:
        model: repository or folder of a CLIP model with its processor.
        frames: how many frames of a clip are looked at.

    Raises:
        OptionError: the model cannot be had.
    """
    import torch
    from PIL import Image
    from transformers import AutoProcessor, CLIPModel

    from fisopt.page.films import evenly

    try:
        network: Any = CLIPModel.from_pretrained(model).eval()  # type: ignore[no-untyped-call]
        processor: Any = AutoProcessor.from_pretrained(model)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise OptionError(
            f"the CLIP model {model!r} cannot be had: {error}; give a folder that holds one"
        ) from error

    def score(clip: np.ndarray, prompt: str) -> dict[str, float]:
        chosen = clip[evenly(len(clip), frames)]
        stills = [Image.fromarray(to_bytes(frame)) for frame in chosen]
        given = processor(text=[prompt], images=stills, return_tensors="pt", truncation=True)
        with torch.no_grad():
            cosine = network(**given).logits_per_image / network.logit_scale.exp()
        return {"CLIP": float(cosine.mean())}

    return score


def to_bytes(frames: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as whole numbers from 0 to 255."""
    return (255 * frames.clip(0, 1)).round().astype(np.uint8)
