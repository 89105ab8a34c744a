#!/usr/bin/env python
"""Train students of the testbed: few steps with guidance folded in, sparse ones, and both.

    python scripts/distil_testbed.py --out runs/students --minutes 6            # all, at once
    python scripts/distil_testbed.py --out runs/students --student paths48 --minutes 20
    python scripts/distil_testbed.py --out runs/students --student a4 --minutes 60
    python scripts/distil_testbed.py --out runs/students --student a4 --minutes 0   # figures only

Nothing but the shipped weights is needed: students follow their teacher's own paths from noise to
clips, which ``paths48`` (48 guided steps) and ``paths4`` (4 guided steps of the dense model) lay
into the folder first, for all students.  A student that was broken off goes on where it was saved.
Weights come out in bfloat16 as NAME.safetensors, which the testbed's own transformer loads, with
the figures in the file's metadata and in NAME.json.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fisopt
from fisopt import files
from fisopt.distill.conditions import Conditions, record
from fisopt.distill.denoiser import Denoiser
from fisopt.distill.levels import Levels
from fisopt.distill.path import Path, sampled, walk, walked
from fisopt.distill.trainer import Trainer, Training
from fisopt.models.testbed import all_prompts, check_clip, load_testbed, sample_prompts, to_frames
from fisopt.recipe.recipe import Recipe
from fisopt.rewrite.pass_base import Pass

GUIDANCE = 2.0
HELD_OUT, HELD_OUT_SEED, FIRST_NOISE = 24, 77, 5000
CHUNK = 128
ATTRIBUTES = ("colour", "shape", "direction", "right")

PLANS = File(__file__).parents[1] / "benchmarks" / "results" / "tune.json"
"""What `fisopt.tune` found for speeds of the testbed at 4 guided steps."""
TUNING = 12.0
"""Minutes for a plan of a student of few steps."""


@dataclass(frozen=True)
class Role:
    """What one student learns.

    Attributes:
        steps: of its sampler.
        plan: the speed that its passes were tuned for; empty for a dense one.
        guided: whether it still runs both branches.
        paths: the teacher's paths that it follows.
        start: steps of the student in the package that it starts from; None for the testbed.
        window: when it trains in a run of all, as shares of the minutes.
    """

    steps: int
    plan: str
    guided: bool
    paths: str
    start: Literal[2, 4] | None
    window: tuple[float, float]


STUDENTS = {
    "a4": Role(4, "", False, "paths48", None, (0.0, 0.53)),
    "a2": Role(2, "", False, "paths48", None, (0.0, 0.53)),
    "b25": Role(4, "2.5x", True, "paths4", None, (0.33, 1.0)),
    "b3": Role(4, "3x", True, "paths4", None, (0.33, 1.0)),
    "c2": Role(2, "1.3x", False, "paths48", 2, (0.53, 1.0)),
    "c4": Role(4, "2.5x", False, "paths48", 4, (0.53, 1.0)),
}
PATHS = {"paths48": 12, "paths4": 1}
"""The teacher's steps between two of the four borders."""
LAYING = {"paths48": (0.0, 0.25), "paths4": (0.2, 0.33)}
"""When paths are laid in a run of all, as shares of the minutes."""


def scheduler_of(kind: str, steps: int) -> FlowMatchEulerDiscreteScheduler:
    """The pipeline's own sampler for ``paths4``, one with even borders for ``paths48``.

    With few steps the usual sampler takes its last one at next to no noise (sigma .016), where
    nothing is left to do.  This one ends at .571, and its two steps are every second of four.
    """
    if kind == "paths4":
        scheduler = FlowMatchEulerDiscreteScheduler(shift=4.0)
    else:
        last = 0.5714 if steps == 4 else 0.7850
        scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0, shift_terminal=last)
    scheduler.set_timesteps(steps)
    return scheduler


