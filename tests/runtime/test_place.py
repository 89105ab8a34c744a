"""In the original's place: its class, its state, for tools that look at either."""

from __future__ import annotations

import copy
import inspect
import io
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from diffusers import FlowMatchEulerDiscreteScheduler, ModelMixin, WanPipeline
from torch import nn

import fisopt
from fisopt import FrameInterleave, InputError, OptimizedModule
from tests.runtime import pairs
from tests.runtime.pairs import SPEC, Pair, Small
from tests.zoo import zoo


@pytest.fixture
def pair() -> Pair:
    return Pair()


@pytest.fixture
def pipe() -> Any:
    held = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipe = WanPipeline(**held, scheduler=scheduler, transformer=zoo()["wan"].model)
    return fisopt.optimize(pipe, [FrameInterleave()], backend="eager")


def test_class_and_state_are_the_original_s(pair: Pair) -> None:
    fast, model = pair.fast, pair.model
    assert isinstance(fast, OptimizedModule)
    assert isinstance(fast, Small)
    assert (type(fast).__name__, type(fast).__module__) == ("Small", Small.__module__)
    assert inspect.signature(fast.forward) == inspect.signature(model.forward)
    assert list(fast.children()) == list(model.children())
    assert dict(fast.named_modules()).keys() == dict(model.named_modules()).keys()
    assert fast.state_dict().keys() == model.state_dict().keys()
    fast.note = "said"
    assert model.note == "said"
    del fast.note
    assert not hasattr(model, "note")
    assert fast.half() is fast
    assert next(model.parameters()).dtype == torch.float16


@pytest.mark.parametrize("name", ["compile", "compile_repeated_blocks"])
def test_what_would_do_nothing_is_refused(pipe: Any, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} of an optimised WanTransformer3DModel"):
        getattr(pipe.transformer, name)()
    pipe.transformer.enable_gradient_checkpointing()
    assert pipe.transformer.original.is_gradient_checkpointing
    pipe.transformer.disable_gradient_checkpointing()


def test_a_pipeline_saves_the_original(pipe: Any, tmp_path: Path) -> None:
    assert isinstance(pipe.transformer, ModelMixin)
    for transformer in (pipe.transformer, pipe.transformer.original):
        pipe.transformer = transformer
        pipe.save_pretrained(tmp_path)
        index = json.loads((tmp_path / "model_index.json").read_text())
        assert index["transformer"] == ["diffusers", "WanTransformer3DModel"]
        config = json.loads((tmp_path / "transformer" / "config.json").read_text())
        assert config["_class_name"] == "WanTransformer3DModel"


def test_a_pipeline_is_copied_and_sent(pipe: Any) -> None:
    for other in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        fast = other.transformer
        assert fast.original is not pipe.transformer.original
        assert isinstance(fast, OptimizedModule)
        assert fast.passes == pipe.transformer.passes
        assert fast._scheduler() is other.scheduler
        fast.original.to(torch.float16)
    assert pipe.transformer.dtype == torch.float32


def sent(module: Any) -> Any:
    held = io.BytesIO()
    torch.save(module, held)
    held.seek(0)
    return torch.load(held, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, sent])
def test_a_copy_has_plans_of_its_own(copied: Any) -> None:
    pair = Pair(spec=fisopt.ModelSpec(blocks=("layers.*",), grid=(2, 1, 2)))
    pair.check(changed=False)
    other = copied(pair.fast)
    nn.init.zeros_(other.original.out.weight)
    torch.testing.assert_close(other(**pair.inputs), other.original(**pair.inputs))
    pair.check(changed=False)


class Told(Small):
    """What runs depends on the context that is open."""

    gain = 1.0

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        self.gain = float(len(name))
        try:
            yield
        finally:
            del self.gain

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.gain * super().forward(video)
        return result


def test_the_original_is_told_the_branch(pair: Pair) -> None:
    model = Told().eval().requires_grad_(False)
    model.load_state_dict(pair.model.state_dict())
    fast = fisopt.optimize(model, [], spec=SPEC, backend="eager")
    for name in ("cond", "uncond"):
        with fast.cache_context(name):
            torch.testing.assert_close(fast(**pair.inputs), len(name) * pair.before)
    torch.testing.assert_close(fast(**pair.inputs), pair.before)


