"""Step caches as diffusers configures them (`enable_cache`), and the `StepCache` that does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fisopt.errors import FisoptError, InputError, OptionError, OptionTypeError, shown
from fisopt.passes.step_cache import StepCache
from fisopt.rewrite.selection import ALL


def translated(config: Any) -> tuple[StepCache, str]:
    """The pass that does what a config of diffusers asks for, and what it does otherwise.

    Raises:
        InputError: no `StepCache` does it.
        OptionTypeError: it is no config of a cache.
        OptionError: it holds a wrong value.
    """
    name = type(config).__name__
    if not type(config).__module__.startswith("diffusers.") or not name.endswith("Config"):
        raise OptionTypeError(
            f"enable_cache: got {shown(config)}, wanted a config of diffusers such as "
            "FirstBlockCacheConfig(threshold=0.1)"
        )
    if (make := _TRANSLATIONS.get(name)) is None:
        raise _refused(name, "it caches inside blocks, whose layers a graph does not call")
    try:
        return make(config)
    except FisoptError:
        raise
    except (TypeError, ValueError) as error:
        raise OptionError(f"enable_cache: {shown(config)} holds a wrong value: {error}") from error


def _first_block(config: Any) -> tuple[StepCache, str]:
    return StepCache(float(config.threshold)), ""


def _mag(config: Any) -> tuple[StepCache, str]:
    """MagCache decides by a table of ratios alone, so that its steps are known beforehand."""
    if config.calibrate:
        raise _refused("MagCacheConfig(calibrate=True)", "it measures ratios and caches nothing")
    begin = int(config.retention_ratio * config.num_inference_steps + 0.5)
    reused: list[int] = []
    ratio, error, run = 1.0, 0.0, 0
    for step in range(begin, config.num_inference_steps):
        ratio = ratio * config.mag_ratios[step]
        error, run = error + abs(1.0 - ratio), run + 1
        if step and error <= config.threshold and run <= config.max_skip_steps:
            reused.append(step)
        else:
            ratio, error, run = 1.0, 0.0, 0
    if not reused:
        raise _refused("MagCacheConfig", "by its ratios and threshold every step is computed")
    return StepCache(blocks=ALL, steps=reused), ""


def _taylor(config: Any) -> tuple[StepCache, str]:
    """TaylorSeer computes every so many steps."""
    if config.max_order > 1:
        raise _refused(
            f"TaylorSeerCacheConfig(max_order={config.max_order})",
            "StepCache forecasts in a straight line: max_order is 0 or 1",
        )
    chosen = [n for n in ("skip_predict_identifiers", "cache_identifiers") if getattr(config, n)]
    if chosen:
        raise _refused(
            f"TaylorSeerCacheConfig({chosen[0]}=...)",
            ("it names layers, which a graph does not call"),
        )
    before, every = config.disable_cache_before_step, config.cache_interval
    if every < 2:
        raise _refused(f"TaylorSeerCacheConfig(cache_interval={every})", "every step is computed")
    end = "" if config.disable_cache_after_step is None else config.disable_cache_after_step
    starts = [before, *range(before + 2, before + every)]
    steps = ",".join(f"{start}:{end}:{every}" for start in starts)
    note = "TaylorSeerCacheConfig: what all blocks add is forecast as one, not layer by layer"
    return StepCache(order=config.max_order, blocks=ALL, steps=steps), note


_TRANSLATIONS: dict[str, Callable[[Any], tuple[StepCache, str]]] = {
    "FirstBlockCacheConfig": _first_block,
    "MagCacheConfig": _mag,
    "TaylorSeerCacheConfig": _taylor,
}


def _refused(what: str, why: str) -> InputError:
    known = ", ".join(_TRANSLATIONS)
    return InputError(
        f"enable_cache of an optimised module: {what} cannot become a StepCache: {why}; add one "
        f"to the passes, or give a config that can ({known})"
    )
