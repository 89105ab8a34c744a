"""Ranks that share a clip run the same thing: it is compared, and a rank that is lost is named."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

from torch import nn

from fisopt.passes.sharding.agreement import (
    are_processes,
    compare,
    digest,
    sampled_weights,
    together,
)
from fisopt.passes.sharding.group import check_backend
from fisopt.rewrite.mesh import Share
from fisopt.rewrite.program import Program
from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.variants import Variant


class SameRanks:
    """Compares what the ranks of a group run, once a clip for every guidance branch.

    Args:
        model: the model.
        clip: returns something that is one and the same object within one generation, None where
            nothing tells.
        branch: returns the name of the guidance branch that is being run.
        kernels: how it is run, in words.
    """

    def __init__(
        self, model: nn.Module, clip: Callable[[], Any], branch: Callable[[], str], kernels: str
    ) -> None:
        self._model, self._clip, self._branch, self._kernels = model, clip, branch, kernels
        self._local = threading.local()

    def check(self, program: Program, inputs: Inputs, variant: Variant) -> None:
        """Compare a call with those of the other ranks.

        Raises:
            RankError: a rank runs something else, or is gone.
        """
        for share in program.mesh:
            if share.of != "branches":
                self.check_among(share, inputs, variant)

    def check_among(self, share: Share, inputs: Inputs, variant: Variant) -> None:
        """Compare a call with those of some other ranks.

        Raises:
            RankError: a rank runs something else, or is gone; or their process group has no backend
                for the device.
        """
        if not are_processes(share.group):
            return
        if not self._is_new((share, self._branch(), variant, inputs.key())):
            return
        check_backend(share.group, next(x.device for _, x in inputs.tensors()))
        facts = {
            "passes": str([p for p in variant.passes if p.stage not in ("branches", "ranks")]),
            "kernels": self._kernels,
            "weights": sampled_weights(self._model),
            **{f"input {inputs.names[i]!r}": digest(x) for i, x in inputs.tensors()},
        }
        with together(share.count):
            compare(facts, share.group)

    def _is_new(self, call: Hashable) -> bool:
        """Whether such a call is the first of its clip; of all, where nothing tells clips apart."""
        local, clip = self._local, self._clip()
        if not hasattr(local, "seen") or (clip is not None and clip is not local.clip):
            local.clip, local.seen = clip, set()
        new = call not in local.seen
        local.seen.add(call)
        return new