def run_elsewhere(module: Any, inputs: Any, answers: Any) -> None:
    answers.put(module(**inputs).numpy())


@pytest.mark.slow
def test_a_spawned_process_makes_its_own() -> None:
    pair = Pair(spec=fisopt.ModelSpec(blocks=("layers.*",), grid=(2, 1, 2)))
    context = torch.multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=run_elsewhere, args=(pair.fast, pair.inputs, answers))
    process.start()
    got = answers.get()
    process.join()
    torch.testing.assert_close(torch.from_numpy(got), pair.before, rtol=0, atol=1e-6)


def test_models_that_torch_compiled(pair: Pair) -> None:
    for compiled in ("model", "in place", "layer", "layer in place", "forward of a layer"):
        model: Any = pairs.build()
        if compiled == "model":
            model = torch.compile(model, backend="eager")
        elif compiled == "layer":
            model.layers[0] = torch.compile(model.layers[0], backend="eager")
        elif compiled == "forward of a layer":
            model.layers[0].forward = torch.compile(model.layers[0].forward, backend="eager")
        else:
            (model if compiled == "in place" else model.layers[0]).compile(backend="eager")
        fast = fisopt.optimize(model, [], pair.inputs, SPEC, backend="eager")
        torch.testing.assert_close(fast(**pair.inputs), pair.before, rtol=0, atol=1e-6)
        assert isinstance(fast.original, Small)
        nn.init.zeros_(fast.original.out.weight)
        assert not fast(**pair.inputs)[..., 1:].allclose(pair.before[..., 1:])


class Recorder:
    """A processor that keeps what it has seen."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []
        self.gain = 1.0

    def keep(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return x


@pytest.mark.parametrize("what", ["processor", "hook"])
def test_what_records_is_warned_of(pair: Pair, what: str) -> None:
    recorder, layer = Recorder(), pair.model.layers[0]
    if what == "processor":
        layer.options = recorder
        layer.split = lambda x: recorder.keep(layer.qkv(x)).chunk(3, dim=-1)
        match = r"forward sets layers\.0\.options\.seen"
    else:
        layer.mlp.register_forward_hook(lambda *call: recorder.seen.append(call[2]))
        match = r"hooks run on layers\.0\.mlp: the graph contains what they return"
    with pytest.warns(UserWarning, match=match):
        got = pair.fast(**pair.inputs)
    assert recorder.seen == [], "neither a traced tensor nor one of the graph's"
    torch.testing.assert_close(got, pair.before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("order", ["before", "after", "before and after", "twice"])
def test_offloading_of_the_whole_model(pair: Pair, order: str) -> None:
    if order.startswith("before"):
        cpu_offload_with_hook(pair.model, "cpu")
    pair.check(changed=False)
    if order == "before and after":  # as a pipeline does: it removes all hooks, then adds them
        remove_hook_from_module(pair.fast, recurse=True)
    if order != "before":
        _, hook = cpu_offload_with_hook(pair.fast, "cpu")
        hook.offload()
    if order == "twice":
        cpu_offload_with_hook(pair.fast, "cpu")
    moved: list[Any] = []
    pair.model._hf_hook.pre_forward = lambda module, *args, **kwargs: (
        moved.append(module) or (args, kwargs)
    )
    pair.check(changed=False)
    assert moved == [pair.model, pair.model], "once for the original, once for the optimised"
    remove_hook_from_module(pair.fast, recurse=True)
    assert not hasattr(pair.fast, "_hf_hook")
    pair.check(changed=False)
    assert not pair.fast.report.changes


def test_offloading_of_layers_is_refused(pair: Pair) -> None:
    pair.check(changed=False)
    add_hook_to_module(pair.model.layers[0], AlignDevicesHook("cpu", offload=True))
    with pytest.raises(InputError, match="offloading of single layers"):
        pair.fast(**pair.inputs)
