"""The nodes for ComfyUI against a headless stand-in of its interface.

What they compute is compared with the same network that fisopt optimised without them.  With a
checkout of ComfyUI, `test_comfyui_engine.py` runs them in the engine itself.
"""

import inspect
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fisopt
from fisopt.errors import InputError, OptionError, RecipeError
from tests.integrations import comfyui_stand_in as comfyui
from tests.integrations.comfyui_nodes import NAME, loaded
from tests.zoo import forms

pytestmark = pytest.mark.xdist_group("comfyui")
STEPS = 4


@pytest.fixture(scope="module")
def nodes() -> Any:
    comfyui.install()
    with loaded() as package:
        yield SimpleNamespace(**package.NODE_CLASS_MAPPINGS)


def wan() -> Any:
    return comfyui.ModelPatcher(comfyui.BaseModel(comfyui.WanModel(forms()["wan"].model)))


def ltx() -> Any:
    return comfyui.ModelPatcher(comfyui.BaseModel(comfyui.LTXVModel(forms()["ltx"].model)))


def text(seed: Any, **conditions: Any) -> Any:
    drawn = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 7, 16, generator=drawn), conditions]]


def sampled(patcher: Any, channels: Any = 4, **options: Any) -> Any:
    """Latents of one run of the sampler."""
    latent = torch.zeros(1, channels, 5, 6, 8)
    given = {"steps": STEPS, "cfg": 2.0, "scheduler": "apart", **options}
    noise = comfyui.prepare_noise(latent, 3)
    mask = {"attention_mask": None} if channels == 8 else {}
    said = (text(1, **mask), text(2, **mask))
    with torch.inference_mode():
        return comfyui.sample(
            patcher, noise, given["steps"], given["cfg"], "euler", given["scheduler"], *said, latent
        )


def oracle(patcher: Any, passes: Any, scheduler: Any = "apart") -> Any:
    """The same loop without patchers and wrappers, its steps and branches said outright."""
    network = patcher.model.diffusion_model.network
    fast = fisopt.optimize(network, passes, backend="eager")
    x = comfyui.prepare_noise(torch.zeros(1, 4, 5, 6, 8), 3)
    contexts = [text(1)[0][0], text(2)[0][0]]
    sigmas = torch.linspace(1, 0, STEPS + 1)
    with torch.no_grad():
        for i in range(STEPS):
            said = {"step_index": i, "num_inference_steps": STEPS}
            if scheduler == "joined":
                with fast.cache_context("both", **said):
                    both = fast(
                        torch.cat([x, x]),
                        timestep=1000 * sigmas[i].repeat(2),
                        encoder_hidden_states=torch.cat(contexts),
                        return_dict=False,
                    )[0]
                found = both.chunk(2)
            else:
                found = []
                for name, context in zip("ab", contexts, strict=True):
                    with fast.cache_context(name, **said):
                        time = 1000 * sigmas[i][None]
                        found.append(fast(x, time, context, return_dict=False)[0])
            x = x + (sigmas[i + 1] - sigmas[i]) * (found[1] + 2.0 * (found[0] - found[1]))
    return x


def test_nodes_declare_what_their_functions_take(nodes: Any) -> None:
    for node in vars(nodes).values():
        said = node.INPUT_TYPES()
        names = [*said["required"], *said.get("optional", {})]
        function = getattr(node, node.FUNCTION)
        taken = [n for n in inspect.signature(function).parameters if n != "self"]
        assert taken == names
        assert node.CATEGORY == "fisopt"
        assert all(isinstance(kind, str) for kind in node.RETURN_TYPES)


@pytest.mark.parametrize("scheduler", ["apart", pytest.param("joined", marks=pytest.mark.slow)])
def test_passes_run_at_their_steps_in_every_branch(nodes: Any, scheduler: Any) -> None:
    patcher = wan()
    lines = 'FrameInterleave(stride=2, blocks="1:", steps="1:")\nStepCache(steps="2", blocks=":")'
    (fast,) = nodes.FisoptApply().apply(patcher, lines, "eager", True)
    passes = [
        fisopt.FrameInterleave(stride=2, blocks="1:", steps="1:"),
        fisopt.StepCache(steps="2", blocks=":"),
    ]
    dense = sampled(patcher, scheduler=scheduler)
    got, want = sampled(fast, scheduler=scheduler), oracle(patcher, passes, scheduler)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, dense, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(sampled(fast, scheduler=scheduler), got)  # of another run, alike
    torch.testing.assert_close(sampled(patcher, scheduler=scheduler), dense)  # left as it was


