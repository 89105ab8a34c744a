"""Scorers and measures whose networks are fetched from elsewhere; each says what it fetches."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from fisopt.comparison.scoring import Measure, Scorer, to_bytes
from fisopt.errors import OptionError
from fisopt.page.films import evenly

CLIP_MODEL = "openai/clip-vit-base-patch32"


def clip_scorer(model: str = CLIP_MODEL, frames: int = 8) -> Scorer:
    """A CLIP scorer: the cosine similarity of prompt and frame, mean over some frames of a clip.

    It needs the package transformers and a CLIP model. It downloads the model once from the Hugging
    Face hub (600 MB for the default) unless ``model`` is a folder.

    Args:
        model: repository or folder of a CLIP model with its processor.
        frames: how many frames of a clip are looked at.

    Raises:
        OptionError: the model is not available.
    """
    import torch
    from PIL import Image
    from transformers import AutoProcessor, CLIPModel

    try:
        network: Any = CLIPModel.from_pretrained(model).eval()  # type: ignore[no-untyped-call]
        processor: Any = AutoProcessor.from_pretrained(model)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise OptionError(
            f"the CLIP model {model!r} cannot be loaded: {error}; give a folder that holds one"
        ) from error

    def score(clip: np.ndarray, prompt: str) -> dict[str, float]:
        chosen = clip[evenly(len(clip), frames)]
        stills = [Image.fromarray(to_bytes(frame)) for frame in chosen]
        given = processor(text=[prompt], images=stills, return_tensors="pt", truncation=True)
        with torch.no_grad():
            cosine = network(**given).logits_per_image / network.logit_scale.exp()
        return {"CLIP": float(cosine.mean())}

    return score


def lpips(frames: int = 16) -> Measure:
    """The LPIPS measure on AlexNet: 0 for equal clips, mean over some frames of a clip.

    It needs torchvision (``pip install 'fisopt[eval]'``), which downloads AlexNet's weights once
    from download.pytorch.org (233 MB).

    Args:
        frames: how many frames of a clip are looked at.

    Raises:
        OptionError: torchvision or the weights are not available.
    """
    import torch

    if find_spec("torchvision") is None:
        raise OptionError("LPIPS needs torchvision: pip install 'fisopt[eval]'")
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        network = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    except OSError as error:
        raise OptionError(
            f"the weights of AlexNet, which LPIPS needs, cannot be downloaded: {error}; leave "
            "LPIPS out, or run where there is a network"
        ) from error

    def measure(clip: np.ndarray, dense: np.ndarray) -> float:
        chosen = evenly(len(clip), frames)
        pair = (torch.from_numpy(x[chosen].clip(0, 1)).permute(0, 3, 1, 2) for x in (clip, dense))
        with torch.no_grad():
            return float(network(*(x.float() for x in pair)))

    return measure