class Lab:
    """The testbed, its prompts, the held-out clips and what they are compared with."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = torch.device(args.device)
        self.precision = torch.bfloat16 if args.bf16 else None
        self.pipe = load_testbed()
        self.pipe.set_progress_bar_config(disable=True)
        self.teacher: nn.Module = self.pipe.transformer.eval().requires_grad_(False)
        held = sample_prompts(HELD_OUT, seed=HELD_OUT_SEED)
        self.held = held[: args.clips]
        rest = [p for p in all_prompts() if p not in held]
        prompts = [str(p) for p in [*held, *rest]]
        with torch.no_grad():
            found, _ = record(self.pipe, self.teacher, prompts, 1, batch=60)
        self.teacher.to(self.device)
        self.conditions: Conditions = found.to(self.device)
        self.first, self.prompts = len(held), len(prompts)
        self.rows = torch.arange(len(self.held), device=self.device)
        noises = [
            torch.randn(found.shape, generator=torch.Generator().manual_seed(FIRST_NOISE + i))
            for i in range(len(self.held))
        ]
        self.noise = torch.stack(noises).to(self.device)

    def levels(self, kind: str, steps: int) -> Levels:
        """The borders of a student."""
        from fisopt.distill.levels import levels_of

        return levels_of(scheduler_of(kind, steps))

    def dense(self, levels: Levels, guidance: float, precision: Any = None) -> Denoiser:
        """The dense model."""
        return Denoiser(self.teacher, levels, guidance, precision)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise and prompts that are not held out."""
        shape = (count, *self.conditions.shape)
        noise = torch.randn(shape, generator=generator, device=self.device)
        several = {"generator": generator, "device": self.device}
        return noise, torch.randint(self.first, self.prompts, (count,), **several)

    def clips(self, denoiser: Denoiser) -> Tensor:
        """The held-out clips of a sampler, [clips, 3, frames, 32, 32]."""
        return sampled(denoiser, self.noise, self.conditions, self.rows)


def decibels(clips: Tensor, others: Tensor) -> float:
    """Mean PSNR of clips in [-1, 1]."""
    a, b = ((x.clamp(-1, 1) + 1) / 2 for x in (clips, others))
    error = (a - b).square().flatten(1).mean(1).clamp(min=1e-10)
    return round(float((-10 * error.log10()).mean()), 2)


def energy(clips: Tensor) -> float:
    """Motion: mean square difference of neighbouring frames."""
    return float(clips.clamp(-1, 1).diff(dim=2).square().mean())


