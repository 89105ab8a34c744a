"""Step caches of other libraries, as methods that `fisopt.compare` takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

Method = Callable[[Any], AbstractContextManager[None]]


def of_diffusers(config: Any) -> Method:
    """A cache of diffusers."""

    @contextmanager
    def method(pipe: Any) -> Iterator[None]:
        pipe.transformer.enable_cache(config)
        try:
            yield
        finally:
            pipe.transformer.disable_cache()

    return method


@dataclass(frozen=True)
class CacheDit:
    """What cache-dit is told; the first block is always computed.

    Attributes:
        threshold: of the change of what the first block adds.
        taylor: whether what is reused is forecast in a straight line.
        every: compute every so many steps and no other, whatever has changed; 0 for by threshold.
    """

    threshold: float = 1.0
    taylor: bool = True
    every: int = 0

    @property
    def name(self) -> str:
        """Of its row."""
        when = f"every {self.every}" if self.every else f"warm-up 1, {self.threshold}"
        return f"cache-dit F1B0, {when}" + (", TaylorSeer" if self.taylor else "")

    def method(self, steps: int) -> Method:
        """The cache for a generation of so many steps."""

        @contextmanager
        def method(pipe: Any) -> Iterator[None]:
            undo = self._enable(pipe, pipe.transformer, steps)
            try:
                yield
            finally:
                undo()

        return method

    def _enable(self, pipe: Any, model: Any, steps: int) -> Callable[[], None]:
        import cache_dit as library
        from cache_dit import (
            BlockAdapter,
            DBCacheConfig,
            ForwardPattern,
            TaylorSeerCalibratorConfig,
        )

        adapter = BlockAdapter(
            pipe=pipe,
            transformer=model,
            blocks=model.blocks,
            forward_pattern=ForwardPattern.Pattern_2,
            has_separate_cfg=True,
        )
        config = DBCacheConfig(
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            residual_diff_threshold=self.threshold,
            max_warmup_steps=1,
            num_inference_steps=steps,
            enable_separate_cfg=True,
        )
        if self.every:
            config.steps_computation_mask = [int(i % self.every == 0) for i in range(steps)]
            config.steps_computation_policy = "static"
        forecast = TaylorSeerCalibratorConfig(taylorseer_order=1) if self.taylor else None
        with contextlib.redirect_stdout(None):
            library.enable_cache(adapter, cache_config=config, calibrator_config=forecast)
        return lambda: library.disable_cache(adapter)
