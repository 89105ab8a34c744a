"""Guidance branches on two ranks: a call is computed before it is made, and checked when it is.

A pipeline that calls the model once for every branch waits for the first result before it makes
the second call.  So at the first call of a step the second rank computes what it expects the second
call to be, and both results are exchanged; when that call comes, its arguments are compared.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fisopt.errors import PreconditionError
from fisopt.lru import Lru
from fisopt.passes.guidance_parallel import GuidanceParallel, batch_of, video_of
from fisopt.passes.sharding.agreement import together
from fisopt.passes.sharding.group import is_set_up, pair
from fisopt.rewrite.mesh import Share
from fisopt.rewrite.outline import outputs_of
from fisopt.rewrite.program import Program
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.tracing.training import asks_for_gradients
from fisopt.rewrite.variants import Variant
from fisopt.runtime.branches import TIMESTEPS
from fisopt.runtime.generation import Generation
from fisopt.runtime.pair import Pair
from fisopt.runtime.plans import Plans
from fisopt.runtime.seen_inputs import SeenInputs

NAME = GuidanceParallel.__name__
Compute = Callable[[Inputs], Any]


@dataclass(frozen=True)
class _Follower:
    """What was seen of a call that follows another in the same step.

    Attributes:
        branch: its guidance branch, as the pipeline names it.
        own: the inputs that differ from those of the call before, by place.
    """

    branch: str
    own: dict[int, Any]

    def after(self, inputs: Inputs) -> Inputs:
        """The call that is expected to follow another."""
        return inputs.replaced([self.own.get(i, x) for i, x in enumerate(inputs.leaves)])


@dataclass(frozen=True)
class _Known:
    """What is known of calls with inputs of one form.

    Attributes:
        items: in the batch.
        same: names of the inputs that all calls of a step have the same.
        writes: names of those that the model changes in place, or sets entries of.
        results: form and type of what it returns; what is no tensor, itself.
        structure: the nesting of that.
    """

    items: int
    same: tuple[str, ...]
    writes: tuple[str, ...]
    results: tuple[Any, ...]
    structure: pytree.TreeSpec

    @staticmethod
    def of(program: Program) -> _Known:
        """Read it off what was captured."""
        held = outputs_of(program.graph)[: program.out_structure.num_leaves]
        values = (x.meta["val"] if isinstance(x, fx.Node) else x for x in held)
        results = tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in values)
        times = (name for name in program.inputs.names if name in TIMESTEPS)
        writes = (*(w.name for w in program.writes), *(put.name for put in program.puts))
        video = video_of(program)
        same = (*(program.framed if video is None else [video]), *times)
        return _Known(batch_of(program), same, writes, results, program.out_structure)

    def empty(self, device: torch.device) -> list[Any]:
        """Tensors for what a call returns."""
        return [
            torch.empty(x[0], dtype=x[1], device=device) if isinstance(x, tuple) else x
            for x in self.results
        ]


@dataclass
class _State(threading.local):
    """What one thread knows.

    Attributes:
        last: the call before.
        key: what its inputs are like.
        position: its place among the calls of its step.
        ready: what is expected to be called next, and its result.
        followers: what followed calls of some inputs at some place.
    """

    last: SeenInputs | None = None
    key: Any = None
    position: int = 0
    ready: tuple[SeenInputs, Any] | None = None
    followers: Lru[Any, _Follower] = field(default_factory=Lru)


class BranchPairs:
    """The forward calls of one module, shared by two ranks.

    Of the calls of a step, which have the same video and timestep, the first, third and so on are
    the first rank's, the others the second's, so that what a branch leaves for its later steps is
    on one rank.

    Args:
        generation: knows the guidance branch.
        plans: know what is captured, and compare what ranks run.
        model: that is called.
    """

    def __init__(self, generation: Generation, plans: Plans, model: nn.Module) -> None:
        self._generation, self._plans, self._model = generation, plans, model
        self._forms: Lru[Any, _Known] = Lru()
        self._state = _State()

    def run(self, inputs: Inputs, variant: Variant, compute: Compute) -> Any:
        """What a call returns, on both ranks.

        Args:
            inputs: of the call.
            variant: the passes.
            compute: runs a call on this rank alone.

        Raises:
            RankError: the other rank runs something else, or is gone.
            PreconditionError: there are no ranks, gradients are asked for, or the model changes
                its inputs in place.
        """
        known = self._known(inputs)
        if known.items % 2 == 0:  # which the graph divides
            return compute(inputs)
        if not is_set_up():
            raise PreconditionError(
                "torch.distributed is not set up; start the script by torchrun and call "
                "torch.distributed.init_process_group() first",
                pass_name=NAME,
            )
        if (ranks := pair(NAME)) is None:
            return compute(inputs)
        self._check(known, inputs)
        share = Share("branches", ranks.group, ranks.count)
        self._plans.check_among(share, inputs, variant)
        return self._shared(inputs, known, compute, Pair(ranks.group))

    def _shared(self, inputs: Inputs, known: _Known, compute: Compute, both: Pair) -> Any:
        state, last = self._state, self._state.last
        if last is not None and last.differs(inputs, known.same):
            last = None
        state.position = 0 if last is None else state.position + 1
        key, ready = (state.position, inputs.key()), state.ready
        state.ready = None
        wrong = [] if last is None or ready is None else ready[0].differs(inputs)
        if last is not None and ready is not None and not wrong:
            output = ready[1]
        elif last is not None and state.position % 2:
            if wrong:
                self._generation.note(f"{NAME}: a branch came with another {', '.join(wrong)}")
            output = self._alone(inputs, 1, compute, both)
            self._learn(state, last, inputs)
        else:
            if ready is not None:
                self._generation.note(f"{NAME}: a branch that was expected was not called")
                state.followers.pop(state.key, None)
            if (follower := state.followers.get(key)) is None:
                output = self._alone(inputs, 0, compute, both)
            else:
                output, state.ready = self._both(inputs, follower, compute, both)
        state.last, state.key = SeenInputs(inputs), key
        return output

    def _learn(self, state: _State, last: SeenInputs, inputs: Inputs) -> None:
        """Take note of what followed a call; a call of other arguments is not to be expected."""
        if last.inputs.structure == inputs.structure:
            own, kept = set(last.differs(inputs)), SeenInputs(inputs).inputs.leaves
            places = {i: kept[i] for i, name in enumerate(inputs.names) if name in own}
            state.followers[state.key] = _Follower(self._generation.branch, places)

    def _alone(self, inputs: Inputs, owner: int, compute: Compute, both: Pair) -> Any:
        """Compute a call on one rank while the other waits."""
        self._generation.note(f"{NAME}: a call was computed by one rank while the other waited")
        mine = compute(inputs) if both.rank == owner else None
        return self._sent(inputs, owner, mine, both)

    def _both(
        self, inputs: Inputs, follower: _Follower, compute: Compute, both: Pair
    ) -> tuple[Any, tuple[SeenInputs, Any]]:
        """Compute a call and the next one, each on one rank."""
        after = follower.after(inputs)
        seen = SeenInputs(after)
        if both.rank == 0:
            mine = compute(inputs)
        else:
            with self._generation.beside(follower.branch):
                mine = compute(after)
        outputs = [self._sent(x, i, mine, both) for i, x in enumerate((inputs, after))]
        return outputs[0], (seen, outputs[1])

    def _sent(self, inputs: Inputs, owner: int, mine: Any, both: Pair) -> Any:
        """What one of the ranks has computed, on both."""
        known = self._known(inputs)
        if both.rank == owner:
            leaves = pytree.tree_leaves(mine)
        else:
            leaves = known.empty(next(x.device for _, x in inputs.tensors()))
        with together(2):
            for leaf in leaves:
                if isinstance(leaf, Tensor):
                    both.send(leaf.contiguous(), owner)
        return mine if both.rank == owner else pytree.tree_unflatten(leaves, known.structure)

    def _check(self, known: _Known, inputs: Inputs) -> None:
        if asks_for_gradients(self._model, (x for _, x in inputs.tensors())):
            raise PreconditionError(
                "it has no gradient, so nothing can be trained through it; leave it out, or call "
                "the module under torch.no_grad",
                pass_name=NAME,
            )
        if known.writes:
            raise PreconditionError(
                f"{type(self._model).__name__} changes {known.writes[0]!r} in place, which the "
                "rank that does not compute the call would not see; leave it out",
                pass_name=NAME,
            )

    def _known(self, inputs: Inputs) -> _Known:
        key = inputs.key()
        if key not in self._forms:
            self._forms[key] = _Known.of(self._plans.rewritten(inputs, Variant()))
        return self._forms[key]