def features(lab: Lab, clips: Tensor) -> Tensor:
    """What the dense model's middle block makes of each frame, [clips * frames, width]."""
    kept: list[Tensor] = []
    blocks: Any = lab.teacher.blocks
    handle = blocks[len(blocks) // 2].register_forward_hook(lambda *a: kept.append(a[-1]))
    level = lab.levels("paths4", 50)[45]
    noise = lab.noise.roll(1, 0)
    latents = (1 - level.sigma) * clips.clamp(-1, 1) + level.sigma * noise
    denoiser = lab.dense(lab.levels("paths4", 50), 1.0)
    with torch.no_grad():
        denoiser.velocity(latents, level, denoiser.take(lab.conditions, lab.rows))
    handle.remove()
    tokens = kept[0].float()
    return tokens.unflatten(1, (clips.shape[2], -1)).mean(2).flatten(0, 1)


def frechet(one: Tensor, other: Tensor) -> float:
    """Fréchet distance of two clouds of features as normal distributions, over their spread."""
    a, b = one.double().cpu(), other.double().cpu()
    first, second = a.T.cov(), b.T.cov()
    values = torch.linalg.eigvals(first @ second).real.clamp(min=0)
    spread = first.trace() + second.trace() - 2 * values.sqrt().sum()
    whole = (a.mean(0) - b.mean(0)).square().sum() + spread
    return round(float(whole / second.trace()), 4)


class Judge:
    """Figures of held-out clips, beside those of the dense model."""

    def __init__(self, lab: Lab, reference_steps: int, folder: File) -> None:
        self.lab, self.folder = lab, folder
        self.reference_steps = reference_steps
        self.best, self.four = self.clips(reference_steps), self.clips(4)
        self.seen = features(lab, self.best)

    def clips(self, steps: int, kind: str = "paths4") -> Tensor:
        """The dense model's clips under guidance, made once for all students."""
        lab = self.lab
        file = self.folder / f"clips-{kind}-{steps}-{len(lab.held)}.safetensors"
        if not file.exists():
            made = lab.clips(lab.dense(lab.levels(kind, steps), GUIDANCE))
            with files.written(file, force=True) as beside:
                save_file({"clips": made}, beside)
        return load_file(file)["clips"].to(lab.device)

    def near(self, clips: Tensor) -> dict[str, float]:
        """The two distances alone."""
        return {"to_50": decibels(clips, self.best), "to_4": decibels(clips, self.four)}

    def all(self, clips: Tensor) -> dict[str, float]:
        """Everything."""
        frames = to_frames(clips.cpu(), "pt")
        checks = [check_clip(f, p) for f, p in zip(frames, self.lab.held, strict=True)]
        share = {a: sum(getattr(c, a) for c in checks) / len(checks) for a in ATTRIBUTES}
        return {
            **self.near(clips),
            **{name: round(100 * value, 1) for name, value in share.items()},
            "frechet": frechet(features(self.lab, clips), self.seen),
            "motion": round(energy(clips) / energy(self.best), 3),
        }

    def baselines(self) -> dict[str, dict[str, float]]:
        """The dense model: many steps, and few."""
        made = {}
        made[f"dense, {self.reference_steps} steps, guided"] = self.all(self.best)
        made["dense, 4 steps, guided"] = self.all(self.four)
        for steps in (4, 2):
            made[f"dense, {steps} even steps, guided"] = self.all(self.clips(steps, "paths48"))
        return made


def lay(lab: Lab, name: str, folder: File, deadline: float, most: int) -> None:
    """Lay paths of the teacher, chunk by chunk, each a file of its own."""
    borders = lab.dense(lab.levels(name, 4), GUIDANCE, lab.precision)
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    number = len(list(place.glob("*.safetensors")))
    size = CHUNK if lab.device.type == "cuda" else 2
    began, made = time.monotonic(), 0
    while number == 0 or (time.monotonic() < deadline and number * size < most):
        generator = torch.Generator(lab.device).manual_seed((7 << 32) + number)
        noise, rows = lab.draw(size, generator)
        path = walked(borders, noise, lab.conditions, rows, PATHS[name])
        held = {"states": path.states.half().cpu(), "rows": path.rows.cpu()}
        beside = place / f".{number:05}"
        save_file(held, beside)
        beside.rename(place / f"{number:05}.safetensors")
        number, made = number + 1, made + size
    seconds = time.monotonic() - began
    print(f"{name}: {number * size} paths, {made / max(seconds, 1e-9):.1f} a second", flush=True)


class Bank:
    """The paths that were laid so far, on the device."""

    def __init__(self, place: File, device: torch.device, borders: slice, most: int) -> None:
        self.place, self.device, self.borders, self.most = place, device, borders, most
        self.known: set[str] = set()
        self.states = self.rows = torch.empty(0)
        self.count = 0

    def wait(self, least: int, deadline: float) -> bool:
        """Wait for so many paths; at the moment of the deadline for any."""
        self.look()
        if self.count < least:
            print(f"waiting for {least} paths in {self.place}, {self.count} are there", flush=True)
        while self.count < least and time.monotonic() < deadline:
            time.sleep(0.5)
            self.look()
        return self.count > 0

    def look(self) -> None:
        """Take in what is new, as far as there is room."""
        new = [f for f in sorted(self.place.glob("0*.safetensors")) if f.name not in self.known]
        for file in new:
            held = load_file(file)
            states, rows = held["states"][self.borders], held["rows"]
            if not self.count:
                shape = (len(states), self.most, *states.shape[2:])
                self.states = torch.empty(shape, dtype=states.dtype, device=self.device)
                self.rows = torch.empty(self.most, dtype=rows.dtype, device=self.device)
            end = min(self.count + len(rows), self.most)
            self.states[:, self.count : end] = states[:, : end - self.count].to(self.device)
            self.rows[self.count : end] = rows[: end - self.count].to(self.device)
            self.count = end
            self.known.add(file.name)

    def draw(self, count: int, step: int) -> Path:
        """Those of a step: every path once, in an order drawn anew each time round.

        A student that sees few paths often learns them by heart.
        """
        first, chosen = step * count, []
        for place in range(first, first + count):
            turn = torch.Generator().manual_seed(place // self.count)
            chosen.append(torch.randperm(self.count, generator=turn)[place % self.count])
        rows = torch.stack(chosen).to(self.device)
        return Path(self.states[:, rows], self.rows[rows])


def planned(role: Role, folder: File) -> tuple[tuple[Pass, ...], float]:
    """The passes of a plan that was tuned, and dense FLOPs over its own.

    Those of a student of few steps are tuned now, unless they were.
    """
    if not role.plan:
        return (), 1.0
    if role.start is None:
        said = json.loads(PLANS.read_text())["plans"][role.plan]
        return Recipe.from_plain(said["recipe"], str(PLANS)).passes, said["speed_up"]
    file = folder / f"plan{role.start}-{role.plan}.json"
    if not file.exists():
        pipe = load_testbed(student=role.start)
        pipe.set_progress_bar_config(disable=True)
        prompts = [str(p) for p in (*sample_prompts(4, seed=1), *sample_prompts(8, seed=2))]
        said = {"steps": role.steps, "arguments": {"guidance_scale": 1.0}, "minutes": TUNING}
        made = fisopt.tune(pipe, role.plan, prompts, **said)
        held = {**made.said(), "recipe": made.recipes["transformer"].plain(), "notes": made.notes}
        files.write(file, json.dumps(held, indent=1))
    said = json.loads(file.read_text())
    return Recipe.from_plain(said["recipe"], str(file)).passes, said["speed_up"]


class Run:
    """One student from its start to its end."""

    def __init__(self, lab: Lab, name: str, args: argparse.Namespace) -> None:
        self.lab, self.name, self.args, self.role = lab, name, args, STUDENTS[name]
        role = self.role
        self.levels = lab.levels(role.paths, role.steps)
        self.guidance = GUIDANCE if role.guided else 1.0
        begins = lab.teacher if role.start is None else load_testbed(student=role.start).transformer
        self.student: nn.Module = copy.deepcopy(begins).to(lab.device).requires_grad_(False).eval()
        self.passes, self.speed_up = planned(role, args.out)
        self.plain: Any = self.student
        if self.passes:
            self.plain = fisopt.optimize(self.student, self.passes, backend="eager")
        self.trained = Denoiser(self.plain, self.levels, self.guidance, lab.precision)
        self.judged = Denoiser(self.plain, self.levels, self.guidance)
        self.state = args.out / name / "state.pt"
        self.curve: list[dict[str, float]] = []
        if self.state.exists():
            self.curve = json.loads(self.file("json").read_text())["curve"]
        self.facts: dict[str, Any] = {}

    def train(self) -> None:
        """Train, with figures before, during and after."""
        judge = Judge(self.lab, self.args.reference_steps, self.args.out)
        self.facts = {"student": self.name, **vars(self.role), "flops_ratio": self.speed_up}
        self.facts["passes"] = [repr(p) for p in self.passes]
        self.facts["sigmas"] = [round(level.sigma, 4) for level in self.levels]
        self.facts["baselines"] = judge.baselines()
        self.facts["before"] = judge.all(self.lab.clips(self.judged))
        self.warm_up()
        self.write()
        borders = slice(None, None, 4 // self.role.steps)
        if (deadline := deadline_of(self.args)) > time.monotonic():
            bank = Bank(self.args.out / self.role.paths, self.lab.device, borders, self.args.most)
            patience = time.monotonic() + 0.6 * (deadline - time.monotonic())
            if not bank.wait(self.args.least, patience):
                raise SystemExit(f"no paths in {bank.place}: run --student {self.role.paths} first")
            self.loop(judge, bank, max(deadline - time.monotonic(), 1.0))
        elif (made := self.file("safetensors")).exists():
            self.student.load_state_dict(load_file(made))
        self.facts["after"] = judge.all(self.lab.clips(self.judged))
        self.write()
        print(json.dumps({k: self.facts[k] for k in ("student", "before", "after")}), flush=True)

    @property
    def batch(self) -> int:
        """Clips of a step."""
        return max(1, int(self.args.rows) // (2 if self.role.guided else 1))

    def warm_up(self) -> None:
        """Have the graph and its gradient ready before there is something to learn.

        What a device or a version of torch cannot do is said, and done without.
        """
        wanted = self.lab.precision
        tries = [(self.args.backend, wanted), ("eager", wanted), ("eager", None)]
        for backend, precision in dict.fromkeys(tries):
            began = time.monotonic()
            try:
                self.trained = self.tuned(backend, precision)
                self.probe()
            except Exception as error:
                print(f"{self.name}: not with {backend}, {precision}: {error}", flush=True)
            else:
                seconds = time.monotonic() - began
                print(f"{self.name}: {backend}, {precision}: {seconds:.0f} s to make", flush=True)
                return
        raise SystemExit(f"{self.name}: no gradient could be computed")

    def tuned(self, backend: Any, precision: torch.dtype | None) -> Denoiser:
        """What is trained."""
        runs = self.plain
        if backend != "eager":
            runs = fisopt.optimize(self.student, self.passes, backend=backend)
        return Denoiser(runs, self.levels, self.guidance, precision)

    def probe(self) -> None:
        """Run a step forth and back, for nothing."""
        self.student.requires_grad_(True)
        noise, rows = self.lab.draw(self.batch, torch.Generator(self.lab.device))
        given = self.trained.take(self.lab.conditions, rows)
        self.trained.at(noise, 0, given).square().mean().backward()
        self.student.zero_grad()

    def loop(self, judge: Judge, bank: Bank, seconds: float) -> None:
        """The training itself; the model is left with the averaged weights."""
        args, lab = self.args, self.lab

        def losses(step: int, generator: torch.Generator) -> Iterator[Tensor]:
            if step % 25 == 0:
                bank.look()
            path = bank.draw(training.batch, step)
            chance = torch.rand(training.batch, generator=generator, device=lab.device)
            own = chance < args.own
            yield from walk(self.trained, path, lab.conditions, own, through=args.through)

        training = Training(
            steps=None,
            minutes=seconds / 60,
            batch=self.batch,
            rate=args.rate,
            warmup=args.warmup,
            decay=args.decay,
            average=args.average,
            precision=self.trained.precision,
            seed=args.seed,
        )
        parameters = dict(self.student.named_parameters())
        trainer = Trainer(parameters, losses, training)
        if self.state.exists():
            trainer.resume(self.state)
            print(f"{self.name}: goes on at step {trainer.step}", flush=True)
        trainer.minutes = (trainer.seconds + seconds) / 60
        marks = iter(range(1, args.marks + 1))
        mark = next(marks) / args.marks
        while trainer.progress < 1:
            try:
                trainer.advance()
            except fisopt.InputError as error:
                print(f"{self.name}: {error}", flush=True)
                break
            if trainer.step == 1:  # what compiling took is no training
                trainer.minutes = max(seconds - trainer.seconds, 1.0) / 60
                trainer.seconds = 0.0
            if trainer.progress >= mark and trainer.progress < 1:
                began = time.perf_counter()
                self.note(trainer, judge)
                trainer.save(self.state)
                trainer.seconds += time.perf_counter() - began
                while mark <= trainer.progress:
                    mark = next(marks, args.marks + 1) / args.marks
        trainer.save(self.state)
        trainer.finish()
        self.note(trainer, judge)
        self.save()

    def note(self, trainer: Trainer, judge: Judge) -> None:
        """Add a point to the curve, of the averaged weights."""
        with trainer.averaged():
            near = judge.near(self.lab.clips(self.judged))
        follows = "to_4" if self.role.guided else "to_50"
        walks = trainer.step * trainer.training.batch
        point = {"seconds": round(trainer.seconds, 1), "step": trainer.step, "clips": walks}
        self.curve.append({**point, "loss": round(trainer.loss, 5), follows: near[follows]})
        print(self.name, json.dumps(self.curve[-1]), flush=True)
        self.write()

    def file(self, kind: str) -> File:
        """Where something of it goes."""
        return self.args.out / f"{self.name}.{kind}"

    def write(self) -> None:
        """Write the figures so far."""
        files.write(self.file("json"), json.dumps({**self.facts, "curve": self.curve}, indent=1))

    def save(self) -> None:
        """Write the weights, each by renaming a finished file."""
        held = {
            n: p.detach().to(torch.bfloat16).cpu() for n, p in self.student.state_dict().items()
        }
        with files.written(self.file("safetensors"), force=True) as beside:
            save_file(held, beside, metadata={"distilled": json.dumps(self.facts)})


def deadline_of(args: argparse.Namespace) -> float:
    """When the work that begins now has to end."""
    return args.until if args.until is not None else time.monotonic() + args.minutes * 60


def alone(args: argparse.Namespace) -> None:
    """One student, or paths, in this process."""
    began = time.monotonic()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    lab = Lab(args)
    print(f"{args.student}: ready after {time.monotonic() - began:.0f} s", flush=True)
    if args.student in PATHS:
        lay(lab, args.student, args.out, deadline_of(args), args.most)
    else:
        Run(lab, args.student, args).train()


def every(args: argparse.Namespace) -> None:
    """All students, each a process; they share the device."""
    args.out.mkdir(parents=True, exist_ok=True)
    begin, length = time.monotonic(), args.minutes * 60
    chosen = {name: STUDENTS[name] for name in args.only}
    windows = {name: role.window for name, role in chosen.items()}
    windows |= {name: LAYING[name] for name in sorted({r.paths for r in chosen.values()})}
    running: dict[str, subprocess.Popen[bytes]] = {}
    for name, (start, stop) in sorted(windows.items(), key=lambda item: item[1]):
        wait = begin + max(0.0, start * length - args.lead) - time.monotonic()
        time.sleep(max(wait, 0.0))
        until = ["--student", name, "--until", str(begin + stop * length)]
        running[name] = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], *until])
    failed = [name for name, process in running.items() if process.wait()]
    merge(args.out)
    seconds = time.monotonic() - begin
    print(f"all done after {seconds:.0f} s; failed: {', '.join(failed) or 'none'}", flush=True)


def merge(folder: File) -> None:
    """One file of all figures."""
    found = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in STUDENTS
        if (folder / f"{name}.json").exists()
    }
    files.write(folder / "figures.json", json.dumps(found, indent=1))


