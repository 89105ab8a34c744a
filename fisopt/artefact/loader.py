"""Load an artefact: a module that takes the original's place in a pipeline."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fisopt.artefact import aoti, onnx, onnx_file, pt2
from fisopt.artefact.describe import arranged
from fisopt.artefact.digests import check_beside, check_variant
from fisopt.artefact.manifest import DTYPES, FILE, Manifest
from fisopt.artefact.pt2 import Runner
from fisopt.artefact.sizes import check_sizes
from fisopt.artefact.tree import structure_of, structure_text
from fisopt.checked import choice, path_of
from fisopt.errors import ExportError, FileError, InputError, ScheduleError
from fisopt.reading import opened, read_bytes
from fisopt.recipe.recipe import Recipe
from fisopt.rewrite.inputs import Inputs
from fisopt.rewrite.program import pass_of
from fisopt.runtime.branches import conditioning
from fisopt.runtime.caller import CallersScheduler
from fisopt.runtime.generation import Generation
from fisopt.staging import recover


class LoadedModule(nn.Module):
    """An artefact in the place of the model that it was exported from; made by `fisopt.load`.

    It has the original's forward signature and return type, ``config``, ``dtype``, ``device``
    and ``cache_context``, and tells steps and guidance branches as an optimised module does.
    Calls run without gradients.

    Attributes:
        manifest: what the artefact is.
    """

    manifest: Manifest
    _runners: dict[int, Runner]
    _generation: Generation
    _output: pytree.TreeSpec

    def __init__(
        self,
        manifest: Manifest,
        runners: Mapping[int, Runner],
        modules: Mapping[int, nn.Module],
        scheduler: Callable[[], Any],
        output: pytree.TreeSpec | None = None,
    ) -> None:
        super().__init__()
        held = self.__dict__
        held["manifest"], held["_runners"] = manifest, dict(runners)
        held["_generation"] = Generation(CallersScheduler(self, scheduler))
        held["_output"] = structure_of(manifest.call.output) if output is None else output
        for index, module in modules.items():
            self.add_module(f"variant_{index}", module)
        self.requires_grad_(False)
        held["training"] = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; arguments and return value are the original's.

        Raises:
            InputError: an argument differs from what was exported where it may not.
            ScheduleError: the step is not known, or not in the exported schedule.
        """
        call = self.manifest.call
        inputs = self._bound(args, kwargs)
        values = [x.contiguous() for _, x in inputs.tensors()]  # a package reads past others
        check_sizes(self.manifest, values)
        index = self._variant(inputs)
        variant = self.manifest.variants[index]
        held: dict[str, Tensor] = {}
        if variant.loads or variant.stores or self._generation.holds:
            shapes = tuple(tuple(x.shape) for x in values)
            held = self._generation.held(shapes, lambda: conditioning(inputs, call.framed))
        if missing := [name for name in variant.loads if name not in held]:
            place = self._generation.place(inputs.kwargs())
            for name in dict.fromkeys(map(pass_of, missing)):
                self._generation.note(f"{name} ran afresh at {place}")
            index, variant = variant.afresh, self.manifest.variants[variant.afresh]
        named = {t.name: x for t, x in zip(call.tensors, values, strict=True)}
        named |= {t.name: held[n] for t, n in zip(variant.state, variant.loads, strict=True)}
        returned = self._runners[index](named)
        count = len(call.results)
        self._generation.keep(held, dict(zip(variant.stores, returned[count:], strict=True)))
        return pytree.tree_unflatten(returned[:count], self._output)

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Inputs:
        """The arguments by name, checked against those of the exported call."""
        call, name = self.manifest.call, self.manifest.model["class"]
        if len(args) > len(call.parameters):
            raise InputError(
                f"{name} takes {len(call.parameters)} arguments, got {len(args)}: "
                f"{', '.join(call.parameters)}"
            )
        given = dict(zip(call.parameters, args, strict=False))
        if twice := sorted(given.keys() & kwargs.keys()):
            raise InputError(f"{name}: got {', '.join(twice)} twice, by place and by name")
        full = arranged({**given, **kwargs}, call.parameters, call.defaults)
        inputs = Inputs.of(full)
        leaves = zip(inputs.names, inputs.leaves, strict=True)
        got = [(n, None if isinstance(x, Tensor) else [x]) for n, x in leaves]
        if structure_text(inputs.structure) != call.structure or len(got) != len(call.leaves):
            wanted = pytree.tree_unflatten(
                ["tensor" if x is None else x[0] for x in call.leaves],
                structure_of(call.structure),
            )
            shown = pytree.tree_map(lambda x: "tensor" if isinstance(x, Tensor) else x, full)
            raise InputError(f"{name}: got {shown}; it was exported for {wanted}")
        for (leaf, value), wanted in zip(got, call.leaves, strict=True):
            if value != wanted:
                raise InputError(
                    f"{name}: got {leaf}={'a tensor' if value is None else repr(value[0])}; it "
                    f"was exported for {'a tensor' if wanted is None else repr(wanted[0])}: "
                    "export it for this call"
                )
        return inputs

    def _variant(self, inputs: Inputs) -> int:
        """Position of the variant of the current step."""
        manifest = self.manifest
        if manifest.steps is None:
            return manifest.schedule[0]
        step = self._generation.step(inputs.kwargs())
        if not 0 <= step.index < manifest.steps or step.count not in (None, manifest.steps):
            raise ScheduleError(
                f"step {step.index}" + (f" of {step.count}" if step.count else "") + f" is not in "
                f"the schedule of {manifest.steps} steps that was exported; run that many, or "
                "export with steps= for this run"
            )
        return manifest.schedule[step.index]

    @property
    def notes(self) -> Counter[str]:
        """What happened in generations, and how often: passes that ran afresh and where."""
        return self._generation.notes

    @property
    def config(self) -> Any:
        """The original's configuration."""
        from diffusers.configuration_utils import FrozenDict  # over a second: not at import

        return FrozenDict(self.manifest.model["config"])  # type: ignore[no-untyped-call]

    @property
    def dtype(self) -> torch.dtype:
        """The original's type."""
        return DTYPES[self.manifest.model["dtype"]]

    @property
    def device(self) -> torch.device:
        """Where it was exported; ONNX Runtime runs on the CPU and takes tensors of any device."""
        runs_here = self.manifest.format == "onnx"
        return torch.device("cpu" if runs_here else self.manifest.model["device"])

    @property
    def recipe(self) -> Recipe:
        """The passes, and the model that they are for.

        Raises:
            RecipeError: a pass is not known in this process.
        """
        return Recipe.from_plain(self.manifest.recipe, "the artefact's recipe")

    @contextmanager
    def cache_context(self, name: str, **said: Any) -> Iterator[None]:
        """One guidance branch's forward call, as diffusers pipelines announce it."""
        with self._generation.context(name, **said):
            yield

    def generation(self, num_steps: int) -> AbstractContextManager[None]:
        """Say that the calls inside belong to one generation of ``num_steps`` steps."""
        return self._generation.generation(num_steps)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LoadedModule:
        """What `to`, `half` and the like do: refused where it would change anything.

        Raises:
            InputError: the type or the device is another; the graphs hold both as constants.
        """
        del recurse
        here = torch.empty(0, dtype=self.dtype, device=self.device)
        there = fn(here)
        moved = there.device != here.device and self.manifest.format != "onnx"
        if there.dtype != here.dtype or moved:
            raise InputError(
                f"an artefact stays as it was exported: got {there.dtype} on {there.device}, it is "
                f"{here.dtype} on {here.device}; move the model it was made from and export it"
            )
        return self

    def train(self, mode: bool = True) -> LoadedModule:
        """Stay in inference mode; an artefact cannot be trained."""
        if mode:
            raise InputError("an artefact cannot be trained; train the model it was made from")
        return self

    def extra_repr(self) -> str:
        """Name the original and the passes."""
        passes = [p["name"] for p in self.manifest.recipe["passes"]]
        return f"{self.manifest.model['class']}, {self.manifest.format}, passes={passes}"