def test_summary_says_what_ran(nodes: Any) -> None:
    (fast,) = nodes.FisoptApply().apply(wan(), 'StepCache(steps="2", blocks=":")', "eager", True)
    latent = {"samples": sampled(fast)}
    made = nodes.FisoptSummary().summarise(fast, latent)
    assert made["result"][0] is latent
    assert made["ui"]["text"] == [made["result"][1]]
    assert "StepCache" in made["result"][1]
    module = sys.modules[f"{NAME}.forward"].attached(fast)
    steps = fisopt.summary(module).steps
    assert [(s.step, s.calls, s.speed_up > 1.5) for s in steps] == [
        (0, 2, False),
        (1, 2, False),
        (2, 2, True),
        (3, 2, False),
    ]
    assert {call.branch for call in module.calls} == {"cond", "uncond"}
    with pytest.raises(OptionError, match="not optimised"):
        nodes.FisoptSummary().summarise(wan(), latent)


def test_ltx(nodes: Any) -> None:
    patcher = ltx()
    (fast,) = nodes.FisoptApply().apply(patcher, "FrameInterleave(stride=2)", "eager", True)
    got = sampled(fast, channels=8, cfg=1.0)
    assert not torch.allclose(got, sampled(patcher, channels=8, cfg=1.0), rtol=1e-2, atol=1e-2)
    network = patcher.model.diffusion_model.network
    plain = fisopt.optimize(network, [fisopt.FrameInterleave(stride=2)], backend="eager")
    (given,) = {id(c): c for c in [text(1)[0][0]]}.values()
    x = comfyui.prepare_noise(torch.zeros(1, 8, 5, 6, 8), 3)
    sigmas = torch.linspace(1, 0, STEPS + 1)
    with torch.no_grad():
        for i in range(STEPS):
            tokens = x.flatten(2).transpose(1, 2)
            time, size = 1000 * sigmas[i][None], (5, 6, 8)
            out = plain(tokens, given, time, torch.ones(1, 7), *size, return_dict=False)[0]
            x = x + (sigmas[i + 1] - sigmas[i]) * out.transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-5)


def test_recipes(nodes: Any, tmp_path: Any) -> None:
    patcher = wan()
    apply, load = nodes.FisoptApply().apply, nodes.FisoptLoadRecipe().load
    network = patcher.model.diffusion_model.network
    passes = [fisopt.FrameInterleave(stride=2)]
    path = fisopt.Recipe.of(network, passes).save(tmp_path / "recipe.yaml")  # saved in diffusers
    (fast,) = apply(patcher, "", "eager", True, *load(str(path)))
    (said,) = apply(patcher, "FrameInterleave(stride=2)", "eager", True)
    torch.testing.assert_close(sampled(fast), sampled(said))

    own = fisopt.Recipe.of(patcher.model.diffusion_model, passes).save(tmp_path / "own.yaml")
    (again,) = apply(fast, "", "eager", True, *load(str(own)))
    assert sum(map(len, again.wrappers["diffusion_model"].values())) == 1  # in the other's place

    other = fisopt.Recipe.of(forms()["wan_ti2v"].model, passes)
    assert apply(wan(), "", "eager", True, other)  # other channels of latents, the same blocks
    with pytest.raises(RecipeError, match=r"LTXVideoTransformer3DModel with .* this is a WanModel"):
        apply(patcher, "", "eager", True, fisopt.Recipe.of(forms()["ltx"].model, passes))
    with pytest.raises(OptionError, match="either passes or a recipe"):
        apply(patcher, "fis-a", "eager", True, other)
    with pytest.raises(OptionError, match="either passes or a recipe"):
        apply(patcher, " \n", "eager", True)