def parse_args(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add: Callable[..., Any] = parser.add_argument
    add("--student", choices=[*PATHS, *STUDENTS, "all"], default="all")
    add("--only", nargs="+", choices=STUDENTS, default=list(STUDENTS), help="of all, these")
    add("--minutes", type=float, default=6.0, help="how long it may take; of all together")
    add("--device", default=device, help="cpu or cuda (found: %(default)s)")
    add("--out", type=File, default=File("runs/students"))
    add("--bf16", action=argparse.BooleanOptionalAction, default=device == "cuda")
    add("--rows", type=int, default=16 if device == "cuda" else 4, help="rows of a forward call")
    add("--rate", type=float, default=3e-4)
    add("--warmup", type=int, default=30)
    add("--decay", type=float, default=0.7, help="last share, with falling rate")
    add("--average", type=float, default=0.99)
    add("--own", type=float, default=0.8, help="share of clips that walk on their own states")
    add("--through", action="store_true", help="gradients pass between steps")
    add("--marks", type=int, default=8, help="points of the curve")
    add("--least", type=int, default=768 if device == "cuda" else 8, help="paths to start with")
    add("--most", type=int, default=4096, help="paths of a kind")
    add("--lead", type=float, default=25.0, help="seconds that a process starts before its window")
    add("--clips", type=int, default=HELD_OUT, help="held-out clips, up to 24")
    add("--reference-steps", type=int, default=50)
    add("--backend", choices=("eager", "inductor"), default="eager")
    add("--until", type=float, help=argparse.SUPPRESS)
    add("--seed", type=int, default=0)
    return parser.parse_args(given)


if __name__ == "__main__":
    arguments = parse_args()
    every(arguments) if arguments.student == "all" else alone(arguments)
