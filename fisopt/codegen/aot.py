"""Ahead-of-time compilation: what a kernel becomes on a GPU that is not here.

Needs Triton and no driver.  The cubin is read with the tools that Triton ships.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import ASTSource, make_backend
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.jit import JITFunction, create_function_from_signature

from fisopt.codegen.kernels.launching import Launch
from fisopt.codegen.sass import async_copies, instructions, main_loop, tensor_core
from fisopt.errors import LoweringError
from fisopt.files import scratch

SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes of shared memory that one program may take, by compute capability times ten."""
ARCHITECTURES = tuple(SHARED_LIMIT)
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True)
class Compiled:
    """What one kernel became.

    Attributes:
        registers: of a thread.
        spilled: bytes of local memory of a thread; 0 if all its values are in registers.
        shared: bytes of shared memory of a program.
        tensor_core: tensor-core instructions by name: HMMA up to sm_89, HGMMA (wgmma) on sm_90,
            UTC*MMA (tcgen05) on sm_100.
        async_copies: instructions that copy to shared memory while others compute: LDGSTS, and
            UTMALDG of the tensor memory accelerator.
        instructions: all instructions.
        loop: instructions, waits and barriers of one turn of the main loop, see
            `fisopt.codegen.sass.main_loop`.
    """

    registers: int
    spilled: int
    shared: int
    tensor_core: dict[str, int]
    async_copies: dict[str, int]
    instructions: int
    loop: dict[str, int]


def compile_ahead(launch: Launch, architecture: int) -> Compiled:
    """Compile the kernel of a call for an architecture such as 90 for sm_90.

    Raises:
        LoweringError: the kernel takes more shared memory than the architecture has, or kernels
            are interpreted in this process.
    """
    if not isinstance(launch.kernel, JITFunction):
        raise LoweringError(
            f"{launch.kernel} is interpreted; compile in a process without TRITON_INTERPRET"
        )
    source, options = _source(launch, GPUTarget("cuda", architecture, 32))
    return compile_source(source, options, architecture, f"{source.name} with {launch.config}")


def compile_source(
    source: ASTSource, options: dict[str, Any], architecture: int, what: str
) -> Compiled:
    """Compile a kernel whose types are known; ``what`` names it in errors.

    Raises:
        LoweringError: see `compile_ahead`.
    """
    target = GPUTarget("cuda", architecture, 32)
    built = triton.compile(source, target=target, options=options)
    shared = int(built.metadata.shared)
    if shared > SHARED_LIMIT[architecture]:
        raise LoweringError(
            f"{what} takes {shared} bytes of shared memory, sm_{architecture} has "
            f"{SHARED_LIMIT[architecture]}; take smaller blocks"
        )
    return _read(built.asm["cubin"], shared)


def _source(launch: Launch, target: GPUTarget) -> tuple[Any, dict[str, Any]]:
    """The source with the types and the specialisation that a launch of the same call has."""
    kernel, backend = launch.kernel, make_backend(target)
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    kwargs = {**launch.constants, **launch.config.all_kwargs(), "debug": False}
    bound, specialization, given = binder(*launch.arguments, **kwargs)
    options, signature, constexprs, attrs = kernel._pack_args(
        backend, given, bound, specialization, given
    )
    made = GluonASTSource if kernel.is_gluon() else ASTSource
    return made(kernel, signature, constexprs, attrs), options.__dict__


def _read(cubin: bytes, shared: int) -> Compiled:
    with scratch(cubin, ".cubin") as file:
        usage = _USAGE.search(_tool("cuobjdump", "-res-usage", str(file)))
        code = instructions(_tool("cuobjdump", "-sass", str(file)))
    if usage is None:
        raise LoweringError("cuobjdump does not say what the kernel uses; was its output changed?")
    registers, stack, _, local = map(int, usage.groups())
    found = (tensor_core(code), async_copies(code), len(code), main_loop(code))
    return Compiled(registers, stack + local, shared, *found)


def _tool(name: str, *args: str) -> str:
    """Run one of the binary tools that Triton ships."""
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.exists():
        raise LoweringError(f"{path} is missing; install Triton's own wheel (fisopt[triton])")
    return subprocess.run([path, *args], check=True, capture_output=True, text=True).stdout
