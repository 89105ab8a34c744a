"""Compile: a Program as a fast callable, each distinct stage compiled once."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Hashable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import fx, nn

from fisopt.codegen.attentions import use_attention
from fisopt.codegen.bindings import KERNELS, takers
from fisopt.codegen.checkpointed import asks_for_checkpoints, checkpoint_blocks
from fisopt.codegen.choose import Choice, choose_operators, choose_stage
from fisopt.codegen.gathering import gather, sharded
from fisopt.codegen.kernel_options import KernelOptions
from fisopt.codegen.linears import holds_fp8, use_fp8
from fisopt.codegen.lower import lower
from fisopt.codegen.offload import offload
from fisopt.codegen.partly_masked import split_masks
from fisopt.codegen.placement import Placement, compute_on
from fisopt.codegen.told_attention import with_told
from fisopt.codegen.weights import bind_weights
from fisopt.errors import LoweringError
from fisopt.rewrite.outline import structure
from fisopt.rewrite.program import Program

Backend = Literal["inductor", "eager"]
BACKENDS: tuple[Backend, ...] = ("inductor", "eager")
Runnable = Callable[..., Sequence[Any]]


def compile_program(
    program: Program,
    backend: Backend,
    compiled: MutableMapping[Hashable, Runnable] | None = None,
    choices: list[Choice] | None = None,
    *,
    options: KernelOptions = KernelOptions(),  # noqa: B008 - it cannot change
    training: bool = False,
    placement: Placement | None = None,
) -> Runnable:
    """Return a callable from a Program's tensor inputs and state to its flat results.

    With ``inductor`` every distinct stage (head, each block shape, tail) is compiled once by
    torch.compile with ``fullgraph=True`` and static shapes; isomorphic blocks share the code.
    With ``eager`` the Program's own graph runs, or where options ask for kernels the stages as
    they are.

    Args:
        program: what to compile.
        backend: who compiles it.
        compiled: the stages that other Programs have compiled, used again and added to.
        choices: takes which implementation was chosen for what, and why.
        options: which kernels are asked for; attention that they leave open is what diffusers was
            told.
        training: leave out emitted kernels, which have no gradient; and where the model says
            ``gradient_checkpointing``, have blocks run again for theirs.
        placement: the device that it runs on while its weights stay on the host; None runs it
            where they are.
    """
    model = program.source.model
    chosen: list[Choice] = [] if choices is None else choices
    if not training:
        options, said = with_told(options, model)
        chosen += said
    if backend == "eager":
        asks = options.rounds or options.attends or placement is not None or sharded(model)
        module = (
            lowered(program, options, chosen, placement) if asks else program.copy().graph_module
        )
        return _bound(module, model, training)
    module = staged(program, compiled, chosen, options, training=training, placement=placement)
    return _bound(module, model, training)


def staged(
    program: Program,
    compiled: MutableMapping[Hashable, Runnable] | None,
    choices: list[Choice],
    options: KernelOptions,
    *,
    training: bool = False,
    placement: Placement | None = None,
) -> fx.GraphModule:
    """A lowered Program whose stages Inductor compiles when they are first called.

    Args:
        program: what to compile.
        compiled: stages that are used again and added to.
        choices: takes what was chosen.
        options: which kernels are asked for.
        training: leave out what has no gradient.
        placement: the device that it runs on while its weights stay on the host.

    Raises:
        LoweringError: there is no compiler; see `lowered`.
    """
    if not torch.cuda.is_available() and not has_compiler():
        raise LoweringError(
            "backend='inductor' needs a C++ compiler and Python's headers on a CPU and found "
            "none; install them (gcc and python3-dev) or pass backend='eager'"
        )
    module = lowered(program, options, choices, placement, split=not training)
    known = {} if compiled is None else compiled
    for name, callee in list(module.named_children()):
        if isinstance(callee, fx.GraphModule):
            choices += choose_operators(callee, KERNELS, takers)
            emits = not (training or holds_fp8(callee))  # it would cut norms off their rounding
            callee = choose_stage(callee, choices) if emits else callee
            key = structure(callee.graph) if not _holds_tensors(callee) else object()
            if (stage := known.get(key)) is None:  # held here: the caller may hold it weakly
                stage = known[key] = torch.compile(callee, fullgraph=True, dynamic=False)
            setattr(module, name, stage)
    return module


def _bound(module: fx.GraphModule, model: nn.Module, training: bool) -> Runnable:
    if training and asks_for_checkpoints(model):
        checkpoint_blocks(module)
    return bind_weights(module, model)


def lowered(
    program: Program,
    options: KernelOptions,
    choices: list[Choice],
    placement: Placement | None = None,
    *,
    split: bool = False,
) -> fx.GraphModule:
    """Lower a Program to the kernels that are asked for; what is chosen is added to a list.

    Args:
        program: what to lower.
        options: which kernels are asked for.
        choices: takes what was chosen.
        placement: the device that it runs on while its weights stay on the host.
        split: attend apart to the few keys that a mask speaks of, where nothing else is asked for.

    Raises:
        LoweringError: see `lower` and `use_fp8`.
    """
    module = lower(program, [split_masks()] if split and options.attention is None else [])
    if placement is not None:
        compute_on(module, placement.device)
    if options.attends:
        choices.append(use_attention(module, options.attention))
    if options.rounds:
        choices.append(use_fp8(module, program.source.model, simulate=options.simulates))
    if placement is not None:
        offload(module, placement)
    elif (gathered := gather(module, program.source.model)) is not None:
        choices.append(gathered)
    return module


def _holds_tensors(callee: fx.GraphModule) -> bool:
    """Whether a stage reads tensors of its own, so that its structure does not say all."""
    return any(node.op == "get_attr" for node in callee.graph.nodes)


def has_compiler() -> bool:
    """Whether Inductor finds the C++ compiler and the Python headers that it needs on a CPU."""
    from torch._inductor import cpp_builder, exc  # over a second: not at import

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError):
        return False
    return (Path(sysconfig.get_path("include")) / "Python.h").is_file()