Trust = Literal["data", "code"]
"""Whether what a file holds is data, or may be code as well."""
Check = Literal["digests", "none"]
"""Whether an artefact must be what its manifest says."""


@dataclass(frozen=True)
class Artefact:
    """What is known of an artefact before it runs.

    Attributes:
        path: where it is.
        manifest: what it is.
        files: the file of every variant.
        output: the nesting of what it returns.
    """

    path: Path
    manifest: Manifest
    files: tuple[Path, ...]
    output: pytree.TreeSpec


def load(
    path: Path | str, scheduler: Any = None, *, trust: Trust = "data", check: Check = "digests"
) -> LoadedModule:
    """Load what `fisopt.export` wrote, as a module for the same pipeline.

    Loading reads data: nothing in the files is unpickled, evaluated, imported or run, and the
    graph calls operators of ATen and fisopt only.

    Args:
        path: the file or the folder.
        scheduler: whose ``timesteps`` tell the step in a loop of your own; in a pipeline that
            holds the module beside a scheduler, that one does.
        trust: "code" for an artefact that holds code, and that comes from somebody you trust: a
            package of AOTInductor, which is native code; operators of other libraries; results in
            classes of your own.
        check: "digests" compares every part with the manifest; "none" reads what is there.

    Raises:
        OptionError: ``trust`` or ``check`` is another word.
        ExportError: it is not complete, not an artefact, was changed, holds code, or needs what
            is not installed.
    """
    path = path_of("load: path", path)
    if path.suffix == onnx.SUFFIX:
        onnx.require_runtime()
    held = examined(path, trust=trust, check=check)
    manifest = held.manifest
    if manifest.format == "text":
        raise ExportError(f"{path} is a graph as text; it has no weights and cannot be run")
    modules: dict[int, nn.Module] = {}
    runners: dict[int, Runner] = {}
    with _as_export_error():
        for i, file in enumerate(held.files):
            if manifest.format == "onnx":
                runners[i] = onnx.runner(file, manifest, i)
            elif manifest.format == "aoti":
                runners[i] = pt2.runner(aoti.load(file))
            else:
                modules[i] = pt2.read(file, manifest, i, any_library=trust == "code")
                runners[i] = pt2.placed(modules[i])
    return LoadedModule(manifest, runners, modules, lambda: scheduler, held.output)


