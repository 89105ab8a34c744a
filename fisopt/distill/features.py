"""A student whose blocks are compared with its teacher's, call by call."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fisopt.distill.block_outputs import KEPT
from fisopt.distill.conditions import Conditions
from fisopt.distill.denoiser import Denoiser
from fisopt.errors import InputError

TINY = 1e-8
"""Where a block is exact its distance still has a gradient."""


class Compared(Denoiser):
    """A student that also says how far its blocks are from the teacher's at the same latents.

    Args:
        student: it runs a module with `BlockOutputs` among its passes.
        teacher: the same.
        weight: of the distance, beside that of the velocity.
    """

    def __init__(self, student: Denoiser, teacher: Denoiser, weight: float) -> None:
        super().__init__(student.module, student.levels, student.guidance, student.precision)
        self.teacher, self.weight = teacher, weight
        self.compared = 0

    def at(self, latents: Tensor, step: int, given: Conditions) -> Tensor:
        """The velocity at a step; ``beside`` then is about this call.

        Raises:
            InputError: no block can be compared at any step of a walk.
        """
        wanted: dict[str, Tensor] = {}
        got: dict[str, Tensor] = {}
        with torch.no_grad(), self.teacher.module.watch(wanted.update):
            self.teacher.at(latents.detach(), step, given)
        with self.module.watch(got.update):
            velocity = super().at(latents, step, given)
        far = apart(got, wanted)
        self.compared = len(far) + (self.compared if step else 0)
        if not self.compared and step == self.levels.steps - 1:
            raise InputError(
                "distill: features: no block of the student returns values of the teacher's "
                "shape or a known part of them; leave features out"
            )
        self.beside = self.weight * torch.stack(far).mean() if far else None
        return velocity


def apart(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[Tensor]:
    """How far each block is from its teacher's: root mean square of the difference, relative.

    Args:
        got: what `BlockOutputs` measured of the student, of a part of the video or of all.
        wanted: of the teacher.
    """
    far = []
    for name, x in got.items():
        if name.endswith(f"/{KEPT}"):
            continue
        whole, kept = wanted[name].detach(), got.get(f"{name}/{KEPT}")
        if kept is not None:
            sizes = zip(x.shape, whole.shape, strict=True)
            (dim,) = (d for d, (a, b) in enumerate(sizes) if a != b)
            whole = whole.index_select(dim, kept)
        error = (x.float() - whole.float()).square().mean()
        far.append(((error + TINY**2) / (whole.float().square().mean() + TINY**2)).sqrt())
    return far
