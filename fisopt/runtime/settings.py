"""How a model is run, beside its passes: what `fisopt.optimize` is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from fisopt.checked import choice, count, flag
from fisopt.codegen.compile import BACKENDS, Backend
from fisopt.codegen.kernel_options import KernelOptions
from fisopt.codegen.placement import Offload
from fisopt.lru import SIZE
from fisopt.recipe.tuned import UNTUNED, Tuned


@dataclass(frozen=True)
class Settings:
    """How a model is run; see `fisopt.optimize`.

    Attributes:
        backend: who compiles.
        strict: whether what a pass cannot be applied to is an error.
        cache_size: how many plans are kept.
        kernels: which kernels are asked for.
        offload: what is said of weights that stay on the host, None if they need not.
        tuned: what the passes were tuned for, if they were.
    """

    backend: Backend = "inductor"
    strict: bool = True
    cache_size: int = SIZE
    kernels: KernelOptions = field(default_factory=KernelOptions)
    offload: Offload | None = None
    tuned: Tuned = field(default_factory=lambda: UNTUNED)

    def __post_init__(self) -> None:
        choice("backend", self.backend, BACKENDS)
        flag("strict", self.strict)
        count("cache_size", self.cache_size)
