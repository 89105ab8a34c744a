#!/usr/bin/env python
"""Train the testbed's video transformer by rectified flow, on clips drawn as it goes.

    python scripts/train_testbed.py --minutes 90     # from nothing, or on from a broken-off run
    python scripts/train_testbed.py --start shipped --lengths 16:1    # on from the packaged weights
    python scripts/train_testbed.py --minutes 0      # only export the checkpoint's averaged weights
    python scripts/evaluate_testbed.py --write       # then score them and write the model card

A run is one schedule over ``--minutes``: short clips first (the first 4, then 8 frames; same
positions, much cheaper), all 16 frames for the rest, learning rate down to nothing at the end.
State goes to ``runs/testbed/`` and averaged weights to the package every few minutes, each by
renaming a finished file, so that a run may be killed at any time and started again.
"""

from __future__ import annotations

import os

# Threads that wait must not spin: on a shared machine a spinning one starves the one it waits for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import argparse
import copy
import csv
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fisopt.models.testbed.model import (
    SHIFT,
    TIMESTEPS,
    build_transformer,
    encode_prompts,
    with_coordinates,
)
from fisopt.models.testbed.pipeline import WEIGHTS, build_pipeline, load_testbed
from fisopt.models.testbed.scenes import FRAMES, draw_clips, sample_indices

ROOT = Path(__file__).resolve().parents[1]
RUN_DIR = ROOT / "runs" / "testbed"
DROP = 0.1  # share of clips trained without a prompt, for guidance


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; equal shapes go through as one batch.

    Like ``torch.optim.Muon``, but in float32 (a CPU without bfloat16 units crawls otherwise)
    and with one batched product for all matrices of a shape.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for param in group["params"]:
                if param.grad is not None:
                    shapes.setdefault(param.shape, []).append(param)
            for (rows, columns), params in shapes.items():
                grads = [param.grad for param in params]
                means = [
                    self.state[param].setdefault("mean", torch.zeros_like(param))
                    for param in params
                ]
                torch._foreach_lerp_(means, grads, 1 - group["momentum"])
                ahead = torch._foreach_lerp(grads, means, group["momentum"])
                update = orthogonalise(torch.stack(ahead))
                scale = max(1.0, rows / columns) ** 0.5
                torch._foreach_add_(params, list(update), alpha=-group["lr"] * scale)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Push all singular values of [n, rows, columns] towards 1 (Newton-Schulz, quintic)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


@dataclass(frozen=True)
class Stage:
    """One clip length of the schedule: ``frames`` for ``share`` of the minutes."""

    frames: int
    share: float
    batch: int


def stages_of(text: str, tokens: float) -> list[Stage]:
    """Read ``FRAMES:SHARE,...``; the batch holds about the same number of frames throughout."""
    pairs = [part.split(":") for part in text.split(",")]
    total = sum(float(share) for _, share in pairs)
    return [
        Stage(int(frames), float(share) / total, max(1, round(tokens / int(frames))))
        for frames, share in pairs
    ]


def stage_at(stages: list[Stage], progress: float) -> Stage:
    """Return the stage in which a share of the minutes falls."""
    for stage in stages:
        if progress < stage.share:
            return stage
        progress -= stage.share
    return stages[-1]


def initialise(model: nn.Module) -> None:
    """Start with open gates and an output of zero: the first steps are spent better."""
    for block in model.blocks:
        table = block.scale_shift_table.data  # shift, scale, gate of attention; then feed-forward
        table.zero_()
        table[:, 2] = table[:, 5] = 0.4
        nn.init.zeros_(block.attn2.to_out[0].bias)
    nn.init.orthogonal_(model.patch_embedding.weight.data.flatten(1))
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)