def test_what_would_be_skipped_is_refused(nodes: Any) -> Any:
    (fast,) = nodes.FisoptApply().apply(wan(), "FrameInterleave(stride=2)", "eager", True)

    patched = fast.clone()
    patched.model_options["transformer_options"]["patches_replace"] = {"dit": {"a": print}}
    with pytest.raises(InputError, match=r"patches_replace.*leave one of the two out"):
        sampled(patched)

    wrapped = fast.clone()
    wrapped.add_wrapper_with_key("diffusion_model", "theirs", lambda executor, *a, **k: None)
    with pytest.raises(InputError, match="apply fisopt after that node"):
        sampled(wrapped)

    outer = wan()
    seen = []

    def theirs(executor: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(args[0].shape)
        return executor(*args, **kwargs)

    outer.add_wrapper_with_key("diffusion_model", "theirs", theirs)
    (outside,) = nodes.FisoptApply().apply(outer, "FrameInterleave(stride=2)", "eager", True)
    torch.testing.assert_close(sampled(outside), sampled(fast))
    assert len(seen) == 2 * STEPS

    moved = fast.clone()
    moved.model = ltx().model
    with pytest.raises(InputError, match="optimised another WanModel"):
        sampled(moved, channels=8)

    forward = sys.modules[f"{NAME}.forward"]
    with pytest.raises(InputError, match=r"2 weights of Linear are not on cpu.*--highvram"):
        forward._check_placed(torch.nn.Linear(2, 2, device="meta"), torch.zeros(1))

    unknown = comfyui.ModelPatcher(comfyui.BaseModel(torch.nn.Linear(2, 2)))
    with pytest.raises(InputError, match="no node for ComfyUI's Linear; it knows WanModel, LTXV"):
        nodes.FisoptApply().apply(unknown, "fis-a", "eager", True)


@pytest.mark.parametrize(
    ("sigma", "step"), [(1.0, 0), (0.8, 0), (0.75, 1), (0.25, 3), (0.1, 3), (0.0, 3)]
)
def test_steps_follow_the_list_of_noise_levels(nodes: Any, sigma: Any, step: Any) -> None:
    step_of = sys.modules[f"{NAME}.forward"].step_of
    options = {"sample_sigmas": torch.linspace(1, 0, 5), "sigmas": torch.tensor([sigma])}
    assert step_of(options) == {"step_index": step, "num_inference_steps": 4}
    assert step_of({"sigmas": torch.tensor([sigma])}) == {}


def test_branches_of_several_conditions_are_told_apart(nodes: Any) -> None:
    forward = sys.modules[f"{NAME}.forward"].Forward(None)
    first = {"sample_sigmas": torch.ones(2), "cond_or_uncond": [0], "uuids": ["a"]}
    assert forward._branch(first) == "cond"
    assert forward._branch({**first, "uuids": ["b"]}) == "cond 2"
    assert (
        forward._branch({**first, "cond_or_uncond": [1, 0], "uuids": ["c", "a"]}) == "uncond + cond"
    )
    assert forward._branch({**first, "sample_sigmas": torch.ones(2), "uuids": ["d"]}) == "cond"
    third = {**first, "sample_sigmas": torch.ones(2), "cond_or_uncond": [2], "uuids": ["e"]}
    assert forward._branch(third) != forward._branch({**third, "cond_or_uncond": [0], "uuids": "f"})


def test_tune_writes_recipes_that_apply(nodes: Any, tmp_path: Any) -> None:
    patcher, path = wan(), tmp_path / "recipe.yaml"
    latent = {"samples": torch.zeros(1, 4, 5, 6, 8)}
    said = (text(1), text(2), latent, "1.3x", 3, 1.0, "euler", "apart", 5, 2, 30.0, str(path))
    before = sampled(patcher)
    recipe, none, report = nodes.FisoptTune().tune(patcher, *said)
    assert none is None
    assert f"wrote {path}" in report
    assert recipe.model.model == "WanModel"
    assert recipe.tuned["target"] == "1.3x"
    (fast,) = nodes.FisoptApply().apply(patcher, "", "eager", True, recipe)
    (read,) = nodes.FisoptApply().apply(patcher, "", "eager", True, fisopt.Recipe.load(path))
    got = sampled(fast, steps=3, cfg=1.0)
    torch.testing.assert_close(got, sampled(read, steps=3, cfg=1.0))
    assert not torch.allclose(got, sampled(patcher, steps=3, cfg=1.0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(sampled(patcher), before)


@pytest.mark.parametrize("switch", [0, 4])
def test_each_of_two_models_has_a_step(nodes: Any, switch: Any) -> None:
    latent = {"samples": torch.zeros(1, 4, 5, 6, 8)}
    said = (text(1), text(2), latent, "1.5x", 4, 1.0, "euler", "apart", 5, 2, 30.0, "unused.yaml")
    with pytest.raises(OptionError, match=f"switch_at_step={switch}"):
        nodes.FisoptTune().tune(wan(), *said, model_2=wan(), switch_at_step=switch)


@pytest.mark.slow  # the path of one model is tested above
def test_tune_of_two_models(nodes: Any, tmp_path: Any) -> None:
    path = tmp_path / "recipe.yaml"
    latent = {"samples": torch.zeros(1, 4, 5, 6, 8)}
    said = (text(1), text(2), latent, "1.5x", 4, 1.0, "euler", "apart", 5, 2, 30.0, str(path))
    high, low, _ = nodes.FisoptTune().tune(wan(), *said, model_2=wan(), switch_at_step=2)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["recipe.transformer.yaml", "recipe.transformer_2.yaml"]
    assert high.model == low.model
