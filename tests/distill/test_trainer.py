"""The loop: losses fall, a run that goes on is one without a break, what is not finite stops it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from torch import Tensor, nn

from fisopt import InputError, OptionError
from fisopt.distill import Trainer, Training
from fisopt.distill import trainer as trainer_module
from fisopt.errors import RankError

GOAL = torch.tensor([1.0, -2.0, 3.0])


class Problem:
    """Three numbers that are to be found under noise."""

    def __init__(self, training: Training, broken: int | None = None) -> None:
        self.numbers = nn.Parameter(torch.zeros(3))
        self.broken, self.noise = broken, 0.1
        self.trainer = Trainer({"numbers": self.numbers}, self.losses, training)

    def losses(self, step: int, generator: torch.Generator) -> Iterator[Tensor]:
        noise = self.noise * torch.randn(3, generator=generator)
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
    one.noise = two.noise = 0.0
    one.trainer.run()
    two.trainer.run()
    torch.testing.assert_close(one.numbers, two.numbers)


def _open(rank: int, folder: Path) -> None:
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)


def _run(part: Callable[[int, Path], None], folder: Path) -> None:
    """Run a function in two processes."""
    context = multiprocessing.get_context("fork")
    parts = [context.Process(target=part, args=(rank, folder)) for rank in range(2)]
    for each in parts:
        each.start()
    for each in parts:
        each.join(60)
        if each.exitcode is None:
            each.kill()
    assert [each.exitcode for each in parts] == [0, 0]


def _part(rank: int, folder: Path) -> None:
    _open(rank, folder)
    problem = Problem(training(steps=5))
    problem.trainer.run()
    torch.save((problem.numbers.detach(), problem.trainer.loss), folder / f"{rank}.pt")
    problem.trainer.save(folder / f"state{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    _run(_part, tmp_path)
    alone = Problem(training(steps=5, accumulate=2))
    alone.trainer.run()
    for rank in range(2):
        numbers, loss = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(numbers, alone.numbers.detach())
        assert loss == pytest.approx(alone.trainer.loss)
    assert (tmp_path / "state0.pt").is_file()
    assert not (tmp_path / "state1.pt").exists()


def _timed(rank: int, folder: Path) -> None:
    _open(rank, folder)
    ticks = count()
    trainer_module.time = SimpleNamespace(perf_counter=lambda: next(ticks) * (1.0 + rank))
    problem = Problem(training(steps=None, minutes=0.1))
    problem.trainer.run()
    torch.save((problem.numbers.detach(), problem.trainer.step), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_share_one_clock(tmp_path: Path) -> None:
    """By its own the second, which has twice the seconds, would end after half of the steps."""
    _run(_timed, tmp_path)
    (numbers, step), (others, same) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert step == same == 6
    assert torch.equal(numbers, others)


def _unlike(rank: int, folder: Path) -> None:
    _open(rank, folder)
    problem = Problem(training(steps=1))
    problem.numbers.data += rank
    with pytest.raises(RankError, match="numbers has other values in 1 of 2 processes"):
        problem.trainer.run()
    problem.numbers.data -= rank
    problem.trainer.step = rank
    with pytest.raises(RankError, match=f"process {rank} begins at step {rank}, and not all"):
        problem.trainer.run()
    torch.distributed.destroy_process_group()


def test_processes_that_begin_unlike(tmp_path: Path) -> None:
    _run(_unlike, tmp_path)


def _launched(folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    problem = Problem(training(steps=5))
    problem.trainer.run()
    torch.save(problem.numbers.detach(), folder / f"{accelerator.process_index}.pt")


def test_accelerate_opens_the_group(tmp_path: Path) -> None:
    """Under its launcher two processes are known, and each does its share."""
    debug_launcher(_launched, (tmp_path,), num_processes=2)
    alone = Problem(training(steps=5, accumulate=2))
    alone.trainer.run()
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone.numbers.detach())


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


def test_eight_bits(tmp_path: Path) -> None:
    """Large parameters only have states of 8 bits, and what is saved is taken up again."""
    goal = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))

    def made(steps: int) -> Trainer:
        weight = nn.Parameter(torch.zeros(64, 128))
        told = training(optimiser="adamw-8bit", steps=steps, warmup=2)
        return Trainer({"weight": weight}, lambda *_: [(weight - goal).square().mean()], told)

    with torch.compiler.set_stance("force_eager"):
        whole, begun, again = made(30), made(12), made(30)
        whole.run()
        state = next(iter(whole.optimizer.state.values()))
        assert "8bit" in type(state["exp_avg"]).__name__
        begun.run()
        begun.save(tmp_path / "state.pt")
        again.resume(tmp_path / "state.pt")
        again.run()
    assert again.step == 30
    for part in (again, whole):
        assert float((part.parameters["weight"] - goal).square().mean()) < 0.1


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
    with pytest.raises(
        InputError, match=r"state of another run: rate: there 0.2, here 0.1; choose"
    ):
        Problem(training(rate=0.1)).trainer.resume(path)
    path.write_bytes(b"no state")
    with pytest.raises(InputError, match="is not the state of a training run"):
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
        ({"optimiser": "sgd"}, "optimiser must be one of"),
        ({"average": 1.0}, "average: got 1.0, wanted a number from 0 to under 1"),
        ({"average": -0.1}, "average: got -0.1"),
        ({"average": float("nan")}, "average: got nan"),
        ({"precision": "bf16"}, "precision: got 'bf16', wanted a dtype such as torch.bfloat16"),
        ({"precision": torch.int8}, "precision: got torch.int8"),
        (
            {"precision": torch.float16},
            r"precision: got torch.float16, .* wanted torch.bfloat16, or None for float32",
        ),
        ({"precision": torch.float8_e5m2}, "precision: got torch.float8_e5m2, .* wanted"),
        ({"lr": 1}, "has no option 'lr'"),
    ],
)
def test_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        training(**options)


def test_nothing_to_train() -> None:
    with pytest.raises(InputError, match="no parameter to train"):
        Trainer({}, lambda *_: [], training())


def test_weights_of_few_bits() -> None:
    """At a rate of 2e-5 a weight of 1 would stay what it is in bfloat16."""
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    message = r"got weight of torch.bfloat16, wanted float32: .* call \.float\(\) .*precision="
    with pytest.raises(InputError, match=message):
        Trainer({"weight": weight}, lambda *_: [], training())
