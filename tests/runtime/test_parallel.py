"""Processes that make a clip together over gloo: equal to one, and errors that say what is wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

import fisopt
from fisopt.passes.sharding.agreement import together
from fisopt.passes.sharding.group import check_backend
from tests.runtime.parallel_worker import clip

ROOT = Path(__file__).parents[2]
LONGEST = 600
"""Seconds until processes that do not end are a failure."""


def ran(module: str, arguments: list[str], ranks: int) -> list[tuple[int, str, str]]:
    """The exit status of some processes, and what they print and report."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"tests.runtime.{module}", *arguments],
            env={**os.environ, **shared, **paths, "RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=LONGEST) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *each) for p, each in zip(processes, said, strict=True)]


def start(folder: Path, kind: str, ranks: int = 2) -> list[str]:
    """Let processes make a clip; returns what each was told."""
    ends = ran("parallel_worker", [str(folder), kind], ranks)
    told = [folder / f"said_{rank}.txt" for rank in range(ranks)]
    for path, (status, _, error) in zip(told, ends, strict=True):
        assert path.exists() or status == 9, error[-2000:]
    return [path.read_text() if path.exists() else "killed" for path in told]


def same_clip(folder: Path, ranks: int) -> None:
    """Every process has made the clip that one alone makes: 60 dB and more."""
    pipe = fisopt.models.testbed.load_testbed()
    fisopt.optimize(pipe, passes=[fisopt.FrameInterleave(stride=2)], backend="eager")
    want = clip(pipe)
    for rank in range(ranks):
        got = torch.load(folder / f"clip_{rank}.pt")
        assert (got - want).square().mean().log10() * -10 >= 60
        assert not torch.equal(want, torch.zeros_like(want))


def test_a_lost_rank_is_named() -> None:
    with (
        pytest.raises(fisopt.RankError, match="the other ranks of its 4 in vain"),
        together(4),
    ):
        raise RuntimeError("[pair.cc:538] Connection closed by peer [127.0.0.1]:31337")
    with pytest.raises(RuntimeError, match="shapes do not match"), together(4):
        raise RuntimeError("shapes do not match")


def test_a_backend_that_is_not_there() -> None:
    """A group that sends what is on the CPU alone."""
    store = distributed.HashStore()
    distributed.init_process_group("cpu:gloo", store=store, rank=0, world_size=1)
    try:
        group = distributed.group.WORLD.group_name  # type: ignore[union-attr]
        check_backend(group, torch.device("cpu"))
        with pytest.raises(fisopt.RankError, match=r"of a cuda device: .* is of cpu:gloo"):
            check_backend(group, torch.device("cuda"))
    finally:
        distributed.destroy_process_group()


def test_a_process_that_ends_is_told_to_the_other() -> None:
    (_, said, error), (status, _, _) = ran("rank_pair", ["lost"], 2)
    assert status == 9
    assert said.startswith("rank 0 waited for the other ranks of its 2 in vain"), error[-2000:]


def test_processes_of_other_weights_are_told() -> None:
    for _, said, error in ran("rank_pair", ["differ"], 2):
        wanted = "do not run the same: weights is 11 on rank 1 and 00 on rank 0"
        assert wanted in said, error[-2000:]


@pytest.mark.slow
def test_two_processes(tmp_path: Path, one_testbed: None) -> None:
    assert start(tmp_path, "eager") == ["", ""]
    same_clip(tmp_path, 2)


@pytest.mark.slow
def test_two_processes_compiled(tmp_path: Path, one_testbed: None) -> None:
    assert start(tmp_path, "inductor") == ["", ""]
    same_clip(tmp_path, 2)


@pytest.mark.slow
def test_four_processes_make_two_clips(tmp_path: Path, one_testbed: None) -> None:
    assert start(tmp_path, "degree", 4) == [""] * 4
    same_clip(tmp_path, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "ranks"),
    [
        ("guidance", 2),
        ("guidance, inductor", 2),
        ("guidance and tokens", 4),
        ("guidance, tokens and weights", 4),
        ("weights", 2),
    ],
)
def test_processes_of_one_branch_each(
    kind: str, ranks: int, tmp_path: Path, one_testbed: None
) -> None:
    assert start(tmp_path, kind, ranks) == [""] * ranks
    same_clip(tmp_path, ranks)


@pytest.mark.slow
def test_a_process_that_ends(tmp_path: Path) -> None:
    first, other = start(tmp_path, "killed")
    assert other == "killed"
    assert "rank 0 waited for the other ranks of its 2 in vain" in first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "differs"), [("prompts", "input 'encoder_hidden_states'"), ("passes", "passes")]
)
def test_processes_that_differ(kind: str, differs: str, tmp_path: Path) -> None:
    for said in start(tmp_path, kind):
        assert f"do not run the same: {differs} is" in said
        assert "on rank 1 and" in said
