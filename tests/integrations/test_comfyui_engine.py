"""The nodes in ComfyUI itself, on its own tiny Wan and LTX models, where COMFYUI_PATH names a checkout.

The environment must have what ComfyUI imports (its requirements.txt).
"""

import importlib
import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fisopt
from tests.integrations.comfyui_nodes import NAME, loaded

CHECKOUT = os.environ.get("COMFYUI_PATH")
pytestmark = [
    pytest.mark.xdist_group("comfyui-engine"),
    pytest.mark.skipif(not CHECKOUT, reason="COMFYUI_PATH names no checkout of ComfyUI"),
]
STEPS = 4
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "in_dim": 16,
    "out_dim": 16,
    "dim": 48,
    "ffn_dim": 64,
    "freq_dim": 32,
    "text_dim": 16,
    "num_heads": 2,
    "num_layers": 4,
}
LTX = {
    "image_model": "ltxv",
    "in_channels": 128,
    "cross_attention_dim": 48,
    "attention_head_dim": 24,
    "num_attention_heads": 2,
    "caption_channels": 16,
    "num_layers": 4,
}
FORMS = {"wan": ("WAN21_T2V", WAN, 16), "ltx": ("LTXV", LTX, 128)}


@pytest.fixture(scope="module")
def engine() -> Any:
    sys.path.insert(0, CHECKOUT)
    arguments = importlib.import_module("comfy.cli_args").args
    arguments.cpu = arguments.use_pytorch_cross_attention = True
    names = ("model_patcher", "supported_models", "sample", "samplers", "utils")
    parts = {name: importlib.import_module(f"comfy.{name}") for name in names}
    with loaded() as package:
        yield SimpleNamespace(**parts, **package.NODE_CLASS_MAPPINGS)
    sys.path.remove(CHECKOUT)


@pytest.fixture(scope="module", params=FORMS)
def case(request: Any, engine: Any) -> Any:
    """A patcher of a tiny model, and its latents."""
    name, config, channels = FORMS[request.param]
    told = getattr(engine.supported_models, name)({**config, "dtype": torch.float32})
    model = told.get_model({}, device="cpu")
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.diffusion_model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=drawn))
    cpu = torch.device("cpu")
    patcher = engine.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
    return SimpleNamespace(patcher=patcher, latent=torch.zeros(1, channels, 5, 6, 8))


def text(seed: Any) -> Any:
    drawn = torch.Generator().manual_seed(seed)
    mask = {"attention_mask": torch.ones(1, 7, dtype=torch.int64)}  # LTX-Video asks for it
    return [[torch.randn(1, 7, 16, generator=drawn), mask]]


def sampled(engine: Any, case: Any, patcher: Any, cfg: Any = 2.0, sampler: Any = "euler") -> Any:
    noise = engine.sample.prepare_noise(case.latent, 3)
    said = (STEPS, cfg, sampler, "simple", text(1), text(2), case.latent)
    with torch.inference_mode():
        return engine.sample.sample(patcher, noise, *said, disable_pbar=True, seed=3).clone()


def module_of(patcher: Any) -> Any:
    return sys.modules[f"{NAME}.forward"].attached(patcher)


def relative(got: Any, want: Any) -> Any:
    return float((got - want).norm() / want.norm())


def test_a_dense_graph_is_the_model(engine: Any, case: Any) -> None:
    """Steps that no pass works on: only the capture can differ."""
    lines = 'FrameInterleave(stride=2, blocks="1:", steps="9:")'
    (fast,) = engine.FisoptApply().apply(case.patcher, lines, "eager", True)
    assert relative(sampled(engine, case, fast), sampled(engine, case, case.patcher)) < 1e-5


def test_passes_run_at_their_steps(engine: Any, case: Any) -> None:
    lines = 'FrameInterleave(stride=2, blocks="1:", steps="1:")\nStepCache(steps="2", blocks=":")'
    (fast,) = engine.FisoptApply().apply(case.patcher, lines, "eager", True)
    dense = sampled(engine, case, case.patcher)
    got = sampled(engine, case, fast)
    assert 1e-4 < relative(got, dense) < 1
    assert relative(sampled(engine, case, fast), got) < 1e-6
    assert relative(sampled(engine, case, case.patcher), dense) < 1e-6
    steps = fisopt.summary(module_of(fast)).steps
    speeds = [s.speed_up for s in steps]
    assert len(speeds) == STEPS
    assert speeds[0] == pytest.approx(1, rel=1e-2)
    assert speeds[2] > speeds[1] > 1 < speeds[3]
    report = str(module_of(fast).report)
    assert "not in the prediction" not in report
    assert "neighbours" not in report


def test_passes_compute_what_they_do_without_the_nodes(engine: Any, case: Any) -> Any:
    """The same spec and passes, and one call, without patcher, wrapper and sampler."""
    model = case.patcher.get_model_object("diffusion_model")
    spec = sys.modules[f"{NAME}.families"].spec_of(model)
    passes = [fisopt.FrameInterleave(stride=2, self_attention=4)]
    lines = "FrameInterleave(stride=2, self_attention=4)"
    (fast,) = engine.FisoptApply().apply(case.patcher, lines, "eager", True)
    calls = []
    module = module_of(fast)
    original = type(module)._run

    def noted(self: Any, args: Any, kwargs: Any) -> Any:
        made = original(self, args, kwargs)
        calls.append((args, kwargs, made))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(module), "_run", noted)
        sampled(engine, case, fast, cfg=1.0)
    assert len(calls) == STEPS
    plain = fisopt.optimize(model, passes, spec=spec, backend="eager")
    args, kwargs, made = calls[0]
    with torch.inference_mode():
        assert relative(plain(*args, **kwargs), made) < 1e-6


def test_samplers_of_higher_order(engine: Any, case: Any) -> None:
    """They call the model between the noise levels of the list, and twice at some."""
    lines = 'StepCache(steps="1:3", blocks=":")'
    (fast,) = engine.FisoptApply().apply(case.patcher, lines, "eager", True)
    for sampler in ("heun", "dpmpp_2s_ancestral", "uni_pc"):
        got = sampled(engine, case, fast, sampler=sampler)
        assert relative(got, sampled(engine, case, case.patcher, sampler=sampler)) < 1


def test_weights_patched_by_comfyui_are_seen(engine: Any, case: Any) -> None:
    """A LoRA changes weights in place while the model is loaded, and takes it back."""
    (fast,) = engine.FisoptApply().apply(case.patcher, "FrameInterleave(stride=2)", "eager", True)
    before = sampled(engine, case, fast)
    name = next(
        n for n, p in case.patcher.model.named_parameters() if "proj_out" in n or "ffn.0" in n
    )
    patched = fast.clone()
    weight = case.patcher.model.get_parameter(name)
    assert patched.add_patches({name: ("diff", (0.5 * torch.ones_like(weight),))})
    assert relative(sampled(engine, case, patched), before) > 1e-3
    assert relative(sampled(engine, case, fast), before) < 1e-6


def test_tune(engine: Any, case: Any, tmp_path: Any) -> None:
    path = tmp_path / "recipe.yaml"
    latent = {"samples": case.latent}
    said = (text(1), text(2), latent, "1.3x", 3, 1.0, "euler", "simple", 5, 2, 30.0, str(path))
    with torch.inference_mode():
        recipe, _, report = engine.FisoptTune().tune(case.patcher, *said)
    assert path.exists()
    assert str(path) in report
    (fast,) = engine.FisoptApply().apply(case.patcher, "", "eager", True, recipe)
    assert relative(sampled(engine, case, fast), sampled(engine, case, case.patcher)) > 1e-4
