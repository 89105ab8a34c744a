"""Which implementation runs: a kernel, an emitted kernel, or the compiled reference.

On a GPU the candidates, an emitted kernel in each of its cuts, are timed once for each device and
shape class, on random operands, and what was found is remembered in the cache folder.  A candidate
that fails or that disagrees with the reference loses, with a warning.  What was not measured
follows `REGION`, or is the first of an operator's kernels.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from fisopt.codegen.emit import cache as disk
from fisopt.codegen.emit.expression import RefusalError
from fisopt.codegen.emit.kernel import Config, Kernel, emit
from fisopt.codegen.emit.region import Region, find_regions
from fisopt.codegen.emit.stage import with_kernels
from fisopt.codegen.emit.trial import candidates, cuts, shape_class
from fisopt.errors import FileError
from fisopt.reading import MalformedError, read_json

Candidates = Mapping[str, Callable[[], Sequence[Tensor]]]
"""Implementations by name: ``reference``, an operator's kernels, ``emitted`` with its cut."""

MEASURE = "FISOPT_MEASURE"
"""Environment variable: 0 keeps candidates from being timed; what was remembered is used."""

EMIT = "FISOPT_EMIT"
"""Environment variable: 1 lets emitted kernels take part; they are left out otherwise."""

REGION = (
    "reference",
    "not measured on this device; Inductor fuses pointwise chains, norms and gathers itself",
)
"""What runs for a region that was not measured, and why."""

UNMEASURED = "not measured on this device; it avoids work or tables that the reference needs"
"""Why the first of an operator's kernels runs where nothing was measured."""

LEFT_OUT = (
    f"set {EMIT}=1 to try emitted kernels; they gain a few percent over Inductor at most, and "
    "timing them takes longer than compiling"
)
"""Why no region is emitted where it is not asked for."""

ON_CPU = "emitted kernels need an NVIDIA GPU; on a CPU the compiled reference runs"
_UNKEPT: dict[Path, dict[str, dict[str, float]]] = {}
"""Timings that could not be written, by file."""
_ERROR = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Choice:
    """What runs for one operator or region, and why.

    Attributes:
        what: the operator or the emitted kernel.
        chosen: the implementation: ``reference``, a kernel, or ``emitted`` with its cut.
        why: where the choice comes from.
        by: the name of a function that was chosen and may fail, empty if there is none.
    """

    what: str
    chosen: str
    why: str
    by: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.chosen} ({self.why})"


def choose_stage(stage: fx.GraphModule, choices: list[Choice]) -> fx.GraphModule:
    """Return a lowered stage with the kernels that were chosen for its regions.

    Args:
        stage: the stage; returned as it is where no kernel is chosen.
        choices: takes what was chosen for each region, and why.
    """
    device = _device(stage)
    if device.type != "cuda" or os.environ.get(EMIT) != "1":
        reason = LEFT_OUT if device.type == "cuda" else ON_CPU
        every = Choice("every region", "reference", reason)
        if every not in choices:
            choices.append(every)
        return stage
    chosen: list[tuple[Region, Kernel, Config]] = []
    for region in find_regions(stage):
        try:
            kernel = emit(region)
        except RefusalError as refusal:
            name = " and ".join(node.name for node in region.results)
            choices.append(Choice(name, "reference", str(refusal)))
            continue
        choice = decide(
            kernel.name,
            REGION,
            shape_class(kernel, region),
            device,
            lambda region=region, kernel=kernel: candidates(region, kernel, device),  # type: ignore[misc]
        )
        choices.append(choice)
        if config := cuts(kernel).get(choice.chosen):
            chosen.append((region, kernel, config))
    return with_kernels(stage, chosen) if chosen else stage


def choose_operators(
    stage: fx.GraphModule,
    kernels: Collection[Any],
    takers: Callable[[Any, tuple[Any, ...]], tuple[Collection[str], str]],
) -> list[Choice]:
    """What runs for every operator of a stage that has a hand-written kernel.

    Args:
        stage: a lowered stage.
        kernels: the operators that have one.
        takers: the kernels that take some arguments (fake tensors), the best one first, and why
            the others do not.
    """
    choices = []
    for node in stage.graph.nodes:
        if node.target not in kernels:
            continue
        name = f"{node.target.namespace}::{node.target._opname}"
        if (device := _device(stage)).type != "cuda":
            choices.append(Choice(name, "reference", f"kernels need an NVIDIA GPU, not {device}"))
            continue
        values = fx.node.map_arg(node.args, lambda n: n.meta["val"])
        names, refused = takers(node.target, values)
        if not names:
            choices.append(Choice(name, "reference", refused))
            continue
        choice = decide_operator(node.target, values, device, names)
        said = f"{choice.why}; {refused}" if refused else choice.why
        choices.append(replace(choice, why=said))
    return choices


