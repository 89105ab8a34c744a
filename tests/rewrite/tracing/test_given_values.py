"""Values of arguments on fake tensors: shapes as in a real run, or an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from fisopt.rewrite.tracing.inputs import Inputs
from fisopt.rewrite.tracing.trials import shape_trials

MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
TEXT = torch.randn(2, 5, 4)


class Model(nn.Module):
    """Runs a function of a text, its mask and a weight."""

    def __init__(self, run: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.run, self.weight = run, nn.Parameter(torch.ones(3))

    def forward(self, text: Tensor, mask: Tensor) -> Any:
        return self.run(text * self.weight[0], mask, self.weight)


def trial(run: Callable[..., Any], mask: Tensor = MASK) -> tuple[Any, ...]:
    model = Model(run).eval().requires_grad_(False)
    inputs = Inputs.of({"text": TEXT.to(mask.device), "mask": mask})
    with shape_trials(model, (), inputs) as trials:
        return trials.run(inputs).results


def _counted(text: Tensor, mask: Tensor, weight: Tensor) -> Any:
    full = torch.zeros(mask.shape, dtype=torch.bool)
    for row, length in enumerate(mask.sum(1)):
        full[row, :length] = True
    return text[full]


def _written(text: Tensor, mask: Tensor, weight: Tensor) -> Any:
    """A view of what is written is read after the write, and holds it."""
    counts = mask.sum(1)
    first = counts[:1]
    counts.fill_(4)
    return text[:, : first.item()]


KNOWN: dict[str, Callable[..., Any]] = {
    "counted": _counted,
    "mask": lambda text, mask, _: text[mask.bool()],
    "mask of a part": lambda text, mask, _: text[:1, mask[0].bool()],
    "nonzero": lambda text, mask, _: text.flatten(0, 1)[mask.flatten().nonzero().flatten()],
    "item": lambda text, mask, _: text[:, : int(mask.sum(1).max())],
    "branch": lambda text, mask, _: text[:1] if bool((mask == 0).any()) else text,
    "equal": lambda text, mask, _: text[:1] if torch.equal(mask, mask.clone()) else text,
    "repeated": lambda text, mask, _: text[0].repeat_interleave(mask[0] + 1, 0),
    "written": _written,
    "shape": lambda text, mask, _: text[:, : torch.tensor(text.shape).max() - 2],
}


@pytest.mark.parametrize("run", KNOWN.values(), ids=KNOWN)
def test_sizes_are_those_of_the_call(run: Callable[..., Any]) -> None:
    before = MASK.clone()
    want = run(TEXT, MASK.clone(), torch.ones(3))
    assert trial(run) == (tuple(want.shape),)
    assert want.shape != TEXT.shape
    assert torch.equal(MASK, before)


def _half_known(text: Tensor, mask: Tensor, weight: Tensor) -> Any:
    counts = mask.sum(1).float()
    view = counts[:1]
    counts.copy_(weight[:2])
    return text[:, : int(view.item())]


UNKNOWN: dict[str, Callable[..., Any]] = {
    "weight": lambda text, mask, weight: text[:, : int(weight.sum())],
    "both": lambda text, mask, weight: text[:, : int((mask[0, :3] * weight).sum())],
    "written": _half_known,
    "random": lambda text, mask, weight: text[:, : int(torch.rand(1) + 1)],
    "sized": lambda text, mask, weight: text[weight.nonzero()],
}


@pytest.mark.parametrize("run", UNKNOWN.values(), ids=UNKNOWN)
def test_what_follows_from_weights_or_chance_is_not_known(run: Callable[..., Any]) -> None:
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        trial(run)


def test_arguments_without_values() -> None:
    with pytest.raises(DataDependentOutputException):
        trial(KNOWN["item"], MASK.to("meta"))
