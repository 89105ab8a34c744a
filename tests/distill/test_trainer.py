"""The loop: losses fall, a run that goes on is one without a break, what is not finite stops it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fisopt import InputError, OptionError
from fisopt.distill import Trainer, Training

GOAL = torch.tensor([1.0, -2.0, 3.0])


class Problem:
    """Three numbers that are to be found under noise."""

    def __init__(self, training: Training, broken: int | None = None) -> None:
        self.numbers = nn.Parameter(torch.zeros(3))
        self.broken = broken
        self.trainer = Trainer({"numbers": self.numbers}, self.losses, training)

    def losses(self, step: int, generator: torch.Generator) -> Iterator[Tensor]:
        noise = 0.1 * torch.randn(3, generator=generator)
        for half in (0.5, 0.5):
            yield half * (self.numbers + noise - GOAL).square().mean()
        if step == self.broken:
            yield self.numbers.sum() * torch.nan


def training(**options: object) -> Training:
    made: Training = Training(**{"steps": 60, "rate": 0.2, **options})  # type: ignore[arg-type]
    return made


def test_losses_fall_and_the_average_is_near() -> None:
    problem = Problem(training(average=0.8))
    first = None
    problem.trainer.advance()
    first = problem.trainer.loss
    problem.trainer.run()
    assert problem.trainer.step == 60
    assert problem.trainer.loss < 0.5 * first
    assert float((problem.trainer.average["numbers"] - GOAL).abs().max()) < 0.3


def test_the_sum_of_micro_batches_is_one_batch() -> None:
    """Two micro-batches of equal losses make the step that one makes."""
    one, two = Problem(training(steps=1)), Problem(training(steps=1, accumulate=2))
    one.trainer.run()
    two.trainer.run()
    torch.testing.assert_close(one.numbers, two.numbers)


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole, begun = Problem(training()), Problem(training())
    whole.trainer.run()
    while begun.trainer.step < 25:
        begun.trainer.advance()
    begun.trainer.save(tmp_path / "state.pt")
    again = Problem(training())
    assert again.trainer.resume(tmp_path / "state.pt")
    assert again.trainer.step == 25
    again.trainer.run()
    assert torch.equal(again.numbers, whole.numbers)
    assert torch.equal(again.trainer.average["numbers"], whole.trainer.average["numbers"])
    assert again.trainer.loss == whole.trainer.loss


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    problem, sound = Problem(training(), broken=7), Problem(training())
    with pytest.raises(InputError, match=r"the loss is nan at step 7 .*use a lower rate, got 0.2"):
        problem.trainer.run()
    while sound.trainer.step < 7:
        sound.trainer.advance()
    assert problem.trainer.step == 7
    assert torch.equal(problem.numbers, sound.numbers)
    assert problem.numbers.grad is None


def test_a_state_of_another_run(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    assert not Problem(training()).trainer.resume(path)
    Problem(training()).trainer.save(path)
    with pytest.raises(InputError, match=r"is of another run, which has not \{'rate': '0.1'\}"):
        Problem(training(rate=0.1)).trainer.resume(path)
    path.write_bytes(b"no state")
    with pytest.raises(InputError, match="is no state of a training run"):
        Problem(training()).trainer.resume(path)


def test_longer_training_goes_on(tmp_path: Path) -> None:
    """How long it trains is no part of what a run is."""
    path = tmp_path / "state.pt"
    short = Problem(training(steps=5))
    short.trainer.run()
    short.trainer.save(path)
    longer = Problem(training(steps=8))
    longer.trainer.resume(path)
    longer.trainer.run()
    assert longer.trainer.step == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": None}, "wanted steps or minutes"),
        ({"steps": 0}, "steps: got 0, wanted 1 or more"),
        ({"rate": 0}, "rate: got 0, wanted a number over 0"),
        ({"minutes": float("inf")}, "minutes: got inf"),
        ({"batch": 1.5}, "batch: got 1.5"),
        ({"lr": 1}, "has no option 'lr'"),
    ],
)
def test_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        training(**options)


def test_nothing_to_train() -> None:
    with pytest.raises(InputError, match="no parameter to train"):
        Trainer({}, lambda *_: [], training())
