"""The public verbs: `capture` a model as a Program, `optimize` a model or a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from fisopt.checked import checked
from fisopt.codegen.compile import Backend
from fisopt.codegen.kernel_options import Attention, KernelOptions, Linear
from fisopt.codegen.placement import Offload
from fisopt.errors import InputError, OptionError, OptionTypeError, shown
from fisopt.lru import SIZE
from fisopt.models.guessing import spec_for
from fisopt.passes.presets import resolve
from fisopt.pipelines import SchedulerOf, by_component, transformers_of
from fisopt.recipe.recipe import Recipe
from fisopt.rewrite import capture as _capture
from fisopt.rewrite.outline import structure
from fisopt.rewrite.pass_base import Pass
from fisopt.rewrite.program import Program
from fisopt.rewrite.tracing.readiness import check_model, uncompiled
from fisopt.runtime.captures import Captures, remember
from fisopt.runtime.disk.on_disk import keeping
from fisopt.runtime.optimized import OptimizedModule
from fisopt.runtime.settings import Settings
from fisopt.spec import ModelSpec, SpecOf

RecipeSource = Recipe | Path | str | Mapping[str, Any]
"""A recipe, its path, its plain values, or "config"."""

Passes = Sequence[Pass | str]
"""Passes in order, or preset names."""

Chosen = tuple[Pass, ...] | RecipeSource


@checked
def capture(
    model: nn.Module,
    example_inputs: Mapping[str, Any] | None = None,
    spec: ModelSpec | None = None,
) -> Program:
    """Capture a video DiT as a Program: a torch.fx graph of block calls with frame axes.

    Args:
        model: a module in evaluation mode; on the meta device capture allocates nothing.
        example_inputs: keyword arguments of one forward call; `fisopt.models.example_inputs` makes
            them for a known family.
        spec: the model's blocks and token grid. With None, fisopt uses the adapter of a known
            family and guesses the spec of any other model (`fisopt.models.guess`).

    Raises:
        OptionError: an argument has a wrong type.
        InputError: inputs are missing, malformed or NaN, or the model is in training mode.
        CaptureError: the blocks or the grid do not fit the model, or it cannot be traced.
    """
    model = uncompiled(model)
    if isinstance(model, OptimizedModule):
        model = model.original
    _check_spec(spec)
    if not isinstance(model, nn.Module):
        raise OptionTypeError(f"capture takes an nn.Module, got {shown(model)}")
    told: ModelSpec | SpecOf = spec if spec is not None else spec_for(model)
    if example_inputs is None:
        raise InputError(
            f"capture of {type(model).__name__}: example_inputs is missing; pass the keyword "
            "arguments of one forward call, for a known family "
            "fisopt.models.example_inputs(model, height=..., width=..., num_frames=...)"
        )
    note = None
    if not isinstance(told, ModelSpec):
        told, note = told(model, example_inputs)
    program = _capture.capture(model, example_inputs, told, keeping)
    if note is not None:
        program.source.notes[note] = None
    remember(program)
    return program


@checked
def optimize(
    model_or_pipeline: Any,
    passes: Passes | Mapping[str, Passes] = (),
    example_inputs: Mapping[str, Any] | None = None,
    spec: ModelSpec | None = None,
    backend: Backend = "inductor",
    strict: bool = True,
    recipe: RecipeSource | None = None,
    cache_size: int = SIZE,
    linear: Linear | None = None,
    attention: Attention = None,
    offload: Literal["block"] | None = None,
    prefetch: int = 1,
) -> Any:
    """Make a video DiT faster.

    If the module is optimised already, fisopt optimises its original anew and reuses its captured
    Programs: the quick way to compare passes. A Program that `capture` returned is reused too, as
    long as its model has not changed since.

    Args:
        model_or_pipeline: an nn.Module, or its Program, or a diffusers pipeline: its
            ``transformer`` and, where there is one, ``transformer_2`` are replaced in place and
            the pipeline is returned.
        passes: passes in order, or preset names. For a pipeline also a mapping by transformer,
            ``{"transformer": [...], "transformer_2": [...]}``; a transformer that it does not name
            stays as it is.
        example_inputs: keyword arguments of one forward call. With them fisopt captures and
            rewrites the model at once; without them, at the first call. A spec whose grid is three
            numbers needs them.
        spec: blocks and token grid of a model of no known family. Without it fisopt guesses them
            from the first call (`fisopt.models.guess`) and notes this in the report.
        backend: "inductor" compiles each distinct block once; "eager" runs the graph as it is.
        strict: if a pass cannot be applied to a block, raise; if False, record it in the report.
        recipe: instead of ``passes``, what ``save_recipe`` wrote: its path, its plain values, or
            "config" for the ``fisopt`` entry of the model's configuration; for a pipeline also a
            mapping by transformer. It also sets ``linear`` and ``attention`` if you do not.
        cache_size: how many variants (a shape and a set of active passes) to keep, each with its
            compiled code. A further variant evicts the least recently used one. ``result.clear()``
            evicts all.
        linear: "model", the default, multiplies in the model's precision. "fp8" rounds the operands
            of large linear layers to FP8, with a scale for each token and each output channel:
            faster on a GPU from sm_89 on, at a small loss. "fp8-simulated" gives the same numbers
            on any device, slowly.
        attention: the kernel of dense attention. None uses the backend set in diffusers
            (``set_attention_backend``), else torch's default; "sdpa" always uses torch's default.
            "cudnn", "flash" and "efficient" are torch's own kernels; "fa3" and "sage" are the
            packages ``flash_attn_interface`` and ``sageattention``. Or a function ``f(query, key,
            value, *, scale, mask)`` that takes and returns [B, heads, tokens, features], with
            ``mask`` None or as torch takes it. Torch runs the calls that the kernel does not
            support; the report lists what runs.
        offload: "block" leaves the weights on the host and copies those of a few blocks at a time
            to the device of the inputs. The model must be on the host; ``.to(device)`` of the
            result then sets the device that it runs on.
        prefetch: with ``offload``, the number of blocks whose weights are copied ahead while the
            block before them computes.

    Returns:
        An OptimizedModule, or the pipeline.  The original model is unchanged, but for weights that
        ``SequenceParallel(shard_weights=True)`` divides, and shares its parameters with the result
        (``result.original``).

    Raises:
        OptionError: a pass, preset or backend is unknown, or an argument has a wrong type.
        RecipeError: the recipe cannot be read, or is for another model.
        InputError: the model is in training mode or under hooks, or with ``offload`` its weights
            are not on the host; also see `capture`.
        CaptureError, PassError: see `capture` and the passes.
        LoweringError: ``linear="fp8"`` on a device without FP8.
    """
    kernels, placed = KernelOptions(linear, attention), Offload.of(offload, prefetch)
    settings = Settings(backend, strict, cache_size, kernels, placed)
    _check_spec(spec)
    if recipe is not None and passes:
        raise OptionError("pass either passes or a recipe: the recipe sets the passes")
    if isinstance(passes, Mapping) and not passes:
        raise OptionError("passes={} names no transformer; passes=[] runs every one dense")
    named = passes if isinstance(passes, Mapping) else recipe if by_component(recipe) else None
    if not isinstance(model_or_pipeline, (nn.Module, Program)):
        modules = transformers_of(model_or_pipeline)
        given = passes if recipe is None else recipe
        parts: Any = dict.fromkeys(modules, given) if named is None else named
        chosen = {n: resolve(part) if recipe is None else part for n, part in parts.items()}
        return _optimize_pipeline(
            model_or_pipeline, modules, chosen, example_inputs, spec, settings
        )
    if named is not None:
        raise InputError(
            f"passes by transformer are for a pipeline; got {type(model_or_pipeline).__name__}"
        )
    only: Any = passes
    chosen_once = resolve(only) if recipe is None else recipe
    return _optimize_module(model_or_pipeline, chosen_once, example_inputs, spec, settings)


def _check_spec(spec: object) -> None:
    if spec is not None and not isinstance(spec, ModelSpec):
        raise OptionTypeError(f"spec must be a fisopt.ModelSpec, got {shown(spec)}")


def _optimize_module(
    model: nn.Module | Program,
    chosen: Chosen,
    example_inputs: Mapping[str, Any] | None,
    spec: ModelSpec | None,
    settings: Settings,
    scheduler: Callable[[], Any] | None = None,
) -> OptimizedModule:
    captures, known = None, False
    told: ModelSpec | SpecOf | None = spec
    if isinstance(model, Program):
        captures, known = _captures_of(model, spec), True
        model, told = captures.model, captures.spec
    model = uncompiled(model)
    if isinstance(model, OptimizedModule):
        if told is None or (told == model.spec and model.captures.grid_holds(example_inputs)):
            captures, told = model.captures, model.spec
        model = model.original
        known = told is not None
    check_model(model)
    if told is None:
        told = spec_for(model)
    elif example_inputs is None and not known and not callable(cast("ModelSpec", told).grid):
        raise InputError(
            f"optimize of {type(model).__name__}: example_inputs is missing; a grid of numbers "
            f"({cast('ModelSpec', told).grid}) is that of some inputs: pass the keyword arguments "
            "of one forward call, or give ModelSpec a function as grid, and the first call "
            "supplies them"
        )
    if isinstance(chosen, tuple):
        passes = chosen
    else:
        recipe = Recipe.read(chosen, model)
        passes = recipe.passes
        kernels = settings.kernels.over(recipe.kernels)
        settings = replace(settings, kernels=kernels, tuned=recipe.tuned)
    optimized = OptimizedModule(
        model, passes, told, settings=settings, scheduler=scheduler, captures=captures
    )
    _prepare(optimized, told if isinstance(told, ModelSpec) else None, settings)
    if example_inputs is not None:
        optimized.program(example_inputs)
    return optimized


def _prepare(optimized: OptimizedModule, spec: ModelSpec | None, settings: Settings) -> None:
    """Let passes change the model, after all else was checked."""
    for each in optimized.passes:
        if each.changes_model and settings.offload is not None:
            raise OptionError(
                f"optimize: {each.name} divides the weights among ranks, and offload='block' keeps "
                "them on the host; leave out one of the two"
            )
        each.prepare(optimized.original, spec, optimized.passes)


def _captures_of(program: Program, spec: ModelSpec | None) -> Captures:
    """What is captured of a Program's model.

    Raises:
        OptionError: passes have edited the Program, or the spec is another.
    """
    dense = program.at(program.inputs)
    if structure(program.graph) != structure(dense.graph):
        raise OptionError(
            "optimize: got a Program that passes have edited; pass the Program that `capture` "
            "returned, and the passes as passes=[...]"
        )
    if spec is not None and spec != program.source.spec:
        raise OptionError(
            f"optimize: the Program was captured with {program.source.spec}; leave out spec"
        )
    return Captures.of(dense)


def _optimize_pipeline(
    pipeline: Any,
    modules: Mapping[str, nn.Module],
    chosen: Mapping[str, Chosen],
    example_inputs: Mapping[str, Any] | None,
    spec: ModelSpec | None,
    settings: Settings,
) -> Any:
    if missing := set(chosen) - set(modules):
        raise InputError(
            f"{type(pipeline).__name__} has no {' and no '.join(sorted(missing))}; "
            f"it has {' and '.join(modules)}"
        )

    scheduler = SchedulerOf(pipeline)
    optimized = {
        name: _optimize_module(modules[name], part, example_inputs, spec, settings, scheduler)
        for name, part in chosen.items()
    }
    for name, module in optimized.items():
        setattr(pipeline, name, module)
    return pipeline