def decide_operator(
    op: Any,
    args: Sequence[Any],
    device: torch.device,
    names: Collection[str],
    candidates: Callable[[], Candidates] | None = None,
) -> Choice:
    """Choose among the kernels of an operator and its reference.

    Args:
        op: the operator.
        args: its arguments; fake tensors will do where nothing is timed.
        device: where it runs.
        names: the kernels that take them; the first one runs where nothing was measured.
        candidates: see `decide`; without them nothing is timed.
    """
    name = f"{op.namespace}::{op._opname}"
    key = operator_key(op, args, names)
    default = next(iter(names))
    if candidates is None and key not in remembered(_file(device)):
        return Choice(name, default, f"{UNMEASURED}; timed at its first call")
    return decide(name, (default, UNMEASURED), key, device, candidates or dict)


def operator_key(op: Any, args: Sequence[Any], names: Collection[str]) -> str:
    """The shape class of an operator's call: kernels, forms of tensors, other arguments."""
    parts = [f"{list(a.shape)} {a.dtype}" if isinstance(a, Tensor) else repr(a) for a in args]
    sizes = "x".join(map(str, args[0].shape))
    form = disk.digest(json.dumps([*names, *parts]))
    return f"{op} {sizes} {form}, torch {torch.__version__}"


def decide(
    what: str,
    default: tuple[str, str],
    key: str,
    device: torch.device,
    candidates: Callable[[], Candidates],
) -> Choice:
    """Choose among the implementations of an operator or a region.

    Args:
        what: its name, for the report.
        default: what runs where nothing was measured, and why.
        key: its shape class; what was measured of one member holds for all.
        device: where it will run.
        candidates: makes the implementations, ``reference`` among them, as calls without
            arguments that return the results; called only if they are to be timed.
    """
    name, reason = default
    if device.type != "cuda":
        return Choice(what, "reference", ON_CPU)
    file = _file(device)
    times = remembered(file).get(key)
    if times is None:
        if os.environ.get(MEASURE) == "0":
            return Choice(what, name, reason)
        try:
            times = measure(candidates(), what)
        except torch.OutOfMemoryError:
            return Choice(what, name, f"{reason}; no memory was left to measure it")
        remember(file, key, times)
    best = min(times, key=times.__getitem__)
    said = ", ".join(f"{name} {time:.0f} us" for name, time in sorted(times.items()))
    return Choice(what, best, f"measured on {device_name(device)}: {said}")


def measure(candidates: Candidates, what: str) -> dict[str, float]:
    """Time candidates; microseconds by name of those that work and agree with the reference."""
    expected = [y.clone() for y in candidates["reference"]()]
    times: dict[str, float] = {}
    for name, run in candidates.items():
        try:
            wrong = _disagreement(run(), expected)
            with torch.cuda.device_of(expected[0]):  # type: ignore[no-untyped-call]
                time = _microseconds(run)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if name == "reference":
                raise
            wrong = f"it fails with {type(error).__name__}: {error}"
        if wrong is None:
            times[name] = time
        else:
            warnings.warn(f"{what}: {name} is not used: {wrong}", RuntimeWarning, stacklevel=2)
    return times


def device_name(device: torch.device) -> str:
    """The model of a GPU."""
    return str(torch.cuda.get_device_name(device))


def remembered(file: Path) -> dict[str, dict[str, float]]:
    """Every timing in a file, none, with a warning, if it is not one; and what was not kept."""
    return _read(file) | _UNKEPT.get(file, {})


def _read(file: Path) -> dict[str, dict[str, float]]:
    try:
        found = read_json(file)
    except MalformedError as error:
        disk.rebuilt(file, f"it is {error}")
        return {}
    except FileError:  # none yet, or none that can be read, which writing will say
        return {}
    if not isinstance(found, dict) or not all(map(_are_times, found.values())):
        disk.rebuilt(file, "it holds no timings")
        return {}
    return found


def remember(file: Path, key: str, times: Mapping[str, float]) -> None:
    """Add timings to a file, or keep them for this process where it cannot be written."""
    known = remembered(file) | {key: dict(times)}
    if not disk.write(file, json.dumps(known, indent=1, sort_keys=True)):
        _UNKEPT[file] = known


def _file(device: torch.device) -> Path:
    name = "".join(c if c.isalnum() else "_" for c in device_name(device))
    return disk.folder() / "choices" / f"{name}.json"


def _are_times(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and "reference" in value
        and all(isinstance(time, (int, float)) for time in value.values())
    )


def _disagreement(got: Sequence[Tensor], expected: Sequence[Tensor]) -> str | None:
    for x, y in zip(got, expected, strict=True):
        if not x.is_floating_point():
            if not torch.equal(x, y):
                return "it disagrees with the reference"
            continue
        error = (x.float() - y.float()).abs().max() / y.float().abs().max().clamp(min=1e-6)
        if not float(error) <= _ERROR.get(x.dtype, 1e-3):
            return f"it disagrees with the reference by {float(error):.1e}"
    return None


def _microseconds(run: Callable[[], object]) -> float:
    """Median time of a call on the GPU, whose cache is empty at its start."""
    from triton.testing import do_bench

    return 1e3 * float(do_bench(run, return_mode="median"))


def _device(stage: fx.GraphModule) -> torch.device:
    """Where a stage computes; numbers that it takes may be on the CPU all the same."""
    values = (node.meta.get("val") for node in stage.graph.nodes)
    places = dict.fromkeys(v.device for v in values if isinstance(v, Tensor))
    return next((d for d in places if d.type != "cpu"), torch.device("cpu"))
