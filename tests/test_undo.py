"""`fisopt.restore`: the pipeline has its own transformers again."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

import fisopt
from fisopt import FrameInterleave, InputError
from fisopt.codegen import quantised_weights
from fisopt.codegen.quantised_weights import QuantisedWeights
from tests.runtime.pairs import Pair
from tests.zoo import zoo

pytestmark = pytest.mark.xdist_group("wan")


def pipeline(**more: Any) -> Any:
    held = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
    scheduler = FlowMatchEulerDiscreteScheduler()
    return WanPipeline(**held, scheduler=scheduler, transformer=zoo()["wan"].model, **more)


def test_every_transformer_is_put_back() -> None:
    pipe = pipeline(transformer_2=deepcopy(zoo()["wan"].model), boundary_ratio=0.5)
    before = pipe.transformer, pipe.transformer_2
    fisopt.optimize(pipe, [FrameInterleave()], backend="eager")
    fisopt.optimize(pipe, {"transformer": []}, backend="eager")
    assert fisopt.restore(pipe) is pipe
    assert (pipe.transformer, pipe.transformer_2) == before
    assert fisopt.restore(pipe).transformer is before[0], "there is nothing left to undo"
    assert pipe.components["transformer_2"] is before[1]


def test_what_was_done_meanwhile_stays() -> None:
    pair = Pair()
    compiled: Any = torch.compile(pair.fast, backend="eager")
    _, hook = cpu_offload_with_hook(pair.fast, "cpu")
    torch.nn.init.zeros_(pair.fast.out.weight)
    model: Any = fisopt.restore(compiled)
    assert model is pair.model
    assert model._hf_hook is pair.fast._hf_hook
    hook.remove()
    assert torch.equal(model(**pair.inputs), model.out.bias.expand(1, 4, -1))
    assert fisopt.restore(model) is model


def test_weights_in_eight_bits_are_dropped() -> None:
    pair = Pair()
    weight = pair.model.out.weight
    QuantisedWeights(pair.model)(weight)
    assert weight in quantised_weights._KEPT
    fisopt.restore(pair.fast)
    assert weight not in quantised_weights._KEPT


def test_an_artefact_holds_no_original(tmp_path: Path) -> None:
    pipe, pair = pipeline(), Pair()
    pair.check(changed=False)
    fisopt.export(pair.fast, tmp_path / "dense.pt2")
    pipe.transformer = fisopt.load(tmp_path / "dense.pt2")
    with pytest.raises(InputError, match="loaded from an artefact, which holds no original"):
        fisopt.restore(pipe)
    with pytest.raises(InputError, match="has no transformer"):
        fisopt.restore(7)