def examined(path: Path, *, trust: Trust = "data", check: Check = "digests") -> Artefact:
    """Read all of an artefact but its weights, and compare it with its manifest; see `load`."""
    choice("trust", trust, get_args(Trust))
    choice("check", check, get_args(Check))
    checked, any_code = check == "digests", trust == "code"
    manifest, folder = read_manifest(path, checked=checked)
    if manifest.format == "aoti" and not any_code:
        raise ExportError(
            f"{path} is a package of AOTInductor, which is native code: if you trust where it "
            "comes from, load it with trust='code' (--trust code)"
        )
    if folder is None and len(manifest.variants) > 1:
        raise ExportError(
            f"{path} is one of {len(manifest.variants)} variants; load the folder that it is from"
        )
    output = _checked_structures(manifest, path, any_code)
    files = tuple(path if folder is None else folder / v.file for v in manifest.variants)
    with _as_export_error():
        for i, (variant, file) in enumerate(zip(manifest.variants, files, strict=True)):
            if not file.is_file():
                raise ExportError(
                    f"{path}: variant {variant.file} is missing; copy or export it again"
                )
            if checked:
                check_variant(manifest, variant, file)
            if manifest.format == "pt2":
                pt2.check(file, manifest, i, any_library=any_code)
        if checked and folder is not None:
            check_beside(manifest, folder)
    return Artefact(path, manifest, files, output)


def read_manifest(path: Path | str, *, checked: bool = True) -> tuple[Manifest, Path | None]:
    """The manifest of an artefact, and its folder if it is one.

    Args:
        path: the file or the folder.
        checked: whether the manifest's own digest must be right.

    Raises:
        ExportError: there is none, it is not complete, or it was changed.
    """
    path = Path(path)
    with _as_export_error():
        recover(path)
        if not os.path.lexists(path):
            raise ExportError(f"{path} does not exist; wanted what fisopt.export wrote")
        if os.path.isdir(path):
            held = path / FILE
            if not held.is_file():
                raise ExportError(f"{path} is not an artefact of fisopt: no {FILE} in it")
            return Manifest.read(read_bytes(held), str(path), checked=checked), path
        with opened(path) as file:
            archive = file.read(2) == b"PK"
        text = pt2.manifest_of(path) if archive else onnx_file.manifest_of(path)
    if text is None:
        raise ExportError(
            f"{path} is not an artefact of fisopt, or not complete: no manifest in it; copy or "
            "export it again"
        )
    return Manifest.read(text, str(path), checked=checked), None


def _checked_structures(manifest: Manifest, path: Path, any_class: bool) -> pytree.TreeSpec:
    """The nesting of the results; that of the arguments is read too."""
    call = manifest.call
    taken = structure_of(call.structure, any_class=any_class)
    output = structure_of(call.output, any_class=any_class)
    if taken.num_leaves != len(call.leaves) or output.num_leaves != len(call.results):
        raise ExportError(
            f"{path}: the manifest is malformed: wanted a nesting of {len(call.leaves)} arguments "
            f"and of {len(call.results)} results"
        )
    return output


@contextmanager
def _as_export_error() -> Iterator[None]:
    """Of a file that cannot be read say that it is no artefact that can be loaded."""
    try:
        yield
    except FileError as error:
        raise ExportError(str(error)) from error
