"""Weights that stay on the host: `offload="block"` is equal, and holds those of few blocks."""

from __future__ import annotations

import copy
import pickle
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from torch import nn

import fisopt
from fisopt import InputError, OptionError
from fisopt.codegen.compile import compile_program
from fisopt.codegen.placement import Offload, Placement
from tests.runtime.pairs import SPEC, Pair, Small, build, video
from tests.runtime.test_lora import each, inject
from tests.zoo import zoo


class Deep(Small):
    """Six layers of the small model."""

    def __init__(self) -> None:
        super().__init__()
        self.layers.extend(build().layers)
        self.layers.extend(build().layers)


def deep() -> Deep:
    torch.manual_seed(0)
    return Deep().eval().requires_grad_(False)


def test_equal_with_weights_of_few_blocks() -> None:
    model, inputs = deep(), video(3)
    with torch.no_grad():
        want = model(**inputs)
    layer = sum(-(-p.numel() * 4 // 256) * 256 for p in model.layers[0].parameters())
    fast: Any = model
    for prefetch in (0, 1, 3):
        options: dict[str, Any] = {"offload": "block", "prefetch": prefetch}
        fast = fisopt.optimize(fast, [], spec=SPEC, backend="eager", **options)
        for _ in range(2):
            assert torch.equal(fast(**inputs), want)
        held = fast.report.weights
        assert held.peak == (prefetch + 1) * layer
        assert held.copied == 2 * sum(p.numel() * 4 for p in model.parameters())


class Tabled(Small):
    """A model whose first operator is a view of a weight that its last one reads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2, 8))

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        shift, scale = self.table.unsqueeze(1).chunk(2)
        video = video + shift
        for layer in self.layers:
            video = layer(video)
        return self.out(video) * scale + shift


def test_a_view_of_a_weight_outlives_its_stage() -> None:
    torch.manual_seed(0)
    model, inputs = Tabled().eval().requires_grad_(False), video()
    fast = fisopt.optimize(model, [], spec=SPEC, backend="eager", offload="block", prefetch=0)
    with torch.no_grad():
        want = model(**inputs)
        torch.testing.assert_close(fast(**inputs), want)
        nn.init.ones_(model.table)
        torch.testing.assert_close(fast(**inputs), model(**inputs))
    offload = fisopt.summary(fast).to_dict()["transformers"][0]["offload"]
    assert 0 < offload["peak"] < offload["total"]
    assert "offload: at most" in str(fisopt.summary(fast))


@pytest.mark.parametrize("options", [{"linear": "fp8-simulated"}, {"backend": "inductor"}])
def test_with_other_options(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda stage, **_: stage)
    options = {"backend": "eager"} | options
    passes = [fisopt.FrameInterleave(stride=2, blocks=":", scope="block")]
    model, inputs = build(), video(5)
    plain = fisopt.optimize(model, passes, spec=SPEC, **options)
    fast = fisopt.optimize(plain, passes, offload="block", **options)
    assert torch.equal(fast(**inputs), plain(**inputs))
    assert fast.report.weights.peak < fast.report.weights.total


def test_adapters_are_copied_too() -> None:
    pair = Pair(offload=Offload())
    with torch.no_grad():
        inject(pair.model, "a", "qkv", "mlp")
        pair.check()
        each(pair.fast, "merge")
        pair.check()


def test_moving_names_the_device() -> None:
    pair = Pair(offload=Offload())
    pair.check(changed=False)
    assert pair.fast.to("meta") is pair.fast
    assert pair.fast._device == torch.device("meta")
    assert {p.device.type for p in pair.model.parameters()} == {"cpu"}
    pair.fast.cpu().to(torch.float64)
    assert pair.model.out.weight.dtype == torch.float64
    pair.fast.float()
    pair.check(changed=False)


def test_copies_offload_too() -> None:
    spec = fisopt.ModelSpec(blocks=("layers.*",), grid=(2, 1, 2))
    pair = Pair(offload=Offload(prefetch=2), spec=spec)
    for other in (copy.deepcopy(pair.fast), pickle.loads(pickle.dumps(pair.fast))):
        assert torch.equal(other(**pair.inputs), pair.before)
        assert other.report.weights.peak
        assert other.to("meta").original.out.weight.device.type == "cpu"
        assert copy.deepcopy(other)._device == pickle.loads(pickle.dumps(other))._device
        assert copy.deepcopy(other)._device == torch.device("meta"), "where it runs travels"


def test_what_does_not_go_together_is_refused() -> None:
    model = build()
    with pytest.raises(InputError, match=r"layers\.0\.qkv\.weight is on meta and 9 more are not"):
        fisopt.optimize(build().to("meta"), [], spec=SPEC, offload="block")
    with pytest.raises(OptionError, match=r"offload must be one of \['block'\], got 'layer'"):
        fisopt.optimize(model, [], spec=SPEC, offload="layer")
    with pytest.raises(OptionError, match="prefetch: got -1, wanted 0 or more"):
        fisopt.optimize(model, [], spec=SPEC, offload="block", prefetch=-1)
    with pytest.raises(OptionError, match="prefetch=2 has no effect without offload"):
        fisopt.optimize(model, [], spec=SPEC, prefetch=2)
    pair = Pair(offload=Offload())
    pair.check(changed=False)
    pair.model.to("meta")
    with pytest.raises(InputError, match="is on meta and 9 more are not on the host"):
        pair.fast(**pair.inputs)
    pair = Pair(offload=Offload())
    pair.model.requires_grad_(True)
    with pytest.raises(InputError, match="so the weights get no gradients"):
        pair.fast(**pair.inputs)


def test_a_graph_is_moved_to_another_device() -> None:
    """As a graph that was captured on the host is to a GPU; here to the meta device."""
    torch.manual_seed(0)
    model, inputs = Tabled().eval(), video(5)
    program = fisopt.capture(model, inputs, spec=SPEC)
    dense = fisopt.PassManager([fisopt.FrameInterleave(blocks=":")]).run(program)
    held = Placement(torch.device("meta"), Offload())
    run = compile_program(dense, "eager", placement=held)
    with torch.no_grad():
        (result,) = run(inputs["video"].to("meta"))
    assert (result.device.type, result.shape) == ("meta", inputs["video"].shape)
    assert held.held.device == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_on_a_gpu(backend: Any) -> None:
    model, inputs = deep(), {"video": video(5)["video"].cuda()}
    fast = fisopt.optimize(model, [], spec=SPEC, backend=backend, offload="block")
    with torch.no_grad():
        got = [fast(**inputs) for _ in range(3)]
        assert all(p.is_pinned() for p in model.parameters())
        want = copy.deepcopy(model).cuda()(**inputs)
    for result in got:
        torch.testing.assert_close(result, want)
    assert fast.report.weights.device == "cuda:0"
    assert len(fast.report.variants) == 1, "pinning is no change of the model"


@cache
def _pipeline() -> Any:
    model: Any = copy.deepcopy(zoo()["wan"].model)
    del model.blocks[2:]
    held = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipe = WanPipeline(**held, scheduler=scheduler, transformer=model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(captured_once: None) -> Any:
    """A pipeline whose transformer is captured once for all tests."""
    _pipeline().remove_all_hooks()
    return fisopt.restore(_pipeline())


def clip(pipe: Any) -> torch.Tensor:
    texts = torch.randn(2, 1, 12, 16, generator=torch.Generator().manual_seed(0))
    frames: torch.Tensor = pipe(
        prompt_embeds=texts[0],
        negative_prompt_embeds=texts[1],
        height=32,
        width=32,
        num_frames=9,
        num_inference_steps=2,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).frames
    return frames


def test_offloading_of_whole_models_through_the_pipeline(pipe: Any) -> None:
    """Before `optimize`, after it, before and after, and twice; alone and with that of blocks."""
    want = clip(pipe)
    orders = ((0, 1), (1, 0), (1, 1), (0, 2))
    for offload, (before, after) in product((None, "block"), orders):
        fisopt.restore(pipe)
        pipe.remove_all_hooks()
        for _ in range(before):
            pipe.enable_model_cpu_offload(device="cpu")
        fisopt.optimize(pipe, [], backend="eager", offload=offload)
        for _ in range(after):
            pipe.enable_model_cpu_offload(device="cpu")
        hook = pipe.transformer._hf_hook
        assert torch.equal(clip(pipe), want)
        assert torch.equal(clip(pipe), want)
        assert hook.execution_device == torch.device("cpu:0")
        assert bool(pipe.transformer.report.weights.peak) == (offload == "block")


def test_offloading_of_layers_leads_to_offload(pipe: Any) -> None:
    want, cpu = clip(pipe), torch.device("cpu")
    fisopt.optimize(pipe, [], backend="eager")
    with pytest.raises(InputError, match=r"pass offload='block' to fisopt\.optimize"):
        pipe.enable_group_offload(onload_device=cpu)
    fisopt.optimize(pipe, [], backend="eager", offload="block")
    pipe.enable_group_offload(onload_device=cpu)
    assert torch.equal(clip(pipe), want), "what it asks for is done already"
    grouped = copy.deepcopy(pipe.transformer.original)
    grouped.enable_group_offload(cpu, num_blocks_per_group=1)
    with pytest.raises(InputError, match="group_offloading: load the model again without it, and"):
        fisopt.optimize(grouped, [], backend="eager")
    other = copy.deepcopy(pipe)
    other.enable_sequential_cpu_offload(device="cpu")
    with pytest.raises(InputError, match="offloading of single layers: pass offload='block'"):
        clip(other)
    with pytest.raises(InputError, match="offloading of single layers: pass offload='block'"):
        fisopt.optimize(fisopt.restore(other), [], backend="eager")
