"""Noise levels of a sampler, in one form: latents between clip and noise on a straight line.

Whatever a model was trained for, its latents are ``signal * clip + noise * eps``.  Divided by
``signal + noise`` they lie at ``(1 - sigma) * clip + sigma * eps``, the form of rectified flow, in
which a step of the deterministic sampler (Euler, DDIM) is ``z - (sigma - next) * velocity`` with
``velocity = eps - clip``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from fisopt.errors import InputError

PREDICTIONS = ("flow", "reversed flow", "epsilon", "v_prediction", "sample")
"""What a model returns: eps - clip, clip - eps, eps, signal * eps - noise * clip, the clip."""


@dataclass(frozen=True)
class Level:
    """One noise level.

    Attributes:
        time: what the scheduler calls it, which the model is told.
        signal: share of the clip in the model's latents.
        noise: share of the noise in them.
    """

    time: float
    signal: float
    noise: float

    @property
    def scale(self) -> float:
        """The model's latents over those between clip and noise."""
        return self.signal + self.noise

    @property
    def sigma(self) -> float:
        """Where it lies between clip (0) and noise (1)."""
        return self.noise / self.scale

    def velocity(self, output: Tensor, latents: Tensor, prediction: str) -> Tensor:
        """The velocity ``eps - clip`` at latents between clip and noise, of a model's output."""
        if prediction == "flow":
            return output
        if prediction == "reversed flow":
            return -output
        given, signal, noise = latents * self.scale, self.signal, self.noise
        if prediction == "epsilon":
            return output - (given - noise * output) / signal
        if prediction == "sample":
            return (given - signal * output) / noise - output
        length = signal**2 + noise**2
        return ((noise - signal) * given + (signal + noise) * output) / length


@dataclass(frozen=True)
class Levels(Sequence[Level]):
    """The levels of one sampler, from noise to the clip; the last one is clean.

    Attributes:
        levels: one more than there are steps, with falling ``sigma``.
        prediction: what the model returns, one of `PREDICTIONS`.
        cumulative: of a diffusion model the share of the clip's variance at each training step,
            None for flow matching.
        horizon: training steps; with flow matching the time of pure noise.
    """

    levels: tuple[Level, ...]
    prediction: str
    cumulative: tuple[float, ...] | None
    horizon: int

    def __getitem__(self, index: Any) -> Any:
        return self.levels[index]

    def __len__(self) -> int:
        return len(self.levels)

    @property
    def steps(self) -> int:
        """Steps from noise to the clip."""
        return len(self.levels) - 1

    def gap(self, step: int) -> float:
        """How far a step goes."""
        return self.levels[step].sigma - self.levels[step + 1].sigma

    def split(self, hops: int) -> Levels:
        """The levels with each step cut into so many hops of equal length.

        Raises:
            InputError: a step of a diffusion model holds fewer training steps than that.
        """
        if self.cumulative is None:
            sigmas = [
                level.sigma - hop * self.gap(step) / hops
                for step, level in enumerate(self.levels[:-1])
                for hop in range(hops)
            ]
            flow = [_flow(s, self.horizon, self.prediction) for s in [*sigmas, 0.0]]
            return Levels(tuple(flow), self.prediction, None, self.horizon)
        times = [level.time for level in self.levels]
        finer = [
            round(high - hop * (high - low) / hops)
            for high, low in pairwise(times)
            for hop in range(hops)
        ]
        if len(set(finer)) < len(finer):
            raise InputError(
                f"distill: {self.steps} segments do not divide into {hops} hops each: the "
                f"scheduler has {self.horizon} training steps and its steps begin at "
                f"{', '.join(f'{t:g}' for t in times[:-1])}; use fewer hops, or "
                'timestep_spacing="trailing"'
            )
        return _diffusion(finer, self.cumulative, self.levels[-1], self.prediction)


def levels_of(scheduler: Any) -> Levels:
    """The levels of a scheduler whose steps are set.

    Raises:
        InputError: it is neither Euler steps of flow matching nor DDIM.
    """
    name = type(scheduler).__name__
    config = getattr(scheduler, "config", None)
    if name == "FlowMatchEulerDiscreteScheduler":
        horizon = int(config.num_train_timesteps)  # type: ignore[union-attr]
        if config.stochastic_sampling:  # type: ignore[union-attr]
            raise InputError(
                f"distill: {name} with stochastic_sampling adds noise at each step; set "
                "stochastic_sampling=False in its config"
            )
        reversed_ = bool(config.invert_sigmas)  # type: ignore[union-attr]
        prediction = "reversed flow" if reversed_ else "flow"
        sigmas = [float(s) for s in scheduler.sigmas]
        levels = [_flow(1 - s if reversed_ else s, horizon, prediction) for s in sigmas]
        return Levels(tuple(levels), prediction, None, horizon)
    if name in ("DDIMScheduler", "CogVideoXDDIMScheduler"):
        cumulative = tuple(float(a) for a in scheduler.alphas_cumprod)
        end = float(scheduler.final_alpha_cumprod)
        clean = Level(-1, end**0.5, (1 - end) ** 0.5)
        times = [int(t) for t in scheduler.timesteps]
        return _diffusion(times, cumulative, clean, config.prediction_type)  # type: ignore[union-attr]
    raise InputError(
        f"distill: got {name}, wanted FlowMatchEulerDiscreteScheduler, or DDIMScheduler or "
        "CogVideoXDDIMScheduler of a diffusion model: a student of few steps learns where one "
        "deterministic step of its sampler leads; set pipe.scheduler, for flow matching "
        "FlowMatchEulerDiscreteScheduler(shift=...)"
    )


def _flow(sigma: float, horizon: int, prediction: str) -> Level:
    time = sigma if prediction == "flow" else 1 - sigma
    return Level(time * horizon, 1 - sigma, sigma)


def _diffusion(
    times: Sequence[int], cumulative: tuple[float, ...], clean: Level, prediction: str
) -> Levels:
    levels = [Level(t, cumulative[t] ** 0.5, (1 - cumulative[t]) ** 0.5) for t in times]
    return Levels((*levels, clean), prediction, cumulative, len(cumulative))
