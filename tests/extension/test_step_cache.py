"""A user's step cache: what the blocks add is reused every second step, or while little moves."""

from dataclasses import dataclass, replace
from typing import Any

import torch

import fisopt
from tests import plain_dit

add, sub, norm = (getattr(torch.ops.aten, n) for n in ("add", "sub", "linalg_vector_norm"))


@dataclass(frozen=True)
class StepCache(fisopt.Pass):
    threshold: float = 0.0
    reuse: bool = False
    stepwise: bool = True  # type: ignore[misc]

    def at(self, step: fisopt.Step) -> fisopt.Pass:
        little = step.measured.get("moved", 99.0) < self.threshold
        return replace(self, reuse=little if self.threshold else step.index % 2 == 1)

    def run(self, rewriter: fisopt.Rewriter) -> None:
        first, last = rewriter.program.blocks[0], rewriter.program.blocks[-1].call
        x = last.meta["val"]
        now = before = first.passed(first.stream)
        with rewriter.after(last):
            if self.reuse:
                before, added = (rewriter.load(n, x.shape, x.dtype, x.device) for n in ("x", "dx"))
                rewriter.replace_uses(last, rewriter.call(add.Tensor, now, added))
            else:
                rewriter.store("x", now)
                rewriter.store("dx", rewriter.call(sub.Tensor, last, now))
            moved = rewriter.call(norm.default, rewriter.call(sub.Tensor, now, before))
            rewriter.measure("moved", moved)


def test_step_cache() -> None:
    """What blocks add is a linear map away from what they add to the model's result."""
    spec = fisopt.ModelSpec(("layers.*",), grid=lambda call: (call["video"].shape[1] // 2, 1, 2))
    fast = model = plain_dit.build(plain_dit.FORMS["fused"])
    for threshold, full in ((0.0, {0, 1, 4, 5, 8, 9}), (2.0, {0, 1, 5, 8, 9})):
        fast = fisopt.optimize(fast, [StepCache(threshold)], spec=spec, backend="eager")
        branches: dict[str, dict[str, Any]] = {"cond": {}, "uncond": {}}
        with fast.generation(num_steps=6):
            for i, (branch, held) in enumerate(6 * list(branches.items())):
                call = plain_dit.inputs(plain_dit.FORMS["fused"], 3, 1, 2)
                call["video"] *= 1 + (i // 2) * (0.3 if branch == "uncond" else 0.1)
                reuse = held.get("moved", 99.0) < threshold if threshold else i // 2 % 2 == 1
                now, whole = model.embed(call["video"]), model(**call)["video"]
                if not reuse:
                    held.update(now=now, added=whole - model.unembed(now))
                held["moved"] = float((now - held["now"]).norm())
                with fast.cache_context(branch, step_index=i // 2):
                    got = fast(**call)["video"]
                torch.testing.assert_close(got, model.unembed(now) + held["added"])
                assert reuse == (i not in full)
        assert not fast.report.notes
