"""Load an artefact: a module that takes the original's place in a pipeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fisopt.artefact import aoti, onnx, pt2
from fisopt.artefact.describe import arranged, structure_text
from fisopt.artefact.manifest import FILE, Manifest
from fisopt.artefact.pt2 import Runner
from fisopt.artefact.sizes import check_sizes
from fisopt.checked import path_of
from fisopt.errors import ExportError, InputError, ScheduleError
from fisopt.recipe.recipe import Recipe
from fisopt.rewrite.inputs import Inputs
from fisopt.rewrite.program import pass_of
from fisopt.runtime.branches import conditioning
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
    ) -> None:
        super().__init__()
        held = self.__dict__
        held["manifest"], held["_runners"] = manifest, dict(runners)
        held["_generation"] = Generation(scheduler)
        held["_output"] = _structure(manifest)
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
                pytree.treespec_loads(call.structure),
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
        kind = getattr(torch, self.manifest.model["dtype"])
        assert isinstance(kind, torch.dtype)
        return kind

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


def load(path: Path | str, scheduler: Any = None) -> LoadedModule:
    """Load what `fisopt.export` wrote, as a module for the same pipeline.

    Args:
        path: the file or the folder.
        scheduler: the pipeline's, whose ``timesteps`` tell the step in pipelines that do not say
            it themselves.

    Raises:
        ExportError: it is not complete, not an artefact, or needs what is not installed.
    """
    path = path_of("load: path", path)
    manifest, folder = read_manifest(path)
    if manifest.format == "text":
        raise ExportError(f"{path} is a graph as text; it has no weights and cannot be run")
    modules: dict[int, nn.Module] = {}
    runners: dict[int, Runner] = {}
    for i, variant in enumerate(manifest.variants):
        file = path if folder is None else folder / variant.file
        if not file.is_file():
            raise ExportError(f"{path}: variant {variant.file} is missing; copy or export it again")
        results = len(manifest.call.results) + len(variant.stores)
        if manifest.format == "onnx":
            runners[i] = onnx.runner(file, results)
        elif manifest.format == "aoti":
            runners[i] = pt2.runner(aoti.load(file))
        else:
            modules[i] = pt2.read(file)
            runners[i] = pt2.runner(modules[i])

    return LoadedModule(manifest, runners, modules, lambda: scheduler)


def read_manifest(path: Path | str) -> tuple[Manifest, Path | None]:
    """The manifest of an artefact, and its folder if it is one.

    Raises:
        ExportError: there is none, or it is not complete.
    """
    path = Path(path)
    recover(path)
    if not path.exists():
        raise ExportError(f"{path} does not exist; wanted what fisopt.export wrote")
    if path.is_dir():
        held = path / FILE
        if not held.is_file():
            raise ExportError(f"{path} is not an artefact of fisopt: no {FILE} in it")
        return Manifest.read(held.read_bytes(), str(path)), path
    with path.open("rb") as file:
        packed = file.read(2) == b"PK"
    text = pt2.manifest_of(path) if packed else onnx.manifest_of(path)
    if text is None:
        raise ExportError(
            f"{path} is not an artefact of fisopt, or not complete: no manifest in it; copy or "
            "export it again"
        )
    return Manifest.read(text, str(path)), None


def _structure(manifest: Manifest) -> pytree.TreeSpec:
    try:
        return pytree.treespec_loads(manifest.call.output)
    except (KeyError, ValueError, NotImplementedError, TypeError) as error:
        raise ExportError(
            f"the artefact returns a type that is not known here: {error}; import the model's "
            "module first"
        ) from error