def optimisers_of(model: nn.Module, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all the rest."""
    hidden = [p for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    chosen = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(hidden, lr=muon_lr),
        torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def flow_loss(
    model: nn.Module, stage: Stage, device: torch.device, dtype: torch.dtype | None
) -> Tensor:
    """Mean squared error of the predicted velocity, one value a clip; sigma in the second row."""
    indices = sample_indices(stage.batch)
    clips = draw_clips(indices, num_frames=stage.frames).to(device)
    indices[torch.rand(stage.batch) < DROP] = -1
    text = encode_prompts(indices).to(device)
    even = (torch.arange(stage.batch) + torch.rand(stage.batch)) / stage.batch
    shift = SHIFT * math.sqrt(stage.frames / FRAMES)  # fewer frames bear less noise
    sigma = (shift * even / (1 + (shift - 1) * even)).to(device)
    noise = torch.randn_like(clips)
    mixed = torch.lerp(clips, noise, sigma[:, None, None, None, None])
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        velocity = model(with_coordinates(mixed), sigma * TIMESTEPS, text, return_dict=False)[0]
    error = (velocity.float() - (noise - clips)).square().mean((1, 2, 3, 4))
    return torch.stack([error, sigma])


def pick_precision(model: nn.Module, device: torch.device) -> torch.dtype | None:
    """Time a step in float32 and under bfloat16 autocast; None stands for float32."""
    probe = Stage(4, 1.0, 2 if device.type == "cpu" else 64)
    seconds = {}
    for dtype in (None, torch.bfloat16):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            flow_loss(model, probe, device, dtype)[0].mean().backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times[1:])
        model.zero_grad()
    best = min(seconds, key=seconds.__getitem__)
    names = {None: "float32", torch.bfloat16: "bfloat16"}
    print("precision:", ", ".join(f"{names[d]} {s:.3f} s" for d, s in seconds.items()), end="")
    print(f" a step: {names[best]}", flush=True)
    return best


def save_atomically(state: object, path: Path) -> None:
    """Write beside, then rename: a killed run leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    torch.save(state, beside)
    os.replace(beside, path)


def export(ema: dict[str, Tensor], facts: dict[str, object], directory: Path) -> None:
    """Write averaged weights as a pipeline folder, file by file through a rename."""
    model = build_transformer()
    model.load_state_dict(ema)
    beside = directory.with_name(directory.name + ".part")
    build_pipeline(model).save_pretrained(beside)
    (beside / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    for path in sorted(beside.rglob("*")):
        if path.is_file():
            target = directory / path.relative_to(beside)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    shutil.rmtree(beside)


def train(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    stages = stages_of(args.lengths, args.frames_per_step)
    model = build_transformer().train()
    if args.start == "shipped":
        model.load_state_dict(load_testbed().transformer.state_dict())
    else:
        initialise(model)
    model.to(device)
    optimisers = optimisers_of(model, args.muon_lr, args.adam_lr)
    peaks = [group["lr"] for optimiser in optimisers for group in optimiser.param_groups]
    checkpoint = args.run_dir / "checkpoint.pt"
    step, clips, before = 0, 0, 0.0
    ema = copy.deepcopy(model.state_dict())
    if checkpoint.exists() and args.start == "checkpoint":
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        ema = state["ema"]
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        step, clips, before = state["step"], state["clips"], state["seconds"]
        print(f"resumed {checkpoint} at step {step}, {before / 60:.1f} min", flush=True)
    dtype = pick_precision(model, device) if args.minutes else None
    if args.compile:
        model.compile_repeated_blocks(fullgraph=True, dynamic=False)
    weights = [model.state_dict()[name] for name in ema]

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "ema": ema,
            "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            "step": step,
            "clips": clips,
            "seconds": before + time.perf_counter() - start,
        }
        save_atomically(state, checkpoint)
        facts = {
            "steps": step,
            "clips": clips,
            "minutes": round(state["seconds"] / 60, 1),
            "loss": round(recent["loss"], 5) if recent else None,
            "device": device.type,
            "precision": "float32" if dtype is None else "bfloat16 autocast",
        }
        export(ema, facts, args.export_dir)

    args.run_dir.mkdir(parents=True, exist_ok=True)
    budget = args.minutes * 60
    log_path = args.run_dir / "loss.csv"
    new_log = not before or not log_path.exists()
    start = saved_at = time.perf_counter()
    recent: dict[str, float] = {}
    with log_path.open("w" if new_log else "a", newline="") as stream, tqdm(unit="step") as bar:
        log = csv.writer(stream)
        if new_log:
            log.writerow(["step", "minutes", "frames", "loss", "loss_high_noise", "rate"])
        while (seconds := before + time.perf_counter() - start) < budget:
            progress = seconds / budget
            stage = stage_at(stages, progress)
            rate = min(1.0, (step + 1) / args.warmup, (1 - progress) / args.decay)
            groups = [group for optimiser in optimisers for group in optimiser.param_groups]
            for group, peak in zip(groups, peaks, strict=True):
                group["lr"] = peak * rate
            error, sigma = flow_loss(model, stage, device, dtype)
            error.mean().backward()
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
            step += 1
            clips += stage.batch
            keep = min(args.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(ema.values()), weights, 1 - keep)
            high = error.detach()[sigma > 0.8]
            for name, value in (("loss", error.detach()), ("high", high)):
                if len(value):
                    mean = value.mean().item()
                    recent[name] = 0.96 * recent.get(name, mean) + 0.04 * mean
            if step % 20 == 0:
                shown = {name: f"{value:.4f}" for name, value in recent.items()}
                bar.set_postfix(min=f"{seconds / 60:.1f}", frames=stage.frames, **shown)
                losses = [f"{recent.get(name, math.nan):.5f}" for name in ("loss", "high")]
                log.writerow([step, f"{seconds / 60:.2f}", stage.frames, *losses, f"{rate:.3f}"])
                stream.flush()
            bar.update()
            if time.perf_counter() - saved_at > args.save_every * 60:
                save()
                saved_at = time.perf_counter()
    save()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--minutes", type=float, default=90, help="budget of the whole schedule")
    parser.add_argument("--device", default=default_device, help="cpu or cuda (found: %(default)s)")
    parser.add_argument(
        "--lengths", default="4:0.35,8:0.2,16:0.45", help="FRAMES:SHARE of the minutes, in order"
    )
    parser.add_argument("--frames-per-step", type=float, default=32, help="batch size in frames")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=30, help="steps of rising learning rate")
    parser.add_argument("--decay", type=float, default=0.5, help="last share, with falling rate")
    parser.add_argument("--ema", type=float, default=0.997, help="weight of the running average")
    parser.add_argument("--save-every", type=float, default=3, help="minutes between saves")
    parser.add_argument("--run-dir", type=Path, default=RUN_DIR)
    parser.add_argument("--export-dir", type=Path, default=WEIGHTS)
    parser.add_argument(
        "--start",
        choices=("checkpoint", "shipped", "nothing"),
        default="checkpoint",
        help="where to start: the run's checkpoint if there is one, the packaged weights (a new "
        "schedule, 16 frames advised), or nothing",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


if __name__ == "__main__":
    train(parse_args())
