"""The testbed's whole sampling loop from exported files alone, scheduler and guidance included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fisopt
from fisopt import FrameInterleave
from fisopt.models import testbed
from fisopt.models.testbed.model import SHIFT, null_embeddings, with_coordinates
from fisopt.models.testbed.pipeline import WEIGHTS
from fisopt.models.testbed.scenes import FRAMES, SIZE
from fisopt.tuning.quality import psnr
from tests.artefact.fresh import process

STEPS = 4
GUIDANCE = 2.0

_LOOP = """
steps, shift, guidance = 4, 4.0, 2.0
low = shift * 0.001 / (1 + (shift - 1) * 0.001)
sigmas = {np}.linspace(1.0, low, steps)
sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
sigmas = [float(s) for s in sigmas] + [0.0]
latents = held["latents"]
for step in range(steps):
    run = runs[schedule[step] if len(schedule) > 1 else 0]
    video = {join}([latents, held["coordinates"]], 1)
    cond, uncond = (
        run(hidden_states=video, timestep=time(1000 * sigmas[step]), encoder_hidden_states=held[k])
        for k in ("text", "negative")
    )
    velocity = uncond + guidance * (cond - uncond)
    latents = latents + (sigmas[step + 1] - sigmas[step]) * velocity
"""
TORCH = (
    """
import json, sys, torch
folder = sys.argv[1]
manifest = json.load(open(folder + "/clip/manifest.json"))
held = torch.load(folder + "/held.pt")
modules = [torch.export.load(f"{folder}/clip/{v['file']}").module() for v in manifest["variants"]]
runs = [lambda module=module, **values: module(**values)[0] for module in modules]
schedule, time = manifest["schedule"], lambda t: torch.tensor([t])
torch.set_grad_enabled(False)
"""
    + _LOOP.format(np="torch", join="torch.cat")
    + """
torch.save(latents, folder + "/clip.pt")
assert "fisopt" not in sys.modules and "diffusers" not in sys.modules
"""
)
ONNX = (
    """
import json, sys, numpy, onnxruntime
folder = sys.argv[1]
manifest = json.load(open(folder + "/clip/manifest.json"))
held = numpy.load(folder + "/held.npz")
files = [f"{folder}/clip/{v['file']}" for v in manifest["variants"]]
sessions = [onnxruntime.InferenceSession(file) for file in files]
runs = [lambda session=session, **values: session.run(None, values)[0] for session in sessions]
schedule, time = manifest["schedule"], lambda t: numpy.array([t], numpy.float32)
"""
    + _LOOP.format(np="numpy", join="numpy.concatenate")
    + """
numpy.save(folder + "/clip.npy", latents)
assert "torch" not in sys.modules and "fisopt" not in sys.modules
"""
)


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the testbed's weights are not there")
@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_the_same_clip(form: Any, tmp_path: Path, exhaustive: bool) -> None:
    if form == "onnx" and not exhaustive:
        pytest.skip("--exhaustive: a minute and more")
    pipe = testbed.load_testbed()
    pipe.set_progress_bar_config(disable=True)
    assert (SHIFT, len(pipe.scheduler.timesteps)) == (4.0, 1000)
    fisopt.optimize(pipe, [FrameInterleave(steps="1:")], backend="eager")
    noise = torch.randn(1, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    prompt = "red circle moving left fast over waves"
    want = pipe(
        prompt,
        latents=noise,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="latent",
    ).frames
    fisopt.export(pipe.transformer, tmp_path / "clip", form, steps=STEPS, dynamic=False)
    held = {
        "latents": noise,
        "coordinates": with_coordinates(noise)[:, 3:],
        "text": pipe._encode([prompt]),
        "negative": null_embeddings(1),
    }
    if form == "pt2":
        torch.save(held, tmp_path / "held.pt")
        process(TORCH, str(tmp_path))
        got = torch.load(tmp_path / "clip.pt")
    else:
        np.savez(tmp_path / "held.npz", **{k: v.numpy() for k, v in held.items()})
        process(ONNX, str(tmp_path))
        got = torch.from_numpy(np.load(tmp_path / "clip.npy"))
    mine, theirs = (testbed.to_frames(clip)[0] for clip in (got, want))
    assert psnr(mine, theirs) >= 50
