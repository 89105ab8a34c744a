"""A loaded artefact: a module that takes the original's place in a pipeline."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fisopt.artefact.describe import arranged
from fisopt.artefact.manifest import DTYPES, Manifest
from fisopt.artefact.pt2 import Runner
from fisopt.artefact.sizes import check_sizes
from fisopt.concurrency import running
from fisopt.errors import InputError, ScheduleError
from fisopt.passes.sharding.agreement import together
from fisopt.recipe.recipe import Recipe
from fisopt.rewrite.program import pass_of
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.runtime.branches import Held, conditioning
from fisopt.runtime.caller import CallersScheduler
from fisopt.runtime.generation import Generation
from fisopt.stored.tree import structure_of, structure_text


class LoadedModule(nn.Module):
    """An exported model, as a module that replaces the original; made by `fisopt.load`.

    It has the original's forward signature and return type, ``config``, ``dtype``, ``device`` and
    ``cache_context``. It detects steps and guidance branches as an optimised module does. Calls run
    without gradients.

    Attributes:
        manifest: the artefact's description: format, shapes, passes and files.
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
        output: pytree.TreeSpec,
    ) -> None:
        super().__init__()
        held = self.__dict__
        held["manifest"], held["_runners"] = manifest, dict(runners)
        held["_generation"] = Generation(CallersScheduler(self, scheduler))
        held["_output"] = output
        for index, module in modules.items():
            self.add_module(f"variant_{index}", module)
        self.requires_grad_(False)
        held["training"] = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; arguments and return value are the original's.

        Raises:
            InputError: an argument differs from the exported one and must not.
            RankError: another rank of the group is gone.
            ScheduleError: the step is not known, or not in the exported schedule.
        """
        call = self.manifest.call
        inputs = self._bound(args, kwargs)
        values = [x.contiguous() for _, x in inputs.tensors()]  # a package reads past others
        check_sizes(self.manifest, values)
        index = self._variant(inputs)
        variant = self.manifest.variants[index]
        held = Held()
        if variant.loads or variant.stores or self._generation.holds:
            shapes = tuple(tuple(x.shape) for x in values)
            held = self._generation.held(shapes, lambda: conditioning(inputs, call.framed))
        if not held.state.keys() >= set(variant.loads):  # all that load do it, in one variant
            place = self._generation.place(inputs.kwargs())
            for name in dict.fromkeys(map(pass_of, variant.loads)):
                self._generation.note(f"{name} ran afresh at {place}")
            index, variant = variant.afresh, self.manifest.variants[variant.afresh]
        named = {t.name: x for t, x in zip(call.tensors, values, strict=True)}
        named |= {t.name: held.state[n] for t, n in zip(variant.state, variant.loads, strict=True)}
        with running(), together(math.prod(share.count for share in self.manifest.mesh)):
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
            raise InputError(f"{name}: got {', '.join(twice)} twice, by position and by name")
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
        """Counted events of generations: which passes ran without earlier state, and where."""
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
        """The device of the export; ONNX Runtime runs on the CPU and takes any tensors."""
        runs_here = self.manifest.format == "onnx"
        return torch.device("cpu" if runs_here else self.manifest.model["device"])

    @property
    def recipe(self) -> Recipe:
        """The passes, and the model that they are for.

        Raises:
            RecipeError: this process does not know one of the passes.
        """
        return Recipe.from_plain(self.manifest.recipe, "the artefact's recipe")

    @contextmanager
    def cache_context(self, name: str, **said: Any) -> Iterator[None]:
        """One guidance branch's forward call, as diffusers pipelines announce it."""
        with self._generation.context(name, **said):
            yield

    def generation(self, num_steps: int) -> AbstractContextManager[None]:
        """Declare that the calls inside belong to one generation of ``num_steps`` steps."""
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
                f"an artefact keeps the dtype and device of its export: got {there.dtype} on "
                f"{there.device}, it is {here.dtype} on {here.device}; move the original model "
                "and export it again"
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
