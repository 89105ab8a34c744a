"""The summary of a pipeline: what runs at each step, how long it takes, memory, what fell back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from torch import nn

from fisopt.checked import checked
from fisopt.codegen.placement import Held
from fisopt.overview.clip import Named, Taken, newest_clip
from fisopt.overview.rate import rate
from fisopt.overview.table import rendered
from fisopt.pipelines import transformers_of
from fisopt.rewrite.tracing.inner import stored
from fisopt.rewrite.tracing.readiness import uncompiled
from fisopt.runtime.optimized import OptimizedModule


@dataclass(frozen=True)
class StepSummary:
    """What one transformer ran at a denoising step of the newest clip.

    Attributes:
        step: the step.
        transformer: its name in the pipeline.
        passes: the passes that were active; none at a dense step.
        calls: how many calls it was, one for each guidance branch or batch of them.
        speed_up: predicted, over the dense step.
        predicted_ms: FLOPs at the rate of a large product on the device; None if unknown.
        measured_ms: of all its calls; None if one was mostly capturing or compiling.
    """

    step: int
    transformer: str
    passes: tuple[str, ...]
    calls: int
    speed_up: float
    predicted_ms: float | None
    measured_ms: float | None


@dataclass(frozen=True)
class TransformerSummary:
    """One transformer of a pipeline.

    Attributes:
        name: its name in the pipeline.
        model: its class.
        optimised: whether it is; the rest is empty if not.
        backend: who compiles.
        passes: the passes, in order.
        kernels: which kernels were asked for, by option.
        variants: token grid, passes and share of the dense FLOPs of what is held.
        weights: bytes of its weights by device.
        allocated: the most bytes that the process has allocated, by GPU.
        offload: where weights stay on the host, the bytes of them on its device: the most at one
            time (``peak``), and of all blocks together (``total``).
        recaptured: what has changed in the model, with how often.
        fallbacks: what was left dense or ran otherwise than asked for, with how often.
        dropped: how many variants made room for newer ones.
    """

    name: str
    model: str
    optimised: bool
    backend: str
    passes: tuple[str, ...]
    kernels: dict[str, str]
    variants: tuple[dict[str, Any], ...]
    weights: dict[str, int]
    allocated: dict[str, int]
    offload: dict[str, Any] | None
    recaptured: dict[str, int]
    fallbacks: dict[str, int]
    dropped: int


@dataclass(frozen=True)
class Summary:
    """The result of `fisopt.summary`; ``print`` shows a table, `to_json` returns all of it.

    Attributes:
        transformers: the transformers.
        steps: the steps of the newest clip, in order.
        tflops: the rate that predicted times assume, by transformer; None if unknown.
    """

    transformers: tuple[TransformerSummary, ...]
    steps: tuple[StepSummary, ...]
    tflops: dict[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return json.loads(self.to_json())  # type: ignore[no-any-return]

    def to_json(self, indent: int | None = 2) -> str:
        """Everything as JSON."""
        return json.dumps(asdict(self), indent=indent)

    def __rich__(self) -> Any:
        return rendered(self.to_dict())

    def __str__(self) -> str:
        console = Console(width=120, no_color=True, highlight=False)
        with console.capture() as text:
            console.print(self)
        return text.get().rstrip()


@checked
def summary(model_or_pipeline: Any) -> Summary:
    """Summarise what runs in a pipeline or one optimised module, and how long it takes.

    Times are those of the newest clip; `summary` waits until the GPU has finished it.

    Raises:
        InputError: there is no transformer.
    """
    if isinstance(model_or_pipeline, nn.Module):
        found: Mapping[str, nn.Module] = {"transformer": model_or_pipeline}
    else:
        found = transformers_of(model_or_pipeline)
    modules = {name: uncompiled(module) for name, module in found.items()}
    optimised = {n: m for n, m in modules.items() if isinstance(m, OptimizedModule)}
    calls = [Named(n, c, c.time) for n, m in optimised.items() for c in m.calls]
    rates = {name: _rate(module) for name, module in optimised.items()}
    return Summary(
        tuple(_transformer(name, module) for name, module in modules.items()),
        tuple(row for taken in newest_clip(calls) for row in _rows(taken, rates)),
        {name: None if found is None else found / 1e12 for name, found in rates.items()},
    )


def _rate(module: OptimizedModule) -> float | None:
    inputs = module.last_inputs
    tensor = None if inputs is None else next((x for _, x in inputs.tensors()), None)
    weight = next((p for p in module.original.parameters() if p.is_floating_point()), None)
    if tensor is None or weight is None:
        return None
    device = module.report.weights.device or tensor.device
    return rate(torch.device(device), getattr(module.original, "dtype", weight.dtype))


def _rows(taken: Taken, rates: Mapping[str, float | None]) -> Iterable[StepSummary]:
    """What ran at a step: one row for each transformer and each set of passes."""
    groups: dict[tuple[str, tuple[str, ...]], list[Named]] = {}
    for each in taken.calls:
        groups.setdefault((each.name, each.call.made.passes), []).append(each)
    for (name, passes), calls in groups.items():
        work = sum(x.call.made.work for x in calls)
        dense = sum(x.call.made.work / x.call.made.density for x in calls)
        times = [x.call.milliseconds for x in calls]
        known = [x for x in times if x is not None]
        per_second = rates[name]
        yield StepSummary(
            taken.index,
            name,
            passes,
            len(calls),
            dense / max(work, 1.0),
            None if per_second is None else 1e3 * work / per_second,
            sum(known) if len(known) == len(times) else None,
        )


def _transformer(name: str, module: nn.Module) -> TransformerSummary:
    weights: Counter[str] = Counter()
    for x in (*module.parameters(), *module.buffers()):
        weights[str(x.device)] += stored(x)
    placed = module.report.weights if isinstance(module, OptimizedModule) else Held()
    devices = dict.fromkeys([*weights, *([placed.device] if placed.device else [])])
    gpus = [d for d in devices if torch.device(d).type == "cuda"]
    allocated = {d: torch.cuda.max_memory_allocated(d) for d in gpus}
    held = (dict(weights), allocated, asdict(placed) if placed.total else None)
    if not isinstance(module, OptimizedModule):
        return TransformerSummary(
            name, type(module).__name__, False, "", (), {}, (), *held, {}, {}, 0
        )
    report, options = module.report, module.options
    kernels = {"linear": options.linear, "attention": options.attention}
    variants = [
        {"tokens": str(v.layout), "passes": list(v.passes), "density": v.density}
        for v in report.variants
    ]
    return TransformerSummary(
        name,
        type(module).__name__,
        True,
        report.backend,
        tuple(map(repr, module.passes)),
        {k: getattr(v, "__name__", str(v)) for k, v in kernels.items() if v is not None},
        tuple(variants),
        *held,
        report.recaptures,
        report.fallbacks,
        report.dropped,
    )
