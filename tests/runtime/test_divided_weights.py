"""Weights that torch's fully_shard has divided: gathered stage by stage, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

import fisopt
from fisopt import InputError, OptionError, OptionTypeError, PreconditionError
from fisopt.passes.sharding.collectives import Ranks
from fisopt.passes.sharding.group import UNBOUND
from fisopt.passes.sharding.weights import shard_weights
from fisopt.rewrite.tracing.inner import stored
from tests.runtime.pairs import SPEC, Small, build, video
from tests.runtime.test_parallel import ran


@pytest.fixture
def alone() -> Iterator[Any]:
    """A mesh of one rank: what it divides is whole, and gathered all the same."""
    store = distributed.HashStore()
    distributed.init_process_group("cpu:gloo", store=store, rank=0, world_size=1)
    yield distributed.DeviceMesh("cpu", [0])
    distributed.destroy_process_group()


def divided(mesh: Any, **options: Any) -> Small:
    model = build()
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, **options)
    return model


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_equal_with_divided_weights(
    backend: Any, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda stage, **_: stage)
    passes, inputs = [fisopt.FrameInterleave(blocks=":", stride=2)], video(5)
    want = fisopt.optimize(build(), passes, spec=SPEC, backend="eager")(**inputs)
    model = divided(alone)
    fast = fisopt.optimize(model, passes, spec=SPEC, backend=backend)
    assert torch.equal(fast(**inputs), want)
    assert "weights: gathered from 1 rank " in str(fast.report)
    assert "hooks run on" not in str(fast.report)
    assert isinstance(model.layers[0].qkv.weight, DTensor), "they stay divided"
    with torch.no_grad():
        for layer in model.layers:
            layer.qkv.bias.zero_()
        changed = fast(**inputs)
        assert torch.equal(changed, fisopt.optimize(fast, passes, backend="eager")(**inputs))
    assert not torch.equal(changed, want), "they are read at every call"


def test_divided_after_the_first_call(alone: Any) -> None:
    model, inputs = build(), video()
    fast = fisopt.optimize(model, [], spec=SPEC, backend="eager")
    want = fast(**inputs)
    for layer in model.layers:
        fully_shard(layer, mesh=alone)
    assert torch.equal(fast(**inputs), want)
    assert len(fast.report.changes) == 1, "captured anew, and said"
    assert "weights: gathered from 1 rank " in str(fast.report)


def test_what_no_graph_does_is_refused(alone: Any, tmp_path: Path) -> None:
    whole = divided(alone)
    fully_shard(whole, mesh=alone)
    with pytest.raises(InputError, match="divided by fully_shard as a whole"):
        fisopt.optimize(whole, [], spec=SPEC, backend="eager")(**video())
    cast = divided(alone, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    with pytest.raises(InputError, match=r"layers\.0 is divided by fully_shard with Mixed"):
        fisopt.optimize(cast, [], spec=SPEC, backend="eager")(**video())
    cast = divided(alone, mp_policy=MixedPrecisionPolicy(output_dtype=torch.bfloat16))
    with pytest.raises(InputError, match="casts at every call"):
        fisopt.optimize(cast, [], spec=SPEC, backend="eager")(**video())
    with pytest.raises(InputError, match="ranks divide its weights already"):
        fisopt.optimize(divided(alone), [], spec=SPEC, backend="eager", offload="block")
    fast = fisopt.optimize(divided(alone), [], spec=SPEC, backend="eager")
    fast(**video())
    with pytest.raises(fisopt.ExportError, match="holds a part of its weights on each rank"):
        fisopt.export(fast, tmp_path / "model.pt2")
    fast.original.layers.requires_grad_(True)
    with pytest.raises(InputError, match="which gradients do not reach"):
        fast(**video())


def test_what_cannot_be_divided_is_refused(alone: Any) -> None:
    with pytest.raises(PreconditionError, match=r"before its first call; say it: optimize"):
        fisopt.optimize(build(), [fisopt.SequenceParallel(shard_weights=True)])
    with pytest.raises(OptionTypeError, match="shard_weights must be a bool, got 1"):
        fisopt.SequenceParallel(shard_weights=1)  # type: ignore[arg-type]
    ranks = Ranks(1, distributed.group.WORLD.group_name)  # type: ignore[union-attr]
    for odd in (torch.zeros(3, device="meta"), torch.zeros(3, dtype=torch.float8_e4m3fn)):
        layers = build().layers
        layers[1].mlp.bias = nn.Parameter(odd, requires_grad=False)
        with pytest.raises(PreconditionError, match=r"1\.mlp\.bias is a Parameter of"):
            shard_weights(layers, {"1": layers[1]}, ranks, "SequenceParallel")
        assert type(layers[1].qkv.weight) is nn.Parameter, "nothing was divided"


def test_weights_that_are_one_are_not_made_two(alone: Any) -> None:
    ranks = Ranks(1, distributed.group.WORLD.group_name)  # type: ignore[union-attr]
    model = build()
    model.out.weight = model.layers[1].mlp.weight
    blocks = {f"layers.{i}": layer for i, layer in enumerate(model.layers)}
    with pytest.raises(PreconditionError, match=r"mlp\.weight and out\.weight are one weight"):
        shard_weights(model, blocks, ranks, "SequenceParallel")
    with pytest.raises(PreconditionError, match="names no module as a block"):
        shard_weights(model, {}, ranks, "SequenceParallel")


def test_blocks_in_blocks_are_divided_once(alone: Any) -> None:
    ranks = Ranks(1, distributed.group.WORLD.group_name)  # type: ignore[union-attr]
    model = build()
    layer = model.layers[0]
    for _ in range(2):
        shard_weights(
            model, {"layers.0": layer, "layers.0.mlp": layer.mlp}, ranks, "SequenceParallel"
        )
    assert all(isinstance(x, DTensor) for x in layer.parameters())
    assert not isinstance(layer.mlp, FSDPModule)
    model(**video())
    assert all(isinstance(x, DTensor) for x in layer.parameters()), (
        "its own call gathers and lets go"
    )


def test_what_divides_is_refused_beside_offload_before_it_divides(alone: Any) -> None:
    model = build()
    both = fisopt.SequenceParallel(shard_weights=True)
    with pytest.raises(OptionError, match="leave out one of the two"):
        fisopt.optimize(model, [both], spec=SPEC, offload="block")
    assert type(model.layers[0].qkv.weight) is nn.Parameter


def test_a_group_that_is_only_looked_at_divides_nothing() -> None:
    layer = build().layers[0]
    shard_weights(layer, {"layers.0": layer}, Ranks(2, UNBOUND), "SequenceParallel")
    assert type(layer.qkv.weight) is nn.Parameter


def test_bytes_are_those_of_the_part(alone: Any) -> None:
    assert stored(divided(alone).layers[0].qkv.weight) == stored(build().layers[0].qkv.weight)


@pytest.mark.parametrize("kind", ["wan", pytest.param("hunyuan_video", marks=pytest.mark.slow)])
def test_two_processes_hold_half_each(kind: str) -> None:
    for _, said, error in ran("shard_pair", [kind, "eager"], 2):
        assert said, error[-2000:]
        told = json.loads(said.splitlines()[-1])
        assert max(told["errors"]) < 1e-5
        assert told["held"] == pytest.approx(0.5, abs=0.01)
        assert "weights: gathered from 2 ranks" in told["report"]
        assert "do not run the same: weight" in told["said"]
        assert "divided among the ranks [0, 1], and the tokens among none" in told["said"]
